"""Parameter groups: which parameters are decayed, and which learn at another rate."""

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups, in the order of the model's parameters.

    ``model.no_weight_decay()`` (names or patterns, timm's convention) names exactly the parameters without decay: a
    parameter isn't spared for being one-dimensional. ``model.lr_scales()``, where it exists, maps regular expressions
    (searched for in the names, the first that matches counts) to factors on the learning rate, which timm's schedulers
    read from a group's ``lr_scale``.
    """
    spared = set(_ask(model, 'no_weight_decay', set))
    scales = {re.compile(k): float(v) for k, v in _ask(model, 'lr_scales', dict).items()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if name in spared or any(fnmatchcase(name, p) for p in spared) else weight_decay
        scale = next((factor for pattern, factor in scales.items() if pattern.search(name)), 1.0)
        group = groups.setdefault((decay, scale), {'params': [], 'weight_decay': decay, 'lr_scale': scale})
        group['params'].append(parameter)
    return list(groups.values())


def _ask(model: nn.Module, method: str, default: Callable[[], Any]) -> Any:
    return getattr(model, method, default)()
