"""What the rows of `signal_propagation` say, as one sentence."""

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from torch import nn

from ..block_scalars import DEAD
from .signal import BlockSignal

RATE = 1.25  # a factor a block from which on growth of the variance is an explosion
BACK_RATE = 1.5  # of the gradients: with batch normalization they grow x1.4 a block in a ResNet-50
TOTAL = 5.0  # and in all
LEVEL = 1.5  # largest over smallest value of what is called level
FEW = 0.05  # share of elements that are not 0


def expected_variance(model: nn.Module, rows: Sequence[BlockSignal]) -> list[float] | None:
    """What theory says of each row's variance, the stem's included; None where the paper gives no line.

    NF-ResNets and NF-RegNets: 1 + n alpha^2 after n additions in a stage (Brock, De, Smith 2021, section 4).
    """
    modules: dict[str, Any] = dict(model.named_modules())
    alphas: list[float] = []
    for row in rows[1:]:
        alpha = getattr(modules[row.block], 'alpha', None)
        if not isinstance(alpha, float | int) or not hasattr(modules[row.block], 'beta'):
            return None
        alphas.append(alpha)
    if not getattr(model, 'preact', False):  # EUNNet's and RescaleNet's alpha is a factor of the shortcut
        return None
    return [1.0, *(1 + n * alpha**2 for n, alpha in zip(additions(rows), alphas, strict=True))]


def additions(rows: Sequence[BlockSignal]) -> list[int]:
    """For each block the additions since the last transition, its own included."""
    return [n for _, stage in groupby(rows[1:], lambda row: row.stage) for n, _ in enumerate(stage, 1)]


def verdict(rows: Sequence[BlockSignal], expected: Sequence[float] | None = None, trained: bool = False) -> str:
    """One sentence on the rows of a network: its variance, its branches, its gradients.

    ``trained``: whether the weights are; then growth is what the network has learned, and no explosion.
    """
    blocks = list(rows[1:])
    broken = next((row.block for row in blocks if not math.isfinite(row.variance)), None)
    if broken:
        return f'the signal is no longer finite from {broken} on'
    parts = [_forward(blocks, expected[1:] if expected else None), _means(blocks), _branches(blocks)]
    if all(math.isfinite(row.gradient_variance) for row in blocks):
        parts.append(_backward(blocks))
    text = '; '.join(part for part in parts if part)
    return text.replace('explodes: ', '').replace('gradients explode: ', 'gradients grow ') if trained else text


def _stages(blocks: Sequence[BlockSignal], field: str) -> list[list[float]]:
    return [[getattr(row, field) for row in stage] for _, stage in groupby(blocks, lambda row: row.stage)]


def _rate(values: Sequence[float]) -> float:
    """The factor from one value to the next, as a geometric mean; 1 for a single value."""
    if len(values) < 2:
        return 1.0
    return float((values[-1] / values[0]) ** (1 / (len(values) - 1))) if min(values[0], values[-1]) > 0 else math.nan


def _within(stages: Sequence[Sequence[float]]) -> float:
    """The geometric mean of the factors between neighbours of one stage."""
    logs = [math.log(b / a) for stage in stages for a, b in pairwise(stage) if a > 0 and b > 0]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def _spread(values: Sequence[float]) -> float:
    return max(values) / min(values) if min(values) > 0 else math.inf


def number(value: float) -> str:
    """Three digits, without an exponent where that reads well."""
    if value == 0 or not math.isfinite(value):
        return f'{value:.3g}'
    if 1e-3 <= abs(value) < 1e5:
        return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return f'{value:.1e}'


def _forward(blocks: Sequence[BlockSignal], expected: Sequence[float] | None) -> str:
    values, stages = [row.variance for row in blocks], _stages(blocks, 'variance')
    if min(values) <= 0:
        dead = next(row.block for row in blocks if row.variance <= 0)
        return f'the output of {dead} has variance 0'
    first, last, rate = values[0], values[-1], _rate(values)
    ends = f'{number(first)} -> {number(last)}'
    if rate >= RATE and last / first >= TOTAL:
        return f'explodes: the variance grows x{rate:.2f} a block, {ends}'
    if _spread(values) <= LEVEL and not _theory(values, expected):
        return f'the variance stays level ({number(min(values))} to {number(max(values))})'
    within = _within(stages)
    if last / first <= 1 / TOTAL:
        if rate <= 1 / RATE and within <= 1 / RATE:
            return f'vanishes: the variance falls x{rate:.2f} a block, {ends}'
        return f'the variance falls {ends}{_at_transitions(stages)}'
    grown = [stage for stage in stages if len(stage) > 1]
    if grown and all(stage[-1] > 1.02 * stage[0] for stage in grown):
        longest = max(grown, key=len)
        text = f'the variance grows {number(longest[0])} -> {number(longest[-1])} within a stage of {len(longest)}'
        firsts = [stage[0] for stage in stages]
        if all(b[0] < a[-1] for a, b in pairwise(stages)) and _spread(firsts) <= 2 and len(stages) > 1:
            text += ' blocks and is reset at each transition'
        else:
            text += f' blocks, {ends} in all'
        return text + _theory(values, expected)
    if grown and all(_spread(stage) <= 1.05 for stage in grown):
        return f'the variance is constant within each stage, {ends} over the transitions'
    return f'the variance varies between {number(min(values))} and {number(max(values))}{_theory(values, expected)}'


def _theory(values: Sequence[float], expected: Sequence[float] | None) -> str:
    if not expected:
        return ''
    off = 100 * max(abs(value / line - 1) for value, line in zip(values, expected, strict=True))
    return f', as 1 + n alpha^2 within {off:.0f} %' if off <= 30 else f' (1 + n alpha^2 is off by up to {off:.0f} %)'


def _at_transitions(stages: Sequence[Sequence[float]]) -> str:
    steps = [b[0] / a[-1] for a, b in pairwise(stages)]
    if not steps or not 0.9 <= _within(stages) <= 1.1:
        return ''
    return f', at the transitions (x{math.exp(float(np.mean(np.log(steps)))):.2g} each)'


def _means(blocks: Sequence[BlockSignal]) -> str:
    """Behind a ReLU a mean is natural; in front of one it is the mean shift of Brock et al., section 4.1."""
    if min(row.nonzero for row in blocks) > 0.999 and blocks[-1].squared_mean > blocks[-1].variance:
        return 'the squared means exceed the variance (a mean shift)'
    few = [row for row in blocks if row.nonzero < FEW]
    if few:
        return f'only {100 * few[0].nonzero:.1f} % of what {few[0].block} gives is not 0'
    return ''


def _branches(blocks: Sequence[BlockSignal]) -> str:
    dead = [row.block for row in blocks if row.share < DEAD]
    if not dead:
        return ''
    if len(dead) == len(blocks):
        return 'every branch is 0'
    names = ', '.join(dead[:3]) + (', ...' if len(dead) > 3 else '')
    return f'{len(dead)} block{"s contribute" if len(dead) > 1 else " contributes"} nothing ({names})'


def _backward(blocks: Sequence[BlockSignal]) -> str:
    values, stages = [row.gradient_variance for row in blocks], _stages(blocks, 'gradient_variance')
    if max(values) == 0:
        return 'all gradients are 0'
    if min(values) == 0:
        return f'the gradient of {blocks[values.index(0)].block} is 0'
    if _spread(values) <= LEVEL:
        return f'gradients level within {100 * _spread(values) - 100:.0f} %'
    total, rate = values[0] / values[-1], 1 / _rate(values)
    towards = f'x{number(total)} from the last block to the first'
    if total >= TOTAL and rate >= BACK_RATE:
        return f'gradients explode: x{rate:.2f} a block, {towards}'
    if total <= 1 / TOTAL and rate <= 1 / RATE and _within(stages) >= RATE:
        return f'gradients vanish: x{rate:.2f} a block, {towards}'
    spread = max(_spread(stage) for stage in stages)
    if spread <= LEVEL:
        level = f'gradients level within {100 * spread - 100:.0f} % in each stage'
        return f'{level}, {towards}{_back_at_transitions(stages)}'
    return f'gradients {"grow" if total > 1 else "fall"} {towards}'


def _back_at_transitions(stages: Sequence[Sequence[float]]) -> str:
    steps = [a[-1] / b[0] for a, b in pairwise(stages)]
    return f' (x{math.exp(float(np.mean(np.log(steps)))):.2g} at each transition)' if steps else ''
