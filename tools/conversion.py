"""Converts the smallest network of every timm module and writes the table of docs/conversion.md: ``make conversion``.

Batch normalizations get random statistics first, so that each of them does something. The networks run on a random
image: a small one where they take it. It takes about fifteen minutes on two cores, most of them to find the smallest.
"""

import re
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import list_modules
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nf_zoo.conversion import convert

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'conversion.md'
MARKED = re.compile(r'(<!-- make conversion -->\n).*(<!-- end -->)', re.DOTALL)
LIMIT = 60  # seconds; a network that takes longer is left out by name


def modules() -> list[str]:
    """timm's own modules; nf_zoo registers modules too."""
    return [module for module in list_modules() if find_spec(f'timm.models.{module}')]


class Row(NamedTuple):
    """One network of the sweep. ``exact`` and ``rounded`` are None where it took longer than the limit."""

    module: str
    name: str
    parameters: int
    weight_norm: int
    affine: int
    exact: float | None
    rounded: float | None


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """Give every batch normalization of ``model`` random statistics, weights of both signs, and biases.

    The weights are below 1 because features that grow from block to block would saturate attention: such a network
    multiplies rounding errors, with batch normalization and without.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                module.weight.uniform_(0.25, 0.75, generator=generator)
                module.weight[::5].neg_()
                module.bias.normal_(std=0.2, generator=generator)
    return model


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def smallest(module: str) -> str | None:
    """The network with the fewest parameters of those in a timm module that have batch normalization."""
    sizes = {}
    for name in timm.list_models(module=module):
        model = timm.create_model(name, device='meta')
        if has_batch_norm(model):
            sizes[name] = sum(p.numel() for p in model.parameters())
    return min(sizes, key=sizes.__getitem__, default=None)


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def image_for(model: nn.Module) -> Tensor:
    """A random image: a small one if the network takes it, for speed, or one of the size in its cfg."""
    generator = torch.Generator().manual_seed(0)
    channels, *size = model.pretrained_cfg['input_size']
    for small in ([96, 96], [128, 128], size):
        image = torch.randn(1, channels, *small, generator=generator)
        with torch.no_grad(), suppress(AssertionError, IndexError, RuntimeError, ValueError):
            model(image)
            break
    return image


def measure(module: str, name: str, seconds: int = LIMIT) -> tuple[Row, nn.Module | None]:
    """Convert one network; the row of the table, and the result."""
    model = timm.create_model(name)
    randomize(model)
    image = image_for(model)
    size = sum(p.numel() for p in model.parameters())
    try:
        with limit(seconds):
            converted: Any = convert(model, example=image)
    except TimeoutError:
        return Row(module, name, size, 0, 0, None, None), None
    return Row(module, name, size, *converted.conversion), converted


def table(rows: list[Row]) -> str:
    """The networks with their differences, and in words how many there are."""
    done = [row for row in rows if row.exact is not None and row.rounded is not None]
    left = [row.name for row in rows if row.exact is None]
    worst = max(row.exact for row in done if row.exact is not None)
    rounded = max(row.rounded for row in done if row.rounded is not None)
    lines = [
        f'{len(done)} networks; the largest difference is {worst:.1e} in float64 and {rounded:.1e} in float32.'
        + (f' Left out, because they take more than {LIMIT} s: {", ".join(left)}.' if left else ''),
        '',
        '| timm module | network | parameters | weight norm | affine | float64 | float32 |',
        '|---|---|---|---|---|---|---|',
        *(
            f'| {row.module} | `{row.name}` | {row.parameters:,} | {row.weight_norm} | {row.affine} '
            f'| {row.exact:.1e} | {row.rounded:.1e} |'
            for row in done
        ),
    ]
    return '\n'.join(lines)


def main() -> None:
    warnings.simplefilter('ignore')
    rows = []
    for module in sorted(modules()):
        name = smallest(module)
        if name is not None:
            start = time.monotonic()
            rows.append(measure(module, name)[0])
            print(f'{time.monotonic() - start:5.1f} s  {rows[-1]}', flush=True)
    page = PAGE.read_text()
    PAGE.write_text(MARKED.sub(lambda m: f'{m[1]}\n{table(rows)}\n\n{m[2]}', page))


if __name__ == '__main__':
    main()
