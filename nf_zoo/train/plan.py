"""What a recipe will do, without doing it: `describe` is ``nf-zoo train RECIPE --dry-run``."""

import math
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..saved_memory import saved_bytes
from . import build, report, run_folder
from .data.memory import in_memory, seed_everything, size_at
from .data.timm_sets import check_named
from .engine import Run
from .gradients import Gradients
from .processes import Processes
from .recipe import Recipe

# Training images, validation images, classes, sides of sets whose size is known without reading them.
KNOWN = {
    'cifar10': (50_000, 10_000, 10, 32),
    'cifar100': (50_000, 10_000, 100, 32),
    'fashion_mnist': (60_000, 10_000, 10, 28),
}
SHOWN = 20  # epochs of the schedule that are shown, at most


def describe(recipe: Recipe, change: bool = False) -> Iterator[str]:
    """Lines on data, parameter groups, schedule, updates, estimated time and memory; nothing is written.

    The plan builds what the run would build, so that it refuses what the run would refuse. Without ``data_dir``, what
    only the data could tell is said to be unknown. Time and memory are measured on a few images and multiplied. Raises
    `UserError` as training does.
    """
    recipe.check()
    if recipe.output:
        run_folder.check(recipe.run_dir, recipe.resume)
    with Processes(recipe.device) as processes:
        if recipe.data_dir is None and _needs_folder(recipe):
            yield from _without_data(recipe, processes)
            return
        lines: list[str] = []
        run = Run.prepared(recipe, recipe.run_dir, lines.append, False, processes=processes, change=change)
    data = run.data
    yield f'{recipe.model} on {recipe.dataset}: {data.train_n:,} training and {data.val_n:,} validation images'
    yield from lines
    yield from _groups(run.model, run.optimizer)
    yield _updates(recipe, run.steps, run.epochs, run.images, processes)
    yield from _schedule(recipe, run.model, run.scheduler, run.optimizer, run.epochs, run.steps, run.device)
    side = run.config['input_size'][-1]
    yield from _costs(recipe, run.model, run.optimizer, run.epochs, data.train_n, data.val_n, side, run.device)


def _needs_folder(recipe: Recipe) -> bool:
    """Whether the data set is a known one that lies in a folder; TensorFlow's and Hugging Face's have their own."""
    if in_memory(recipe.dataset):
        return recipe.dataset.removeprefix('torch/') in KNOWN
    return recipe.dataset.partition('/')[0].lower() not in ('hfds', 'hfids', 'tfds')


def _without_data(recipe: Recipe, processes: Processes) -> Iterator[str]:
    """The plan of a recipe whose data can't be read yet."""
    if not in_memory(recipe.dataset) and recipe.dataset != 'folder':
        check_named(recipe)
    known = KNOWN.get(recipe.dataset.removeprefix('torch/'))
    yield (
        f'{recipe.model} on {recipe.dataset}: {known[0]:,} training and {known[1]:,} validation images; '
        f'not read, because there is no --data-dir'
        if known
        else f'{recipe.model} on {recipe.dataset}: the number of images and of classes is unknown; give --data-dir DIR'
    )
    device = build.open_device(recipe.device, processes)
    seed_everything(recipe.seed)
    lines: list[str] = []
    classes = [str(number) for number in range(known[2])] if known else None
    model = build.build_model(recipe, classes, lines.append)
    yield from lines
    config = build.data_config(recipe, model, (None, None))
    side = recipe.side or (known[3] if known else config['input_size'][-1])
    config['input_size'] = (config['input_size'][0], side, side)
    build.build_transforms(recipe, config, device)
    if known:
        build.check_train_sizes(recipe, known[3])
    model.to(device)
    build.try_sizes(recipe, model, config, device)
    images = recipe.batch_size * recipe.grad_accum_steps * processes.size
    train_n, val_n = known[:2] if known else (None, None)
    steps = 1 if train_n is None else train_n // images
    if not steps:
        raise UserError(f'{train_n} training images are fewer than one update takes; lower batch_size')
    optimizer = build.build_optimizer(recipe, model, images)
    scheduler, epochs = build.build_scheduler(recipe, optimizer, steps)
    build.build_forward(recipe, model)
    yield from _groups(model, optimizer)
    yield _updates(recipe, steps if known else None, epochs, images, processes)
    yield from _schedule(recipe, model, scheduler, optimizer, epochs, steps, device)
    yield from _costs(recipe, model, optimizer, epochs, train_n, val_n, side, device)


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[str]:
    yield 'parameter groups'
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group['params'])
        some = ', '.join(names[id(p)] for p in group['params'][:3]) + (', ...' if len(group['params']) > 3 else '')
        decay, scale = group['weight_decay'], group['lr_scale']
        yield f'  {count:>12,} parameters: weight decay {decay:g}, learning rate x {scale:g} ({some})'


def _updates(recipe: Recipe, steps: int | None, epochs: int, images: int, processes: Processes) -> str:
    known = f'{steps:,} an epoch, {steps * epochs:,}' if steps else 'unknown'
    count = f'{known} in {epochs:,} epochs'
    plural = 'es' * (processes.size > 1)
    return (
        f'updates: {count}, each of {images} images '
        f'({recipe.batch_size} x {recipe.grad_accum_steps} in {processes.size} process{plural})'
    )


def _schedule(
    recipe: Recipe,
    model: nn.Module,
    scheduler: Any,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    steps: int,
    device: torch.device,
) -> Iterator[str]:
    """The learning rate at the start of chosen epochs: the first, the last, those where it jumps, and some between."""
    yield 'schedule, at the start of each epoch'
    groups = optimizer.param_groups
    plain = min(range(len(groups)), key=lambda i: abs(groups[i]['lr_scale'] - 1))
    shown = {0, epochs - 1, recipe.warmup_epochs, *recipe.train_sizes, *(epochs * i // 8 for i in range(8))}
    if recipe.sched == 'multistep':
        shown |= {*recipe.decay_milestones[:12]}
    if recipe.sched == 'step':
        shown |= {math.ceil(recipe.decay_epochs * number) for number in range(1, 13)}
    threshold = Gradients(model, recipe, device).threshold
    first = groups[plain]['lr']
    for epoch in sorted(e for e in shown if e < epochs)[:SHOWN]:
        rate = first
        if scheduler and epoch:  # in the first epoch, training has the rate that the scheduler starts with
            scheduler.step_update(epoch * steps) if recipe.sched_on_updates else scheduler.step(epoch)
            rate = groups[plain]['lr']
        parts = [f'lr {rate:.4g}']
        if recipe.train_sizes:
            side = size_at(recipe.train_sizes, epoch)
            parts.append(f'{side} pixels' if side else 'full size')
        if threshold:
            parts.append(f'gradients clipped at {threshold(epoch):.4g}')
        yield f'  epoch {epoch + 1:>4}: {", ".join(parts)}'


def spans(train_sizes: Mapping[int, int], side: int, epochs: int) -> dict[int, int]:
    """Training size in pixels -> number of epochs at that size, of a run of ``epochs``."""
    starts = sorted({0, *(epoch for epoch in train_sizes if epoch < epochs)})
    found: dict[int, int] = {}
    for start, end in zip(starts, [*starts[1:], epochs], strict=True):
        size = size_at(train_sizes, start) or side
        found[size] = found.get(size, 0) + end - start
    return found


def _costs(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    train_n: int | None,
    val_n: int | None,
    side: int,
    device: torch.device,
) -> Iterator[str]:
    sizes = spans(recipe.train_sizes, side, epochs)
    scored = recipe.val_img_size or side
    n = min(recipe.batch_size, 32 if side < 100 else 4)
    seconds = {size: _seconds(model, optimizer, n, size, device) for size in {scored, *sizes}}
    share = [seconds[size][0] * count / epochs for size, count in sizes.items()]
    update, forward = sum(share), seconds[scored][1] * (2 if recipe.model_ema else 1)
    if train_n is None or val_n is None:
        yield f'time: unknown; {1e3 * update:.3g} ms for a training image on {report.hardware(device)}'
    else:
        processes = Processes(recipe.device).size
        total = (epochs * train_n * update + math.ceil(epochs / recipe.val_interval) * val_n * forward) / processes
        yield f'time: about {_duration(total)} on {report.hardware(device)}'
        yield f'  {_duration(total / epochs)} an epoch, measured on {n} images; reading the images is extra'
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(
        t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)
    )
    kept = recipe.batch_size * saved_bytes(model.cpu().train(), max(sizes))
    averages = weights if recipe.model_ema else 0
    parts = {'weights and gradients': 2 * weights, 'optimizer': moments, 'average': averages, 'kept for backward': kept}
    text = ', '.join(f'{key} {value / 2**20:,.0f}' for key, value in parts.items() if value)
    yield f'memory: about {sum(parts.values()) / 2**20:,.0f} MiB in each process ({text}), in float32'


def _seconds(
    model: nn.Module, optimizer: torch.optim.Optimizer, n: int, side: int, device: torch.device
) -> tuple[float, float]:
    """Seconds for an image, of an update and of an evaluation. The second of two counts; the weights stay the same."""
    x = torch.zeros(n, int(getattr(model, 'in_chans', 3)), side, side, device=device)
    x.normal_()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    found = SimpleNamespace(update=0.0, forward=0.0)
    for _ in range(2):
        began = time.perf_counter()
        model.train()(x).logsumexp(1).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        found.update = time.perf_counter() - began
        began = time.perf_counter()
        with torch.inference_mode():
            model.eval()(x)
        _wait(device)
        found.forward = time.perf_counter() - began
    model.load_state_dict(before)
    return found.update / n, found.forward / n


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    minutes = seconds / 60
    if minutes < 120:
        return f'{minutes:.0f} min'
    return f'{minutes / 60:,.1f} h' if minutes < 60 * 72 else f'{minutes / 60 / 24:,.0f} days'
