"""Hubs: the places that hold published weights, and what goes into and out of them.

Everything is imported on first use, so `import nf_zoo` does not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .publishing import bundle, fetch, publish, verify

_HOME = {
    'bundle': 'publishing',
    'fetch': 'publishing',
    'publish': 'publishing',
    'verify': 'publishing',
}

__all__ = ['bundle', 'fetch', 'publish', 'verify']


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOME[name]}', __name__), name)
