"""Pictures one by one, through timm's transforms: image folders (DIR/train/CLASS/*.jpg, DIR/validation/CLASS/*.jpg),
data sets that timm opens, and in-memory sets with a policy such as RandAugment, which works on single pictures."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_dataset, create_transform
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ..errors import UserError
from .data import Batch, MemorySet, fold_seed, seed_everything
from .recipe import Recipe


def open_folders(data_dir: str | None, *splits: str) -> tuple[ImageFolder, ...]:
    """One ImageFolder for each split. Raises `UserError` for what is missing, or when their classes differ."""
    if data_dir is None:
        raise UserError('folder data needs --data-dir DIR, with train/ and validation/, one folder a class')
    found = tuple(_open(Path(data_dir) / split) for split in splits)
    classes = [set(images.classes) for images in found]
    odd = sorted(set.union(*classes) - set.intersection(*classes))
    if odd:
        raise UserError(f'{data_dir}: {" and ".join(splits)} differ in the classes {", ".join(odd[:5])}')
    return found


def _open(path: Path) -> ImageFolder:
    try:
        return ImageFolder(str(path))
    except OSError:
        raise UserError(f'{path}: no class folders with images there (expected {path}/CLASS/IMAGE)') from None


class TimmSet(Dataset):
    """Pictures and labels of a data set that timm names, such as ``torch/places365`` or ``hfds/OWNER/NAME``.

    Raises `UserError` for a name that timm doesn't know, data that isn't there, and sets without random access.
    """

    def __init__(self, recipe: Recipe, split: str) -> None:
        name, root = recipe.dataset, recipe.data_dir
        if name.partition('/')[0] in ('tfds', 'wds', 'hfids'):
            raise UserError(
                f'{name} can only be read from its start, so a run could not be resumed exactly; '
                f'use hfds/, torch/ or folder'
            )
        if root is None:
            raise UserError(f'{name} needs its folder: --data-dir DIR')
        mode = 'L' if recipe.in_chans == 1 else 'RGB'
        options = dict(split=split, download=recipe.dataset_download, input_img_mode=mode)
        try:
            found = create_dataset(name, root, is_training=split == recipe.train_split, **options)
        except (OSError, RuntimeError, ValueError, AssertionError, ImportError) as error:
            raise UserError(f'{name} cannot be read from {root}: {" ".join(str(error).split())}') from None
        self.pictures, self.mode = found, mode
        classes = getattr(found, 'classes', None) or getattr(getattr(found, 'reader', None), 'class_to_idx', None)
        # Names where the set has them; else a look at every label would cost as much as an epoch.
        self.classes = [str(c) for c in classes or range(recipe.num_classes or 0)]
        if not self.classes:
            raise UserError(f'{name} does not name its classes; say how many with --num-classes')

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        picture, label = self.pictures[number]
        return picture.convert(self.mode), label


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
    """`Data` over pictures one by one. An image's augmentation is a function of (seed, epoch, its number) alone.

    ``train`` and ``val`` give pictures and labels by number, and have ``classes``.
    """

    def __init__(self, train: Any, val: Any, recipe: Recipe, config: dict[str, Any], device: torch.device) -> None:
        shared = {key: config[key] for key in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')}
        small = isinstance(train, MemoryPictures)
        stages = create_transform(
            **shared,
            is_training=True,
            separate=True,
            hflip=recipe.hflip,
            scale=recipe.scale,
            ratio=recipe.ratio,
            color_jitter=None if small else recipe.color_jitter,
            auto_augment=recipe.aa,
            re_prob=recipe.reprob,
        )
        if small:  # the crop of in-memory sets, and no resizing but to the model's size
            size = config['input_size'][-2:]
            side = train.images.images.shape[-2:]
            crop = [transforms.RandomCrop(side, padding=recipe.crop_pad), transforms.RandomHorizontalFlip(recipe.hflip)]
            stages = (transforms.Compose([*crop, transforms.Resize(size)] if size != side else crop), *stages[1:])
            shared['crop_pct'] = 1.0
        self.train = _Images(train, transforms.Compose(stages), recipe.seed)
        if recipe.val_img_size:
            shared['input_size'] = (config['input_size'][0], recipe.val_img_size, recipe.val_img_size)
        self.val = _Images(val, create_transform(**shared), recipe.seed)
        self.classes = val.classes
        self.train_n, self.val_n = len(train), len(val)
        self.batch_size = recipe.batch_size
        self.val_batch_size = recipe.validation_batch_size or recipe.batch_size
        self.seed, self.device = recipe.seed, device
        self.workers = min(recipe.workers, os.cpu_count() or 1)  # torch warns of more

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
    def __init__(self, files: Any, transform: Any, seed: int) -> None:
        self.files, self.transform, self.seed = files, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int] | UserError:
        epoch, number = key
        try:
            image, label = self.files[number]
        except (OSError, ValueError, SyntaxError):  # PIL raises all three for damaged files
            # returned, since an exception from a worker process arrives wrapped in its traceback
            place = self.files.samples[number][0] if hasattr(self.files, 'samples') else f'image {number}'
            return UserError(f'{place}: not a readable image; repair or remove it')
        seed_everything(self.seed, epoch, 2, number)
        return self.transform(image), label


def _leave_signals_to_the_engine(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)
