"""What all benches share: interleaved rounds, rows of ratios to a named peer, and the floor as a peer."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers.input_norm import InputNormConv2d, Standardize
from ..layers.std_conv import plain_conv


@dataclass(frozen=True)
class BenchRow:
    """One measurement beside that of its peer. ``ratio`` is ``value / peer_value``; both values are in ``unit``."""

    what: str
    peer: str
    value: float
    peer_value: float
    unit: str

    @property
    def ratio(self) -> float:
        """The value as a multiple of the peer's."""
        return self.value / self.peer_value

    def __str__(self) -> str:
        return (
            f'{self.what:42s} {self.value:9.2f} {self.unit:3s} {self.ratio:6.3f} x {self.peer} ({self.peer_value:.2f})'
        )


def interleaved(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = False,
) -> dict[str, float]:
    """Median milliseconds of each function. A round calls all of them in turn; the first round isn't counted.

    Args:
        functions: What to measure, by name.
        rounds: How many rounds count.
        clock: Gives seconds.
        warm: Call each function once before its counted call. The counted call then follows a call of the same network,
            as in a service that runs one network.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for count in range(rounds + 1):
        for name, function in functions.items():
            if warm and count:
                function()
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if count:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def floor_of(model: nn.Module) -> nn.Module:
    """A copy of a network, folded or not, that normalises nothing and has plain convolutions alone.

    It shares the weights with ``model``, because the address of the weights changes the time by some percent.
    """
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, InputNormConv2d):
                setattr(module, name, _Plain(child))
            elif isinstance(child, Standardize):
                setattr(module, name, nn.Identity())
    return model


class _Plain(nn.Module):
    def __init__(self, conv: InputNormConv2d):
        super().__init__()
        self.conv = plain_conv(conv, conv.weight, conv.bias)
        self.conv.weight, self.conv.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        return self.conv(x)
