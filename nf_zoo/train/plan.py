"""What a recipe will do, without doing it: `describe` is ``nf-zoo train RECIPE --dry-run``."""

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn

from ..errors import UserError
from ..saved_memory import saved_bytes
from . import build, report
from .data.memory import in_memory, seed_everything
from .gradients import Gradients
from .processes import Processes
from .recipe import Recipe

# Training images, validation images, classes, shape, of sets that may not be there yet.
KNOWN = {
    'cifar10': (50_000, 10_000, 10, (3, 32, 32)),
    'cifar100': (50_000, 10_000, 100, (3, 32, 32)),
    'fashion_mnist': (60_000, 10_000, 10, (3, 28, 28)),
}
IMAGENET = (1_281_167, 50_000, 1000, (3, 224, 224))


def describe(recipe: Recipe) -> Iterator[str]:
    """Lines on data, parameter groups, schedule, updates, estimated time and memory; nothing is written.

    Where the data set isn't there, its known size is taken (that of ImageNet for folders). Time and memory are measured
    on a few images and multiplied. Raises `UserError` as training does.
    """
    processes = Processes(recipe.device)
    device = build.build_device(recipe, processes)
    train_n, val_n, classes, shape, note = _counts(recipe)
    yield f'{recipe.model} on {recipe.dataset}: {train_n:,} training and {val_n:,} validation images{note}'
    seed_everything(recipe.seed)
    lines: list[str] = []
    model = build.build_model(recipe, classes, lines.append)
    yield from lines
    images = recipe.batch_size * recipe.grad_accum_steps * processes.size
    steps = train_n // images
    if not steps:
        raise UserError(f'{train_n} training images are fewer than one update takes; lower batch_size')
    model.to(device)
    optimizer = build.build_optimizer(recipe, model, images)
    yield 'parameter groups'
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group['params'])
        some = ', '.join(names[id(p)] for p in group['params'][:3]) + (', ...' if len(group['params']) > 3 else '')
        yield (
            f'  {count:>12,} parameters: weight decay {group["weight_decay"]:g}, rate x {group["lr_scale"]:g} ({some})'
        )
    scheduler, epochs = create_scheduler_v2(optimizer, updates_per_epoch=steps, **scheduler_kwargs(recipe))
    yield (
        f'updates: {steps:,} an epoch, {steps * epochs:,} in {epochs} epochs, each of {images} images '
        f'({recipe.batch_size} x {recipe.grad_accum_steps} in {processes.size} process{"es" * (processes.size > 1)})'
    )
    yield 'schedule'
    yield from _schedule(recipe, model, optimizer, scheduler, epochs, steps, device)
    side = recipe.side or shape[-1]
    if not recipe.side and not in_memory(recipe.dataset):
        side = build.data_config(recipe, model, (None, None))['input_size'][-1]
    yield from _costs(recipe, model, optimizer, epochs, train_n, val_n, side, device)


def _counts(recipe: Recipe) -> tuple[int, int, list[str], tuple[int, ...], str]:
    try:
        train, val = build.read_sets(recipe)
    except UserError as error:
        short = recipe.dataset.removeprefix('torch/')
        found = IMAGENET if short in ('folder', 'imagenet') else KNOWN.get(short)
        if found is None:
            raise
        train_n, val_n, classes, shape = found
        return train_n, val_n, [str(i) for i in range(classes)], shape, f' (assumed: {error})'
    if hasattr(val, 'images'):
        return len(train.labels), len(val.labels), val.classes, tuple(val.images.shape[1:]), ''
    return len(train), len(val), val.classes, (3, 224, 224), ''


def _schedule(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    epochs: int,
    steps: int,
    device: torch.device,
) -> Iterator[str]:
    """The rate at the start of chosen epochs: the first ones, the last, those around a jump, and some between."""
    groups = optimizer.param_groups
    plain = min(range(len(groups)), key=lambda i: abs(groups[i]['lr_scale'] - 1))
    rates = []
    for epoch in range(epochs):
        if scheduler and epoch:  # as in training: the first epoch has the rate that the scheduler starts with
            scheduler.step_update(epoch * steps) if recipe.sched_on_updates else scheduler.step(epoch)
        rates.append(groups[plain]['lr'])
    jumps = {e for e in range(1, epochs) if min(rates[e], rates[e - 1]) < 0.6 * max(rates[e], rates[e - 1])}
    shown = {0, epochs - 1, recipe.warmup_epochs, *recipe.train_sizes, *(epochs * i // 8 for i in range(8))}
    shown |= set(sorted(jumps)[:12])
    threshold = Gradients(model, recipe, device).threshold
    for epoch in sorted(e for e in shown if e < epochs):
        parts = [f'lr {rates[epoch]:.4g}']
        if recipe.train_sizes:
            parts.append(f'{recipe.train_sizes[max(e for e in recipe.train_sizes if e <= epoch)]} pixels')
        if threshold:
            parts.append(f'clipped at {threshold(epoch):.4g}')
        yield f'  epoch {epoch + 1:>4}: {", ".join(parts)}'


def _costs(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    train_n: int,
    val_n: int,
    side: int,
    device: torch.device,
) -> Iterator[str]:
    sizes = {0: side, **recipe.train_sizes}
    n = min(recipe.batch_size, 32 if side < 100 else 4)
    seconds = {size: _seconds(model, optimizer, n, size, device) for size in {side, *sizes.values()}}
    starts = sorted(sizes)
    spans = zip(starts, [*starts[1:], epochs], strict=True)
    training = sum((min(end, epochs) - start) * train_n * seconds[sizes[start]][0] for start, end in spans)
    scoring = math.ceil(epochs / recipe.val_interval) * val_n * seconds[side][1] * (2 if recipe.model_ema else 1)
    processes = Processes(recipe.device).size
    yield f'time: about {_duration((training + scoring) / processes)} on {report.hardware(device)}'
    yield f'  {_duration((training + scoring) / processes / epochs)} an epoch, measured on {n} images; reading is extra'
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(
        t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)
    )
    kept = recipe.batch_size * saved_bytes(model.cpu().train(), max(sizes.values()))
    averages = weights if recipe.model_ema else 0
    parts = {'weights and gradients': 2 * weights, 'optimizer': moments, 'average': averages, 'kept for backward': kept}
    text = ', '.join(f'{key} {value / 2**20:,.0f}' for key, value in parts.items() if value)
    yield f'memory: about {sum(parts.values()) / 2**20:,.0f} MiB in each process ({text}), in float32'


def _seconds(
    model: nn.Module, optimizer: torch.optim.Optimizer, n: int, side: int, device: torch.device
) -> tuple[float, float]:
    """Seconds an image: of an update, of an evaluation. The second of two counts, the weights stay what they are."""
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
    return f'{minutes / 60:.1f} h' if minutes < 60 * 72 else f'{minutes / 60 / 24:.0f} days'
