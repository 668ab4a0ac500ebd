"""Parameter groups: which parameters are decayed, and which learn at another rate."""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from torch import nn

from ..errors import UserError


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """The optimizer's groups, in the order of the model's parameters.

    ``model.no_weight_decay()`` (names or patterns, timm's convention) names exactly the parameters without decay: a
    parameter isn't spared for being one-dimensional. ``lr_scales`` maps regular expressions (searched for in the names,
    the first that matches counts) to factors on the learning rate, which timm's schedulers read from a group's
    ``lr_scale``. Those of ``model.lr_scales()``, where it exists, come after them.

    Raises `UserError` for an expression of ``lr_scales`` that is none, or that no parameter's name matches.
    """
    spared = set(_ask(model, 'no_weight_decay', set))
    names = [name for name, _ in model.named_parameters()]
    scales = {_pattern(k, names): v for k, v in lr_scales.items()}
    scales |= {re.compile(k): float(v) for k, v in _ask(model, 'lr_scales', dict).items() if k not in lr_scales}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if name in spared or any(fnmatchcase(name, p) for p in spared) else weight_decay
        scale = next((factor for pattern, factor in scales.items() if pattern.search(name)), 1.0)
        group = groups.setdefault((decay, scale), {'params': [], 'weight_decay': decay, 'lr_scale': scale})
        group['params'].append(parameter)
    return list(groups.values())


def _pattern(text: str, names: Sequence[str]) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f'lr_scales: {text!r} is no regular expression: {error}') from None
    if not any(map(pattern.search, names)):
        raise UserError(f'lr_scales: no parameter has a name that {text!r} matches; the names end in {_endings(names)}')
    return pattern


def _endings(names: Sequence[str]) -> str:
    return ', '.join(sorted({name.rpartition('.')[2] for name in names}))


def _ask(model: nn.Module, method: str, default: Callable[[], Any]) -> Any:
    return getattr(model, method, default)()
