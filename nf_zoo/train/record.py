"""What a run remembers of itself, and writes into its folder: rows of epochs, times, the best weights, the result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..files import tensor_bytes, write_whole
from . import report, run_folder
from .curves import draw_run
from .recipe import Recipe


class Record:
    """The memory of the run in ``folder``. Only the first process of a run ``writes``."""

    def __init__(self, folder: Path, recipe: Recipe, writes: bool) -> None:
        self.folder, self.recipe, self.writes = folder, recipe, writes
        self.rows: list[report.Row] = []
        self.times: list[report.Row] = []
        self.best: dict[str, Any] = {}  # epoch and scores of the first epoch with the highest accuracy
        self.best_tensors: dict[str, Tensor] = {}
        self.changes: list[dict[str, Any]] = []  # update, and the settings that changed there: [then, now]
        self.tensorboard: Any = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, besides the best weights."""
        return {'rows': self.rows, 'best': self.best, 'changes': self.changes}

    def restore(self, state: dict[str, Any], best_tensors: dict[str, Tensor]) -> None:
        """Undo `state`."""
        self.rows, self.best, self.best_tensors = state['rows'], state.get('best', {}), best_tensors
        self.changes = state.get('changes', [])
        times = report.read_csv(self.folder / run_folder.TIMES)
        self.times = [row for row in times if row['last_update'] <= state['updates']]

    def open(self) -> None:
        """Write the first files, or those of the checkpoint that the run goes on from. Raises `UserError`."""
        if not self.writes:
            return
        if self.recipe.log_tensorboard:
            self.tensorboard = report.tensorboard(self.folder, len(self.rows))
        run_folder.write_recipe(self.folder, self.recipe)
        if self.rows:
            self.write_rows()
        if self.best_tensors:
            write_whole(self.folder / run_folder.BEST, tensor_bytes(self.best_tensors))

    def clock(self, epoch: int, update: int) -> report.Clock:
        """The clock of one epoch, or of a part of it that begins after ``update`` updates."""
        return report.Clock(self.folder / run_folder.TIMES, self.times, epoch, update, self.writes)

    def keep_the_best(self, epoch: int, scores: dict[str, float], model: nn.Module) -> None:
        """Keep the weights of the first epoch with the highest accuracy, in a file and in every checkpoint."""
        if self.best and scores['top1'] <= self.best['top1']:
            return
        self.best = {'epoch': epoch, **{key: scores[key] for key in ('top1', 'top5', 'loss')}}
        if self.writes:
            self.best_tensors = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
            write_whole(self.folder / run_folder.BEST, tensor_bytes(self.best_tensors))

    def write_rows(self) -> None:
        """Write summary.csv."""
        report.write_csv(self.folder / run_folder.SUMMARY, self.rows)

    def plot(self, row: report.Row) -> None:
        """Send the row of an epoch to TensorBoard, if that is on."""
        if self.tensorboard:
            for key in row.keys() - {'epoch'}:
                self.tensorboard.add_scalar(key, row[key], row['epoch'])

    def seconds(self) -> float:
        """The seconds of all epochs so far."""
        return float(sum(row['train_seconds'] + row['eval_seconds'] for row in self.times))

    def finish(self, weights: bytes, result: run_folder.Result, log: Callable[[str], None]) -> None:
        """Write the weights, the curves and, as the last file, the result. Raises `UserError`."""
        if not self.writes:
            return
        write_whole(self.folder / run_folder.WEIGHTS, weights)
        picture = self.folder / run_folder.CURVES
        try:
            draw_run(picture, self.rows, f'{self.recipe.model} on {self.recipe.dataset}')
        except UserError as error:  # without matplotlib the run is still worth its result
            log(f'no {picture.name}: {error}')
        if self.tensorboard:
            self.tensorboard.close()
        run_folder.write_result(self.folder, result)
