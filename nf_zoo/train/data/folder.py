"""Sets of single pictures by index.

They are image folders (DIR/train/CLASS/*.jpg, DIR/validation/CLASS/*.jpg), data sets that timm opens, and in-memory
sets with a policy such as RandAugment, which works on single pictures.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from ...errors import UserError, one_line
from ...files import below
from ..recipe import Recipe
from .memory import Batch, MemorySet, fold_seed, seed_everything
from .pictures import UNREADABLE, is_picture, look_through, read_picture
from .pipeline import Pipeline

# Data sets that come as class folders: the folder of their validation images, and names of the folder around it, of
# which torchvision's is the last.
KNOWN_FOLDERS = {'imagenette': ('val', ('imagenette', 'imagenette2-160'))}


def known_folder(dataset: str, data_dir: str | Path | None) -> tuple[str | Path | None, str]:
    """Where a data set of ``KNOWN_FOLDERS`` lies, ``data_dir`` itself or a folder in it, and its validation split."""
    split, names = KNOWN_FOLDERS[dataset]
    inside = [Path(data_dir) / name for name in ('.', *names)] if data_dir is not None else []
    return next((place for place in inside if (place / split).is_dir()), data_dir), split


def open_folders(data_dir: str | None, *splits: str, mode: str = 'RGB') -> tuple[ImageFolder, ...]:
    """One ImageFolder for each split, whose pictures have Pillow's ``mode``, 'RGB' or 'L'.

    Raises `UserError` for what is missing, for a split that is not in ``data_dir``, for a link to a folder above it,
    and when the splits' classes differ.
    """
    if data_dir is None:
        raise UserError('folder data needs --data-dir DIR, with train/ and validation/, one folder a class')
    found = tuple(_open(below(Path(data_dir), split), mode) for split in splits)
    classes = [set(images.classes) for images in found]
    odd = sorted(set.union(*classes) - set.intersection(*classes))
    if odd:
        raise UserError(f'{data_dir}: {" and ".join(splits)} differ in the classes {", ".join(odd[:5])}')
    return found


def _open(path: Path, mode: str) -> ImageFolder:
    others = look_through(path)
    try:
        images = ImageFolder(str(path), loader=partial(read_picture, mode=mode), is_valid_file=is_picture)
    except OSError:
        raise UserError(f'{path}: no class folders with images there (expected {path}/CLASS/IMAGE)') from None
    images.left_out = others
    return images


class MemoryPictures(Dataset):
    """The pictures of an in-memory set, for transforms that take them one by one."""

    def __init__(self, images: MemorySet) -> None:
        self.images, self.classes = images, images.classes

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        pixels = self.images.images[number].permute(1, 2, 0).numpy()
        return Image.fromarray(pixels.squeeze()), int(self.images.labels[number])


class FolderData:
    """`Data` over single pictures. The seed, the epoch and the index of an image alone decide its augmentation.

    ``train`` and ``val`` give pictures and labels by index, and have ``classes``.
    """

    def __init__(self, train: Any, val: Any, recipe: Recipe, config: dict[str, Any], device: torch.device) -> None:
        side = train.images.images.shape[-2:] if isinstance(train, MemoryPictures) else None
        self.pipeline = Pipeline(recipe, config, device, side)
        self.train, self.val = train, _Images(val, self.pipeline.val, recipe.seed)
        self.classes = val.classes
        self.train_n, self.val_n = len(train), len(val)
        self.batch_size = recipe.batch_size
        self.val_batch_size = recipe.validation_batch_size or recipe.batch_size
        self.seed = recipe.seed

    def train_batches(self, epoch: int, start: int, step: int = 1) -> Iterator[Batch]:
        """Batches of an epoch, as `Data.train_batches`."""
        rng = torch.Generator().manual_seed(fold_seed(self.seed, epoch))
        order = torch.randperm(self.train_n, generator=rng).tolist()
        full = self.train_n // self.batch_size
        batches = [order[k * self.batch_size : (k + 1) * self.batch_size] for k in range(start, full, step)]
        images = _Images(self.train, self.pipeline.train(epoch), self.seed)
        return self._load(images, [[(epoch, i) for i in batch] for batch in batches])

    def val_batches(self, start: int = 0, step: int = 1) -> Iterator[Batch]:
        """Batches of the validation images, as `Data.val_batches`."""
        size, numbers = self.val_batch_size, range(self.val_n)
        firsts = range(start * size, self.val_n, step * size)
        return self._load(self.val, [[(0, i) for i in numbers[k : k + size]] for k in firsts])

    def _load(self, folder: '_Images', batches: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        loader = DataLoader(folder, batch_sampler=batches, num_workers=self.pipeline.workers, **self.pipeline.options())
        return self.pipeline.delivered(loader)


class _Images(Dataset):
    def __init__(self, files: Any, transform: Any, seed: int) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int] | UserError:
        epoch, number = key
        try:
            image, label = self.files[number]
        except UserError as error:
            return error  # returned, since an exception from a worker process arrives wrapped in its traceback
        except UNREADABLE:
            return UserError(f'{self._name(number)}: not a readable image; repair or remove it')
        seed_everything(self.seed, epoch, 2, number)
        try:
            return self.transform(image), label
        except Exception as error:  # some policies of timm draw what Pillow then refuses
            return UserError(f'{self._name(number)}: the augmentation fails ({one_line(error)}); choose another aa')

    def _name(self, number: int) -> str:
        return str(self.files.samples[number][0]) if hasattr(self.files, 'samples') else f'image {number}'
