"""Tables and pictures of the examples that train with few images a step, from results/EXAMPLE.csv."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ('batch_size', 'small_batches')


def _modules(example: str) -> tuple[ModuleType, ModuleType]:
    """The example, and what both share. A program of examples/ finds its neighbours there."""
    folder = str(ROOT / 'examples')
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(example), importlib.import_module('batches')


def table(example: str) -> list[str]:
    """All rows of results/EXAMPLE.csv, as the example's --table prints them."""
    module, shared = _modules(example)
    rows = shared.read(ROOT / 'results' / f'{example}.csv')
    return shared.table(rows, list(module.RATES), module.ARMS).splitlines()


def draw() -> None:
    """Write docs/figures/EXAMPLE.svg, as the example's --picture does."""
    for example in EXAMPLES:
        module, shared = _modules(example)
        module.draw(shared.read(ROOT / 'results' / f'{example}.csv'), ROOT / 'docs' / 'figures' / f'{example}.svg')
