"""Looking at networks: the signal that passes through them, and what is known of each name."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .signal import BlockSignal, signal_propagation

_HOME = {
    'BlockSignal': 'signal',
    'signal_propagation': 'signal',
}

__all__ = ['BlockSignal', 'signal_propagation']


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOME[name]}', __name__), name)
