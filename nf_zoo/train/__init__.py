"""The training engine: ``train`` runs a recipe, ``evaluate`` scores a model, ``main`` is ``nf-zoo train``.

Everything is imported on first use, so ``import nf_zoo`` doesn't pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .command import main
    from .data import MemorySet, load_dataset
    from .evaluation import evaluate
    from .progress import Interrupted
    from .recipe import Recipe, load_recipe
    from .start import train

_HOME = {
    'Interrupted': 'progress',
    'MemorySet': 'data',
    'Recipe': 'recipe',
    'evaluate': 'evaluation',
    'load_dataset': 'data',
    'load_recipe': 'recipe',
    'main': 'command',
    'train': 'start',
}

__all__ = ['Interrupted', 'MemorySet', 'Recipe', 'evaluate', 'load_dataset', 'load_recipe', 'main', 'train']


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOME[name]}', __name__), name)
