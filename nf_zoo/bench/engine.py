"""A step of the training engine, against a bare loop over the same model and batches."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..train import allocator
from ..train.data.memory import MemorySet
from ..train.engine import Run
from ..train.progress import StopSignal
from ..train.recipe import Recipe
from .measure import Advance, BenchRow, interleaved

RECIPE: dict[str, Any] = dict(model='eunnet20_cifar', smoothing=0.0, lr=0.01, sched_on_updates=True)


def bench_engine(rounds: int = 7, steps: int = 20, advance: Advance = lambda: None, **options: Any) -> list[BenchRow]:
    """One epoch of the training engine and of a bare loop over the same model and batches, in turn.

    Args:
        rounds: Epochs of each that count.
        steps: Updates of an epoch.
        advance: Called after each measurement.
        **options: Keys of a recipe, such as model and batch_size.
    """
    recipe = Recipe().with_options({**RECIPE, 'log_interval': steps, **options})
    n = steps * recipe.batch_size
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    sets = (MemorySet(images, torch.randint(0, 10, (n,)), [str(i) for i in range(10)]),) * 2
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe.with_options({'output': folder}), Path(folder), lambda line: None, False, sets=sets)
        bare = run.model  # the same model: the address of the weights changes the time by some percent
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        epoch = iter(range(10**6))

        def engine() -> None:
            run.updates = 0
            run.model.train()
            with StopSignal() as stop:
                run.train_epoch(0, stop)

        def loop() -> None:
            for x, y in run.data.train_batches(next(epoch), 0):
                loss = F.cross_entropy(bare(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        with allocator.keep_freed():  # for both, as in a run
            times = interleaved({'engine': engine, 'loop': loop}, rounds, device=run.device, advance=advance)
    engines, loops = ([t / steps for t in times[name]] for name in ('engine', 'loop'))
    return [BenchRow(f'{recipe.model}: training step', 'bare loop', engines, loops, 'ms', recipe.model)]
