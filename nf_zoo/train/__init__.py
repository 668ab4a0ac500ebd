"""The training engine: ``train`` runs a recipe, ``evaluate`` scores a model.

Everything is imported on first use, so ``import nf_zoo`` doesn't pay for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.memory import MemorySet, load_dataset
    from .engine import train
    from .evaluation import evaluate
    from .progress import Interrupted
    from .recipe import Recipe, load_recipe

_HOME = {
    'Interrupted': 'progress',
    'MemorySet': 'data.memory',
    'Recipe': 'recipe',
    'evaluate': 'evaluation',
    'load_dataset': 'data.memory',
    'load_recipe': 'recipe',
    'train': 'engine',
}

__all__ = ['Interrupted', 'MemorySet', 'Recipe', 'evaluate', 'load_dataset', 'load_recipe', 'train']


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOME[name]}', __name__), name)
