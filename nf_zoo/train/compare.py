"""Several runs side by side: a table, and one picture of their curves.

Runs that differ only in their seed are grouped.
"""

import json
import math
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..text import columns
from . import report, run_folder
from .curves import draw_runs
from .recipe import Recipe

_SEED = re.compile(r'([._/-]+\d*|\d+)$')  # the names of a group end in their seeds, which may begin alike


@dataclass(frozen=True)
class Summary:
    """What is shown of a run; ``rows`` are those of its summary.csv."""

    run: str
    recipe: Recipe
    rows: list[report.Row]
    kind: str  # the scores that are the result: 'ema' (the moving average) if the run has one, else 'eval'

    @property
    def scored(self) -> list[report.Row]:
        """The rows of the epochs that have been evaluated."""
        return [row for row in self.rows if not math.isnan(row[f'{self.kind}_top1'])]

    def metric(self, key: str, row: report.Row | None = None) -> float:
        """A score of ``row``, by default of the last epoch that has been evaluated."""
        return (row or self.scored[-1])[f'{self.kind}_{key}']

    @property
    def best(self) -> report.Row:
        """The first epoch with the highest top-1."""
        return max(self.scored, key=lambda row: (self.metric('top1', row), -row['epoch']))


def read_runs(folders: Sequence[str | Path]) -> list[Summary]:
    """The runs in ``folders``, finished or not. Raises `UserError` for a folder without an epoch of one."""
    names = _short([str(Path(folder)) for folder in folders])
    return [_read(Path(folder), name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Summary:
    if not folder.exists():
        raise UserError(f'{folder}: no such folder')
    try:
        rows = report.read_csv(folder / run_folder.SUMMARY)
        if not rows:
            raise UserError(f'{folder} is no run with a finished epoch (there is nothing in a {run_folder.SUMMARY})')
        recipe = run_folder.read_recipe(folder)
        kind = 'ema' if 'ema_top1' in rows[0] else 'eval'
        missing = {'lr', 'train_loss', f'{kind}_loss', f'{kind}_top1', f'{kind}_top5'} - rows[-1].keys()
        if missing:
            raise UserError(f'{folder}/{run_folder.SUMMARY} has no column {min(missing)}')
        summary = Summary(name, recipe, rows, kind)
        if not summary.scored:
            raise UserError(f'{folder} is a run of which no epoch has been evaluated yet')
        return summary
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{folder} is no run that can be read ({type(error).__name__}: {error})') from None


def _short(names: list[str]) -> list[str]:
    """The last part of each path if these are distinct, else the whole paths."""
    last = [Path(name).name for name in names]
    return last if len(set(last)) == len(last) else names


def by_recipe(runs: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Group the runs by recipe, ignoring the seed. A group's key is the part that the names of its runs share."""
    groups: dict[str, list[Summary]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.recipe.settings() | {'seed': None}), []).append(run)
    found: dict[str, list[Summary]] = {}
    for group in groups.values():
        common = os.path.commonprefix([run.run for run in group])
        shared = _SEED.sub('', common) or group[0].recipe.model
        name = common if len(group) == 1 else f'{shared} ({len(group)} runs)'
        found[name if name not in found else f'{name} {len(found)}'] = group
    return found


def table(runs: Sequence[Summary]) -> str:
    """A row for each run: accuracy and losses of its last epoch, and its best accuracy.

    Below, the mean and the range of the finished runs of a recipe, if there are several.
    """
    head = ['run', 'model', 'data set', 'epochs', 'top 1 / %', 'top 5 / %', 'loss', 'best top 1 / %', 'train loss']
    lines = [
        [
            run.run,
            run.recipe.model,
            run.recipe.dataset,
            f'{len(run.rows)} of {run.recipe.epochs}' if len(run.rows) < run.recipe.epochs else str(len(run.rows)),
            f'{run.metric("top1"):.2f}',
            f'{run.metric("top5"):.2f}',
            f'{run.metric("loss"):.4f}',
            f'{run.metric("top1", run.best):.2f} (epoch {run.best["epoch"] + 1:.0f})',
            f'{run.rows[-1]["train_loss"]:.4f}',
        ]
        for run in runs
    ]
    text = columns(head, lines, right=range(3, len(head)))
    finished = by_recipe([run for run in runs if len(run.rows) >= run.recipe.epochs])
    several = {name: group for name, group in finished.items() if len(group) > 1}
    if several:
        head = ['recipe', 'top 1 / %: mean', 'lowest', 'highest', 'loss: mean', 'lowest', 'highest']
        lines = [
            [name, *_spread(group, 'top1', '.2f'), *_spread(group, 'loss', '.4f')] for name, group in several.items()
        ]
        text += ['', *columns(head, lines, right=range(1, len(head)))]
    if warning := _differences(runs):
        text += ['', warning]
    return '\n'.join(text)


def _differences(runs: Sequence[Summary]) -> str:
    """What makes accuracies no comparison of networks: other images, or more training; empty if neither differs."""
    sets = dict.fromkeys(run.recipe.dataset for run in runs)
    epochs = sorted({len(run.rows) for run in runs})
    found = [f'data set ({", ".join(sets)})'] * (len(sets) > 1)
    found += [f'number of epochs ({", ".join(map(str, epochs))})'] * (len(epochs) > 1)
    return f'warning: the runs differ in {" and ".join(found)}' if found else ''


def _spread(runs: Sequence[Summary], key: str, form: str) -> list[str]:
    """Mean, lowest and highest of a score."""
    values = [run.metric(key) for run in runs]
    return [format(value, form) for value in (statistics.fmean(values), min(values), max(values))]


def as_dicts(runs: Sequence[Summary]) -> list[dict[str, Any]]:
    """What JSON shows of each run."""
    return [
        {
            'run': run.run,
            'model': run.recipe.model,
            'dataset': run.recipe.dataset,
            'seed': run.recipe.seed,
            'epochs': len(run.rows),
            **{key: run.metric(key) for key in ('top1', 'top5', 'loss')},
            'best': {'epoch': int(run.best['epoch']), 'top1': run.metric('top1', run.best)},
        }
        for run in runs
    ]


def draw(runs: Sequence[Summary], path: Path) -> None:
    """Loss, accuracy, gradient norm and learning rate of all ``runs`` in one picture, a colour for each recipe.

    Raises `UserError`.
    """
    groups = by_recipe(runs)
    sets = ', '.join(dict.fromkeys(run.recipe.dataset for run in runs))
    title = f'{" and ".join(groups)} on {sets}' if len(groups) < 4 else f'{len(groups)} recipes on {sets}'
    draw_runs(path, [(name, run.rows, run.kind) for name, group in groups.items() for run in group], title)
