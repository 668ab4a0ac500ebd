"""An epoch of a recipe in the training engine, against the same recipe in timm's own loader and loop."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import AverageMeter

from ..train import allocator, build
from ..train.data.folder import MemoryPictures
from ..train.data.memory import MemorySet
from ..train.engine import Run
from ..train.progress import StopSignal
from ..train.recipe import Recipe
from .measure import Advance, BenchRow, interleaved

# The settings of configs/cifar10/eunnet20_cifar.yaml that an epoch's time depends on.
RECIPE: dict[str, Any] = dict(
    model='eunnet20_cifar', batch_size=128, epochs=30, lr=0.1, weight_decay=5e-4, smoothing=0.0,
    train_sizes={0: 24, 16: 32}, sched_on_updates=True, warmup_epochs=3, amp=True,
)  # fmt: skip
IMAGES = 50_000


def bench_epoch(
    rounds: int = 3, steps: int = 20, workers: int = 4, advance: Advance = lambda: None, **options: Any
) -> list[BenchRow]:
    """Seconds of an epoch of CIFAR-10's 50,000 images: at full size, and the mean of the recipe's epochs.

    Most of the recipe's epochs have smaller crops. timm's side has timm's defaults: single pictures, random resized
    crops and colour jitter, in worker processes that live as long as the bench.

    Args:
        rounds: Measurements that count.
        steps: Updates of a measurement.
        workers: timm's worker processes.
        advance: Called after each measurement.
        **options: Keys of a recipe in place of `RECIPE`'s.
    """
    recipe = Recipe().with_options({**RECIPE, 'log_interval': steps, **options})
    n = steps * recipe.batch_size
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    sets = (MemorySet(images, torch.randint(0, 10, (n,)), [str(i) for i in range(10)]),) * 2
    starts = sorted({0: 32, **recipe.train_sizes}.items())
    spans = [
        (end - start) / recipe.epochs
        for (start, _), end in zip(starts, [*(s for s, _ in starts[1:]), recipe.epochs], strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        calls = {'timm': _timm(recipe, sets[0], steps, workers)}
        for side in {32, *(side for _, side in starts)}:
            run = Run(
                recipe.with_options({'train_sizes': {0: side}, 'output': folder}),
                Path(folder),
                lambda line: None,
                False,
                sets,
            )
            calls[str(side)] = _engine(run)
        epochs = IMAGES // recipe.batch_size / steps / 1e3  # of a measurement's milliseconds, in seconds
        found = interleaved(calls, rounds, device=run.device, advance=advance)
        times = {name: [epochs * t for t in values] for name, values in found.items()}
    shares = zip(spans, starts, strict=True)
    weighted = [[part * t for t in times[str(side)]] for part, (_, side) in shares]
    mean = [sum(parts) for parts in zip(*weighted, strict=True)]
    peer = "timm's loader and loop"
    return [
        BenchRow(f'{recipe.model}: epoch at full size', peer, times['32'], times['timm'], 's', recipe.model),
        BenchRow(f'{recipe.model}: mean epoch of the recipe', peer, mean, times['timm'], 's', recipe.model),
    ]


def _engine(run: Run) -> Callable[[], object]:
    def epoch() -> None:
        run.updates = 0
        run.model.train()
        with StopSignal() as stop, allocator.keep_freed():
            run.train_epoch(0, stop)

    return epoch


def _timm(recipe: Recipe, images: MemorySet, steps: int, workers: int) -> Callable[[], object]:
    """An epoch of timm's train.py over ``images``."""
    device = build.open_device(recipe.device, build.Processes())
    model = timm.create_model(recipe.model, num_classes=10, **recipe.model_kwargs).to(device)
    config = timm.data.resolve_data_config(model=model)
    optimizer = create_optimizer_v2(model, **{**optimizer_kwargs(recipe), 'lr': recipe.lr})
    scheduler, _ = create_scheduler_v2(optimizer, updates_per_epoch=steps, **scheduler_kwargs(recipe))
    loss_fn = build.build_loss(recipe)
    autocast = build.build_autocast(recipe, device, lambda line: None)
    loader = create_loader(
        _Transformed(images),
        input_size=config['input_size'],
        batch_size=recipe.batch_size,
        is_training=True,
        interpolation='random',
        mean=config['mean'],
        std=config['std'],
        num_workers=min(workers, os.cpu_count() or 1),
        persistent_workers=workers > 0,
        device=device,
    )

    def epoch() -> None:
        model.train()
        losses = AverageMeter()
        for update, (x, y) in enumerate(loader):
            with autocast():
                loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step_update(update + 1)
            if update + 1 == steps:
                losses.update(loss.item(), x.size(0))

    return epoch


class _Transformed(MemoryPictures):
    """Pictures with the attribute that timm's loader assigns its transform to."""

    transform: Callable[[Any], Any] | None = None

    def __getitem__(self, number: int) -> tuple[Any, int]:
        picture, label = super().__getitem__(number)
        return self.transform(picture) if self.transform else picture, label
