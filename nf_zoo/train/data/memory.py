"""Data sets that fit in memory, augmented in batches on the training device."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import UserError, extra, nearest

Batch = tuple[Tensor, Tensor]


class Data(Protocol):
    """What the engine trains on. A batch: x (N, C, H, W) normalised float32, labels (N,), on the training device."""

    classes: list[str]
    train_n: int
    val_n: int

    def train_batches(self, epoch: int, start: int, step: int = 1) -> Iterator[Batch]:
        """Every ``step``-th full batch of an epoch, from number ``start`` on. Only the seed and these decide them."""
        ...

    def val_batches(self, start: int = 0, step: int = 1) -> Iterator[Batch]:
        """Every ``step``-th batch of the validation images, each image once, in order."""
        ...


@dataclass(frozen=True)
class MemorySet:
    """A labelled image set: ``images`` uint8 (N, C, H, W), ``labels`` int64 (N,), ``classes`` names by label."""

    images: Tensor
    labels: Tensor
    classes: list[str]


def load_dataset(name: str, data_dir: str | Path | None, split: str, *, download: bool = False) -> MemorySet:
    """Load the ``'train'`` or ``'validation'`` split of cifar10, cifar100, fashion_mnist or digits (timm's ``torch/``
    prefix is accepted); ``data_dir`` is torchvision's root folder, which digits doesn't need.

    Raises `UserError` for an unknown name and for a data set that is missing or damaged.
    """
    short = name.removeprefix('torch/')
    if short not in _LOADERS:
        known = [*_LOADERS, 'folder']
        raise UserError(f'unknown data set {name!r} (known: {", ".join(known)}){nearest(short, known)}')
    return _LOADERS[short](data_dir, split == 'train', download)


def _cifar(kind: str, data_dir: str | Path | None, train: bool, download: bool) -> MemorySet:
    from torchvision import datasets

    if data_dir is None:
        raise UserError(f'{kind} needs its folder: --data-dir DIR (with --dataset-download it is fetched into DIR)')
    make = getattr(datasets, kind)
    try:
        found = make(str(data_dir), train=train, download=download)  # checks every file's md5 before it is unpickled
    except (RuntimeError, OSError) as error:
        if download:
            raise UserError(f'{kind} could not be fetched into {data_dir}: {error}') from None
        raise UserError(
            f'no intact {kind} in {data_dir} (looked for {make.base_folder} there); '
            f'point --data-dir at it, or fetch it: `nf-zoo evaluate` and `nf-zoo train` have --dataset-download'
        ) from None
    images = torch.from_numpy(np.ascontiguousarray(found.data)).permute(0, 3, 1, 2)
    return MemorySet(images, torch.tensor(found.targets), list(found.classes))


def _fashion_mnist(data_dir: str | Path | None, train: bool, download: bool) -> MemorySet:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    kind = datasets.FashionMNIST
    if data_dir is None:
        raise UserError(
            'fashion_mnist needs its folder: --data-dir DIR (with --dataset-download it is fetched into DIR)'
        )
    raw = Path(data_dir) / 'FashionMNIST' / 'raw'
    try:
        found = kind(str(data_dir), train=train, download=download)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        if download:
            raise UserError(f'fashion_mnist could not be fetched into {data_dir}: {error}') from None
        raise UserError(
            f'no intact fashion_mnist in {data_dir} (looked for {raw}); '
            f'point --data-dir at it, or fetch it: `nf-zoo evaluate` and `nf-zoo train` have --dataset-download'
        ) from None
    for name, md5 in kind.resources:  # torchvision checks them only when it downloads them
        if (raw / name).exists() and not check_integrity(str(raw / name), md5):
            raise UserError(f'{raw / name} is damaged; remove it and add --dataset-download')
    return MemorySet(found.data.unsqueeze(1), found.targets, list(found.classes))


def _digits(data_dir: str | Path | None, train: bool, download: bool) -> MemorySet:
    """scikit-learn's scans (UCI optdigits): 8x8, 17 grey levels, enlarged to 32x32; a fifth of each class held out."""
    scans = extra('sklearn.datasets', 'demo').load_digits()
    chosen = extra('sklearn.model_selection', 'demo').train_test_split(
        np.arange(len(scans.target)), test_size=0.2, random_state=0, stratify=scans.target
    )
    index = np.sort(chosen[0 if train else 1])
    grey = torch.from_numpy(scans.images[index] * (255 / 16)).float().unsqueeze(1)
    grey = F.interpolate(grey, size=(32, 32), mode='bicubic').round_().clamp_(0, 255).byte()
    labels = torch.from_numpy(scans.target[index]).long()
    return MemorySet(grey.repeat(1, 3, 1, 1), labels, [str(c) for c in scans.target_names])


_LOADERS = {
    'cifar10': lambda *a: _cifar('CIFAR10', *a),
    'cifar100': lambda *a: _cifar('CIFAR100', *a),
    'fashion_mnist': _fashion_mnist,
    'digits': _digits,
}


KNOWN = tuple(_LOADERS)


def in_memory(name: str) -> bool:
    """Whether `load_dataset` is to read this set. It also refuses unknown names without a slash."""
    return name.removeprefix('torch/') in _LOADERS or ('/' not in name and name != 'folder')


def fold_seed(*numbers: int) -> int:
    """One 63-bit seed from up to four numbers >= 0, well mixed; zeros at the end don't count."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(*numbers: int) -> None:
    """Seed Python's, numpy's and torch's global generators as a function of ``numbers``."""
    seed = fold_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


def size_at(train_sizes: Mapping[int, int], epoch: int) -> int | None:
    """The side of the training images in ``epoch``: that of the last key of ``train_sizes`` up to it, if any."""
    begun = [start for start in train_sizes if start <= epoch]
    return train_sizes[max(begun)] if begun else None


def with_channels(images: MemorySet, channels: int) -> MemorySet:
    """The same pictures with 1 or 3 ``channels``; colours become grey as in Pillow's mode L."""
    pixels = images.images
    if pixels.shape[1] == channels:
        return images
    if channels == 1:
        # Pillow's integer weights, with its rounding: the same bytes as Image.convert('L')
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
        grey = [((p.int() * weights).sum(1, keepdim=True) + 0x8000) >> 16 for p in pixels.split(4096)]
        return replace(images, images=torch.cat(grey).byte())
    return replace(images, images=pixels.expand(-1, channels, -1, -1))


class MemoryData:
    """`Data` over two `MemorySet`: random crops of the zero-padded image, some mirrored, by one gather a batch."""

    def __init__(
        self,
        train: MemorySet | None,
        val: MemorySet,
        *,
        batch_size: int,
        val_batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        size: int | None = None,
        crop_pad: int = 4,
        hflip: float = 0.5,
        train_sizes: dict[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.classes = val.classes
        self.train_n = len(train.labels) if train else 0
        self.val_n = len(val.labels)
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        self.side = val.images.shape[-1]
        self.size = size or self.side
        self.hflip, self.seed, self.device = hflip, seed, device
        self.train_sizes = train_sizes or {}
        self.mean = 255 * torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.rstd = 1 / (255 * torch.tensor(std, device=device).view(1, -1, 1, 1))
        # NHWC, so that gathering pixels yields channels_last batches
        self.val_images = val.images.permute(0, 2, 3, 1).contiguous().to(device)
        self.val_labels = val.labels.to(device)
        if train:
            padded = F.pad(train.images, (crop_pad,) * 4)
            self.images = padded.permute(0, 2, 3, 1).contiguous().to(device)
            self.labels = train.labels.to(device)

    def train_batches(self, epoch: int, start: int, step: int = 1) -> Iterator[Batch]:
        """Batches of an epoch, as `Data.train_batches`."""
        size = size_at(self.train_sizes, epoch) or self.size
        side = round(size * self.side / self.size)  # so that objects are as large as in evaluation
        rng = torch.Generator().manual_seed(fold_seed(self.seed, epoch))
        order = torch.randperm(self.train_n, generator=rng).to(self.device)
        room = self.images.shape[1] - side + 1
        corners = torch.randint(room, (2, self.train_n), generator=rng).to(self.device)
        mirrored = (torch.rand(self.train_n, generator=rng) < self.hflip).to(self.device)
        for k in range(start, self.train_n // self.batch_size, step):
            rows = slice(k * self.batch_size, (k + 1) * self.batch_size)
            chosen = order[rows]
            x = crop_and_flip(self.images, chosen, corners[:, rows], mirrored[rows], side)
            yield self._normalized(x, size), self.labels[chosen]

    def val_batches(self, start: int = 0, step: int = 1) -> Iterator[Batch]:
        """Batches of the validation images, as `Data.val_batches`."""
        size = self.val_batch_size
        for k in range(start * size, self.val_n, step * size):
            rows = slice(k, k + size)
            yield self._normalized(self.val_images[rows], self.size), self.val_labels[rows]

    def _normalized(self, x: Tensor, size: int) -> Tensor:
        x = (x.permute(0, 3, 1, 2).float() - self.mean) * self.rstd
        if x.shape[-1] != size:
            x = F.interpolate(x, size=(size, size), mode='bicubic', antialias=True)
        return x


def crop_and_flip(images: Tensor, chosen: Tensor, corners: Tensor, mirrored: Tensor, side: int) -> Tensor:
    """Windows of ``side`` x ``side`` pixels.

    images (N, H, W, C), chosen (B,) image numbers, corners (2, B) top row and left column, mirrored (B,) bool
    -> (B, side, side, C)
    """
    step = torch.arange(side, device=images.device)
    rows = corners[0, :, None] + step
    columns = corners[1, :, None] + torch.where(mirrored[:, None], side - 1 - step, step)
    return images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
