"""Hubs: the places that hold published weights.

Everything is imported on first use, so `import nf_zoo` does not pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .publishing import fetch, publish
    from .release import bundle
    from .verification import verify

_HOME = {'bundle': 'release', 'fetch': 'publishing', 'publish': 'publishing', 'verify': 'verification'}

__all__ = ['bundle', 'fetch', 'publish', 'verify']


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOME[name]}', __name__), name)
