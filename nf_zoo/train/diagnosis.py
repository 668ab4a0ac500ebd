"""Find the first layer that produced NaN or infinity."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def layer_of_the_output(
    model: nn.Module, x: Tensor, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> str:
    """The first layer, in the order of forward, whose output holds NaN or infinity when the model sees ``x``."""
    if not torch.isfinite(x).all():
        return 'the images themselves hold inf or NaN'
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                odd = [p for p, value in module.named_parameters(recurse=False) if not torch.isfinite(value).all()]
                found.append(f'{name}.{odd[0]} holds inf or NaN' if odd else f'{name or "the model"} overflows')

        return hook

    with ExitStack() as hooks, autocast():
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(look(name)).remove)
        model(x)
    return found[0] if found else 'the loss overflows'


def layer_of_the_gradient(model: nn.Module) -> str:
    """The layer in whose gradient NaN or infinity arose. Backward goes from the last layer to the first."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f'the gradient of {name} overflows'
    return 'the norm of the gradients overflows'
