"""Tables and pictures of the examples that train with few images a step, from results/EXAMPLE.csv."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ('batch_size', 'small_batches')


def _opened(example: str) -> tuple[ModuleType, ModuleType, list[dict[str, str]]]:
    """The example, what both share, and the results. A program of examples/ finds its neighbours there."""
    folder = str(ROOT / 'examples')
    if folder not in sys.path:
        sys.path.append(folder)
    shared = importlib.import_module('batches')
    return importlib.import_module(example), shared, shared.read(ROOT / 'results' / f'{example}.csv')


def table(example: str) -> list[str]:
    """All rows of results/EXAMPLE.csv, as the example's --table prints them."""
    module, shared, rows = _opened(example)
    return shared.table(rows, list(module.RATES), module.ARMS).splitlines()


def draw() -> None:
    """Write docs/figures/EXAMPLE.svg, as the example's --picture does."""
    for example in EXAMPLES:
        module, _, rows = _opened(example)
        module.draw(rows, ROOT / 'docs' / 'figures' / f'{example}.svg')
