"""Image folders: DIR/train/CLASS/*.jpg and DIR/validation/CLASS/*.jpg, through timm's transforms."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import ImageFolder

from ..errors import UserError
from .data import Batch, fold_seed, seed_everything
from .recipe import Recipe


def open_folders(data_dir: str | None, *splits: str) -> tuple[ImageFolder, ...]:
    """One ImageFolder for each split. Raises `UserError` for what is missing, or when their classes differ."""
    if data_dir is None:
        raise UserError('folder data needs --data-dir DIR, with train/ and validation/, one folder a class')
    found = tuple(_open(Path(data_dir) / split) for split in splits)
    odd = sorted(set(found[0].classes).symmetric_difference(*(f.classes for f in found[1:])))
    if odd:
        raise UserError(f'{data_dir}: {" and ".join(splits)} differ in the classes {", ".join(odd[:5])}')
    return found


def _open(path: Path) -> ImageFolder:
    try:
        return ImageFolder(str(path))
    except OSError:
        raise UserError(f'{path}: no class folders with images there (expected {path}/CLASS/IMAGE)') from None


class FolderData:
    """`Data` over image folders. An image's augmentation is a function of (seed, epoch, its number) alone."""

    def __init__(
        self, train: ImageFolder, val: ImageFolder, recipe: Recipe, config: dict[str, Any], device: torch.device
    ) -> None:
        shared = {key: config[key] for key in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')}
        augment = create_transform(
            **shared,
            is_training=True,
            hflip=recipe.hflip,
            scale=recipe.scale,
            ratio=recipe.ratio,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.aa,
            re_prob=recipe.reprob,
        )
        self.train = _Images(train, augment, recipe.seed)
        self.val = _Images(val, create_transform(**shared), recipe.seed)
        self.classes = val.classes
        self.train_n, self.val_n = len(train), len(val)
        self.batch_size = recipe.batch_size
        self.val_batch_size = recipe.validation_batch_size or recipe.batch_size
        self.seed, self.workers, self.device = recipe.seed, recipe.workers, device

    def train_batches(self, epoch: int, start: int, step: int = 1) -> Iterator[Batch]:
        rng = torch.Generator().manual_seed(fold_seed(self.seed, epoch))
        order = torch.randperm(self.train_n, generator=rng).tolist()
        full = self.train_n // self.batch_size
        batches = [order[k * self.batch_size : (k + 1) * self.batch_size] for k in range(start, full, step)]
        return self._load(self.train, [[(epoch, i) for i in batch] for batch in batches])

    def val_batches(self, start: int = 0, step: int = 1) -> Iterator[Batch]:
        size, numbers = self.val_batch_size, range(self.val_n)
        firsts = range(start * size, self.val_n, step * size)
        return self._load(self.val, [[(0, i) for i in numbers[k : k + size]] for k in firsts])

    def _load(self, folder: '_Images', batches: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        loader = DataLoader(
            folder,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == 'cuda',
            worker_init_fn=_leave_signals_to_the_engine,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            x, y = batch
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


class _Images(Dataset):
    def __init__(self, files: ImageFolder, transform: Any, seed: int) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int] | UserError:
        epoch, number = key
        try:
            image, label = self.files[number]
        except (OSError, ValueError, SyntaxError):  # PIL raises all three for damaged files
            # returned, since an exception from a worker process arrives wrapped in its traceback
            return UserError(f'{self.files.samples[number][0]}: not a readable image; repair or remove it')
        seed_everything(self.seed, epoch, 2, number)
        return self.transform(image), label


def _leave_signals_to_the_engine(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)
