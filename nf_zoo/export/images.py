"""A folder of real images for an export's calibration and comparison, prepared as the file's metadata says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inference.images import image_files, transform
from ..train.data.pictures import read_image

LIMIT = 1000  # images that are used of a larger folder, spread over all of it


class Images:
    """The images of ``folder`` and its subfolders.

    ``labels`` has the class of each image if the subfolders are the model's classes, else it is None. A subfolder is a
    class if it has the class's name or number, or if there are as many subfolders as classes, in this order.

    Raises:
        UserError: there is no such folder, it has no images, or the network takes neither 1 nor 3 channels.
    """

    def __init__(self, folder: str | Path, facts: dict[str, Any], limit: int = LIMIT):
        transform(facts)  # raises for a number of channels that image files don't have
        numbers = _classes(Path(folder), image_files(folder), facts)
        self.files = image_files(folder, limit)
        self.labels = None if numbers is None else [numbers[path.parent.name] for path in self.files]
        self._facts = facts

    def read(self, number: int, size: tuple[int, ...] | None = None) -> Tensor:
        """Image ``number`` as the network's input (C, H, W). After the last image comes the first."""
        prepare, mode = transform({**self._facts, 'input_size': size or self._facts['input_size']})
        return prepare(read_image(self.files[number % len(self.files)], mode))

    def batches(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """A batch of each shape (N, C, H, W). A batch begins where the one before it ended."""
        found, number = [], 0
        for n, *size in shapes:
            found.append(torch.stack([self.read(i, tuple(size)) for i in range(number, number + n)]))
            number += n
        return found

    def labelled(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and their classes (N,)."""
        assert self.labels is not None
        numbers = range(start, min(start + count, len(self.files)))
        return torch.stack([self.read(i) for i in numbers]), torch.tensor([self.labels[i] for i in numbers])


def _classes(root: Path, files: Sequence[Path], facts: dict[str, Any]) -> dict[str, int] | None:
    """The number of each subfolder's class; None where the subfolders are not the classes."""
    if any(path.parent.parent != root for path in files):
        return None
    folders = sorted({path.parent.name for path in files})
    names, count = facts.get('class_names', ()), facts.get('num_classes', 0)
    if all(folder in names for folder in folders):
        return {folder: names.index(folder) for folder in folders}
    if all(folder.isdecimal() and int(folder) < count for folder in folders):
        return {folder: int(folder) for folder in folders}
    return {folder: i for i, folder in enumerate(folders)} if len(folders) == count else None
