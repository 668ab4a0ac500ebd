"""Training on data sets that are read from their start, as a stream, by timm's readers."""

from collections.abc import Iterator
from itertools import islice, repeat
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...errors import UserError, one_line
from ..recipe import Recipe
from .memory import Batch, fold_seed, seed_everything
from .pipeline import Pipeline
from .timm_sets import StreamSet


class StreamData:
    """`Data` over two `StreamSet`.

    The seed, the epoch, the number of processes and the number of ``workers`` decide an epoch's batches, if the set's
    own reader is deterministic. Each process of a run reads a stream of its own. A start within an epoch reads the
    images before it and drops them.
    """

    def __init__(
        self, train: StreamSet, val: StreamSet, recipe: Recipe, config: dict[str, Any], device: torch.device
    ) -> None:
        self.pipeline = Pipeline(recipe, config, device)
        self.train, self.val, self.classes = train, val, val.classes
        self.train_n, self.val_n = len(train), len(val)
        self.batch_size = recipe.batch_size
        self.val_batch_size = recipe.validation_batch_size or recipe.batch_size
        train.reader.batch_size = recipe.batch_size  # it fills up each worker's share to whole batches
        self.seed = recipe.seed
        # Always processes of their own: timm's readers set themselves up anew in each, so no epoch knows of another.
        self.workers = min(max(1, self.pipeline.workers), train.most_workers)

    def train_batches(self, epoch: int, start: int, step: int = 1) -> Iterator[Batch]:
        """Batches of an epoch, as `Data.train_batches`."""
        processes = self.train.reader.dist_num_replicas
        full, skipped = self.train_n // (self.batch_size * processes), start // processes
        self.train.pictures.set_epoch(epoch)
        found = self._load(self.train, self.pipeline.train(epoch), self.batch_size, self.workers, epoch, skipped)
        count = skipped
        for batch in islice(found, full - skipped):
            count += 1
            yield batch
        if count < full:
            raise UserError(f'{self.train.name}: {self.train.split} ended after {count} of {full} batches')

    def val_batches(self, start: int = 0, step: int = 1) -> Iterator[Batch]:
        """Batches of the validation images, as `Data.val_batches`."""
        workers = min(self.workers, self.val.most_workers)
        return self._load(self.val, self.pipeline.val, self.val_batch_size, workers)

    @property
    def shares(self) -> list[int]:
        """The number of processes, and of workers in each. Other numbers divide the set otherwise, in another order."""
        return [self.train.reader.dist_num_replicas, self.workers]

    def resumed(self, shares: list[int], images: int) -> Iterator[str]:
        """Lines for the log of a run that goes on after ``images`` images of an epoch, and had these ``shares``."""
        name = self.train.name
        if shares != self.shares:
            then, now = (f'{processes} x {workers}' for processes, workers in (shares, self.shares))
            yield f'{name}: {now} workers instead of {then}, so its images come in another order from here on'
        if images:
            yield f'{name} is read from its start: the first {images:,} images of this epoch are read again and dropped'
        if name.lower().startswith('tfds/'):
            yield f'{name}: TensorFlow may give the images in another order than an uninterrupted run'

    def _load(
        self, images: StreamSet, transform: Any, batch_size: int, workers: int, epoch: int = 0, skipped: int = 0
    ) -> Iterator[Batch]:
        images.pictures.set_loader_cfg(num_workers=workers)
        rank = images.reader.dist_rank
        loader = DataLoader(
            _Pictures(images, transform, (self.seed, epoch, 2), rank, batch_size, skipped),
            batch_size=batch_size,
            num_workers=workers,
            drop_last=images.reader.is_training,
            generator=torch.Generator().manual_seed(fold_seed(self.seed, epoch, 4, rank)),  # seeds the workers
            **self.pipeline.options(),
        )
        return self.pipeline.delivered(loader)


class _Pictures(IterableDataset):
    """The pictures of one worker's share, transformed; None for each picture of the ``skipped`` batches."""

    def __init__(
        self, images: StreamSet, transform: Any, seed: tuple[int, ...], rank: int, batch_size: int, skipped: int
    ) -> None:
        self.images, self.transform, self.seed, self.rank = images, transform, seed, rank
        self.batch_size, self.skipped = batch_size, skipped

    def __iter__(self) -> Iterator[tuple[Any, int] | UserError | None]:
        found = get_worker_info()
        assert found
        reader = self.images.reader
        share = self.rank * found.num_workers + found.id
        shares = reader.dist_num_replicas * found.num_workers
        # torch takes the batches of the workers in turn
        before = len(range(found.id, self.skipped, found.num_workers)) * self.batch_size
        try:
            if not reader.is_training and reader.dist_num_replicas > 1:
                # Once it has its share: timm makes the shares equal, by images that count twice or not at all.
                reader._lazy_init()
                reader.dist_num_replicas = 1
            for number, (picture, label) in enumerate(self.images.pictures):
                if number < before:
                    yield None
                    continue
                if not 0 <= label < len(self.images.classes):
                    raise UserError(f'there is a label {label}, but there are {len(self.images.classes)} classes')
                seed_everything(*self.seed, number * shares + share)
                yield self.transform(picture), int(label)
        except Exception as error:  # readers raise what they like, and torch would wrap it in a traceback
            said = one_line(error)
            yield from repeat(UserError(f'{self.images.name}: {said}'), self.batch_size)  # whole, or it is dropped
