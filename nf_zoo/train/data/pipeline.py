"""From single pictures to batches on the device: timm's transforms, and its prefetcher on GPUs."""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from timm.data import create_transform
from timm.data.loader import PrefetchLoader
from torch.utils.data import default_collate
from torchvision import transforms

from ...errors import UserError, one_line
from ..recipe import Recipe
from .memory import Batch, size_at

GRACE = 30  # seconds from SIGTERM to the end of a worker


class Pipeline:
    """From PIL pictures to batches on ``device``: `train` and ``val`` are what a worker does to one picture.

    ``config`` is timm's data config. ``side``, for the pictures of an in-memory set, is their height and width. With
    ``train_sizes`` in the recipe, the size of the training images depends on the epoch.
    """

    def __init__(
        self, recipe: Recipe, config: dict[str, Any], device: torch.device, side: Sequence[int] | None = None
    ) -> None:
        self.device, self.workers = device, min(recipe.workers, os.cpu_count() or 1)  # torch warns of more
        self.recipe, self.config, self.side = recipe, config, side
        self.prefetch = self.prefetches(recipe)
        shared = self._shared(tuple(config['input_size'][-2:]))
        if recipe.val_img_size:
            shared['input_size'] = (config['input_size'][0], recipe.val_img_size, recipe.val_img_size)
        self.val = _created(**shared)
        self._stages: dict[tuple[int, ...], transforms.Compose] = {}
        self.train(0)  # a setting that timm can't use is refused before training

    def train(self, epoch: int) -> transforms.Compose:
        """What a worker does to one picture in training: timm's transforms, at the size of this ``epoch``."""
        full = tuple(self.config['input_size'][-2:])
        side = size_at(self.recipe.train_sizes, epoch)
        size = (side, side) if side else full
        if size not in self._stages:
            self._stages[size] = self._training(size, full)
        return self._stages[size]

    def _shared(self, size: tuple[int, ...]) -> dict[str, Any]:
        shared = {key: self.config[key] for key in ('interpolation', 'mean', 'std', 'crop_pct')}
        if self.side:
            shared['crop_pct'] = 1.0
        return {**shared, 'input_size': (self.config['input_size'][0], *size), 'use_prefetcher': self.prefetch}

    def _training(self, size: tuple[int, ...], full: tuple[int, ...]) -> transforms.Compose:
        recipe, side = self.recipe, self.side
        ways = {} if side else {'interpolation': recipe.train_interpolation or self.config['interpolation']}
        stages = _created(
            **self._shared(size) | ways,
            is_training=True,
            separate=True,
            hflip=recipe.hflip,
            scale=recipe.scale,
            ratio=recipe.ratio,
            color_jitter=None if side else recipe.color_jitter,
            auto_augment=recipe.aa,
            re_prob=recipe.reprob,
            re_mode=recipe.remode,
            re_count=recipe.recount,
        )
        if side:  # the crop of in-memory sets, and no resizing but to the model's size
            window = tuple(round(s * whole / f) for s, whole, f in zip(size, side, full, strict=True))
            crop = [
                transforms.RandomCrop(window, padding=recipe.crop_pad),
                transforms.RandomHorizontalFlip(recipe.hflip),
            ]
            resized = [*crop, transforms.Resize(size)] if size != window else crop
            stages = (transforms.Compose(resized), *stages[1:])
        return transforms.Compose(stages)

    def prefetches(self, recipe: Recipe) -> bool:
        """Whether timm's prefetcher copies the pixels to the GPU as bytes, while the GPU computes."""
        # Erasing stays in the workers: on the device its random numbers would depend on when a batch is fetched.
        return self.device.type == 'cuda' and not recipe.reprob

    def options(self) -> dict[str, Any]:
        """The options of a DataLoader."""
        return {
            'collate_fn': _collate,
            'pin_memory': self.device.type == 'cuda',
            'worker_init_fn': _leave_signals_to_the_engine,
        }

    def delivered(self, loader: Iterable[Any]) -> Iterator[Batch]:
        """The batches of a DataLoader on the device, normalised; raises the `UserError` that a worker met."""
        batches = _raised(loader)
        if self.prefetch:
            size, mean, std = (self.config[key] for key in ('input_size', 'mean', 'std'))
            yield from PrefetchLoader(batches, mean, std, size[0], self.device)
            return
        for x, y in batches:
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


def _created(**options: Any) -> Any:
    """timm's transforms. Raises `UserError` for values that it can't use, such as an unknown policy."""
    try:
        return create_transform(**options)
    except Exception as error:  # timm asserts, and looks the parts of a policy up in tables
        what = f'aa {options["auto_augment"]!r}' if options.get('auto_augment') else 'the transforms'
        raise UserError(f'{what}: timm cannot use it ({type(error).__name__}: {one_line(error)})') from None


def _raised(loader: Iterable[Any]) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        if batch is not None:
            yield batch


def _leave_signals_to_the_engine(worker: int) -> None:
    """A worker outlives a signal to all processes of the run, until the engine has written its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    later = getattr(signal, 'alarm', None)  # not on Windows
    signal.signal(signal.SIGTERM, (lambda number, frame: later(GRACE)) if later else signal.SIG_DFL)


def _collate(items: list[Any]) -> Any:
    """A batch, or the first error, or None for images that are passed over."""
    error = next((item for item in items if isinstance(item, UserError)), None)
    return error or (None if items[0] is None else default_collate(items))
