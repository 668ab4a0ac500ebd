"""What all benches share: interleaved rounds, and rows of ratios to a named peer."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

MIB = 2**20  # bytes

Advance = Callable[[], object]  # called after each measurement


class Quartiles(NamedTuple):
    """The middle half of some measurements."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of one or more numbers, interpolated between neighbours."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method='inclusive'))


@dataclass(frozen=True)
class BenchRow:
    """Measurements beside those of a peer, both in ``unit``, one for each round that counted."""

    what: str
    peer: str
    values: Sequence[float]
    peer_values: Sequence[float]
    unit: str
    network: str = ''

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def peer_value(self) -> float:
        """The peer's median."""
        return statistics.median(self.peer_values)

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: what slows a whole round slows both."""
        return self.ratios.median

    @property
    def ratios(self) -> Quartiles:
        """Quartiles of the ratios of single rounds, or of each value to the peer's median if their numbers differ."""
        peers = list(self.peer_values)
        if len(peers) != len(self.values):
            peers = [self.peer_value] * len(self.values)
        return quartiles([value / peer for value, peer in zip(self.values, peers, strict=True)])

    def __str__(self) -> str:
        spread = ''
        if len(self.values) > 1:
            spread = f' [{self.ratios.low:.3f}, {self.ratios.high:.3f}]'
        return (
            f'{self.what:48s} {self.value:9.2f} {self.unit:3s} '
            f'{self.ratio:6.3f}{spread} x {self.peer} ({self.peer_value:.2f})'
        )

    def as_dict(self) -> dict[str, Any]:
        """The row for a JSON file. ``ratio_quartiles`` holds the first and the third quartile."""
        low, _, high = self.ratios
        return {
            'network': self.network,
            'what': self.what,
            'peer': self.peer,
            'unit': self.unit,
            'n': len(self.values),
            'ratio': self.ratio,
            'ratio_quartiles': [low, high],
            'value': self.value,
            'quartiles': list(quartiles(self.values)[::2]),
            'peer_value': self.peer_value,
            'peer_quartiles': list(quartiles(self.peer_values)[::2]),
            'values': list(self.values),
            'peer_values': list(self.peer_values),
        }


def interleaved(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = False,
    device: torch.device | None = None,
    advance: Advance = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of each function in each round. A round calls all of them in turn; the first round isn't counted.

    Args:
        functions: What to measure, by name.
        rounds: How many rounds count.
        clock: Gives seconds.
        warm: Call each function once before its counted call. The counted call then follows a call of the same network,
            as in a service that runs one network.
        device: A GPU, whose own clock is then read; ``clock`` is for everything else.
        advance: Called after each call.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for count in range(rounds + 1):
        for name, function in functions.items():
            if warm and count:
                function()
            spent = _milliseconds(function, clock, device)
            if count:
                times[name].append(spent)
            advance()
    return times


def _milliseconds(function: Callable[[], object], clock: Callable[[], float], device: torch.device | None) -> float:
    if device is None or device.type != 'cuda':
        start = clock()
        function()
        return 1e3 * (clock() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    function()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)
