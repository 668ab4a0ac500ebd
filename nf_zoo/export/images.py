"""Real images for an export's calibration and comparison: a folder of them, prepared as the file's metadata says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor

from ..errors import UserError
from ..inference.images import image_files, read_image

LIMIT = 1000  # images of a folder that are used; they are spread over all of it


class Images:
    """The images of ``folder`` and its subfolders.

    ``labels`` has the class of each, if the subfolders are the model's: by their names, by number or, if there are as
    many as classes, by their order. Else it is None.

    Raises:
        UserError: no such folder, no images in it, or a network whose input they can't be.
    """

    def __init__(self, folder: str | Path, facts: dict[str, Any], limit: int = LIMIT):
        channels = facts['input_size'][0]
        if channels not in (1, 3):
            raise UserError(f'the model takes {channels} channels; image files give 3 or 1')
        self.files = image_files(folder, limit)
        numbers = _classes(Path(folder), self.files, facts)
        self.labels = None if numbers is None else [numbers[path.parent.name] for path in self.files]
        self._facts = facts
        self._mode = 'RGB' if channels == 3 else 'L'

    def read(self, number: int, size: tuple[int, ...] | None = None) -> Tensor:
        """Image ``number``, from the first on again after the last, as the network's input (C, H, W)."""
        keys = ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
        transform: Any = create_transform(
            input_size=size or self._facts['input_size'], **{key: self._facts[key] for key in keys}
        )
        return transform(read_image(self.files[number % len(self.files)], self._mode))

    def batches(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """A batch of each shape (N, C, H, W), of one image after the other."""
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
    """Number of each subfolder's class."""
    if any(path.parent.parent != root for path in files):
        return None
    folders = sorted({path.parent.name for path in files})
    names, count = facts.get('class_names', ()), facts.get('num_classes', 0)
    if all(folder in names for folder in folders):
        return {folder: names.index(folder) for folder in folders}
    if all(folder.isdecimal() and int(folder) < count for folder in folders):
        return {folder: int(folder) for folder in folders}
    return {folder: i for i, folder in enumerate(folders)} if len(folders) == count else None
