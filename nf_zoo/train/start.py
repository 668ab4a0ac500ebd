"""How a run starts: its processes, and its folder."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..text import say
from .build import Log
from .engine import Run
from .processes import Processes
from .recipe import Recipe


def train(recipe: Recipe, *, log: Log = say, bar: bool | None = None) -> dict[str, Any]:
    """Run ``recipe`` and return what its result.json says. Under torchrun, this is one of the processes of the run.

    ``bar`` shows a progress bar on stderr; by default, where stderr is a terminal. Raises `UserError` for bad input or
    a folder that can't be written, `CheckFailed` when a loss or a gradient is no longer finite or another process has
    ended, and `Interrupted` after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    if not str(recipe.output):
        raise UserError('where should the run go? give --output RUN')
    with Processes(recipe.device) as processes:
        _claim(recipe.run_dir, recipe, processes.first)
        processes.wait()  # until all have looked whether there is a run
        if not processes.first:
            log, bar = _silent, False
        return Run(recipe, recipe.run_dir, log, bar, processes=processes).fit()


def _silent(line: str) -> None:
    pass


def _claim(run: Path, recipe: Recipe, first: bool) -> None:
    if (run / 'recipe.yaml').exists() and not recipe.resume:
        raise UserError(f'{run} already holds a run: continue it with --resume, or choose another --output')
    for torn in [*run.glob('.*.tmp'), *run.glob('checkpoints/.*.tmp')] if first else []:
        with suppress(OSError):
            torn.unlink()
