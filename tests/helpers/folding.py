"""Networks in general position, and what holds a folded one against them."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def general(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim < 2 or 'gain' in key:
                parameter.normal_()
            elif not parameter.any():
                parameter.normal_(std=0.1)
        for key, buffer in model.named_buffers():
            if key.endswith('running_mean'):
                buffer.normal_()
            if key.endswith('running_var'):
                buffer.uniform_(0.5, 2)
        scalars = [p for key, p in model.named_parameters() if key.endswith(('.scale', 'skip_gain', 'skipinit_gain'))]
        for scalar, value in zip(scalars, (-0.5, 0.0, 0.7, 1.5, 0.3), strict=False):
            scalar.fill_(value)
    return model


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def same(folded: nn.Module, model: nn.Module, x: Tensor) -> None:
    """All that a network gives."""
    logits = model(x)
    assert logits.std() > 0
    close(folded(x), logits)
    close(folded.forward_features(x), model.forward_features(x))
    close(folded.forward_intermediates(x), model.forward_intermediates(x))


def traced(model: nn.Module, x: Tensor) -> Counter[str]:
    """Operators that an inference runs."""
    graph = torch.jit.trace(model, x, check_trace=False).inlined_graph
    return Counter(node.kind()[6:] for node in graph.nodes() if node.kind().startswith('aten::'))


def children(model: nn.Module, kind: Any) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, kind))


def identify(value: Any) -> str | None:
    if isinstance(value, dict):
        return '-'.join(map(str, value.values())) or 'plain'
    return value if isinstance(value, str) else ''
