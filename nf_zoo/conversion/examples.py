"""Inputs for one run of a network, and the outputs that it gives for them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from .tracing import tensors

EXAMPLE = 'give an input that it takes (example=)'


def example_for(model: nn.Module) -> Tensor:
    """One random image, or vector, of the size in the model's cfg, or of one that its first layer takes.

    Raises:
        UserError: neither says what the model takes.
    """
    cfg: Any = getattr(model, 'pretrained_cfg', None) or getattr(model, 'default_cfg', None) or {}
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    generator = torch.Generator().manual_seed(0)
    size = cfg.get('input_size')
    if size:
        stem = cfg.get('first_conv')
        try:  # a model made with other in_chans has the cfg of three
            conv = model.get_submodule(stem) if isinstance(stem, str) else None
        except AttributeError:
            conv = None
        channels = conv.in_channels if isinstance(conv, nn.Conv2d) else size[0]
        return torch.randn(1, channels, *size[1:], generator=generator, dtype=torch.float64)
    if isinstance(first, nn.Conv2d):
        return torch.randn(1, first.in_channels, 224, 224, generator=generator, dtype=torch.float64)
    if isinstance(first, nn.Linear):
        return torch.randn(1, first.in_features, generator=generator, dtype=torch.float64)
    raise UserError(f'nothing says what {type(model).__name__} takes; {EXAMPLE}')


def moved(example: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """``example`` with its tensors on ``device``, those of real numbers in ``dtype``."""
    if isinstance(example, Tensor):
        return example.to(device, dtype if example.is_floating_point() else None)
    if isinstance(example, Mapping):
        return {key: moved(value, device, dtype) for key, value in example.items()}
    if isinstance(example, list | tuple):
        return type(example)(moved(value, device, dtype) for value in example)
    return example


def run(network: nn.Module, example: Any, name: str) -> Any:
    """The network's result for ``example``, with the same random numbers each time.

    Raises:
        UserError: it doesn't run on the example.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            if isinstance(example, Mapping):
                return network(**example)
            return network(*example) if isinstance(example, tuple) else network(example)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error)[:200]
        raise UserError(f'{name} does not run on the example: {reason}; {EXAMPLE}') from error


def outputs(result: Any, name: str) -> list[Tensor]:
    """The tensors of real numbers in a network's result.

    Raises:
        UserError: there are none, or they have NaN or infinity.
    """
    found = [t for t in tensors(result) if t.is_floating_point() or t.is_complex()]
    if not found:
        raise UserError(f'{name} returns no tensors ({type(result).__name__}) that could be compared')
    if not all(t.isfinite().all() for t in found):
        raise UserError(f'{name} gives NaN or infinity on the example; {EXAMPLE}')
    return found


def difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference of any output, as a share of that output's largest absolute value."""
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        if a.numel():
            largest = a.abs().max().item()
            worst = max(worst, (a - b).abs().max().item() / (largest or 1.0))
    return worst
