"""What a run leaves behind for its reader: summary.csv, times.csv and curves.png."""

import csv
import io
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from ..errors import UserError
from ..files import write_whole

Row = dict[str, Any]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows``, with all their keys as the header; floats so that they read back exactly."""
    text = io.StringIO()
    if rows:
        # The newest row names most columns: a run may have been begun by a version that wrote fewer.
        columns = list(dict.fromkeys([*rows[-1], *(key for row in rows for key in row)]))
        writer = csv.DictWriter(text, columns, lineterminator='\n', restval=math.nan)
        writer.writeheader()
        writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def read_csv(path: Path) -> list[Row]:
    """The rows of a file of numbers; none when there is no such file."""
    if not path.exists():
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


class Clock:
    """Keeps times.csv, the one file of a run that differs between repetitions: a row for each epoch or part of one."""

    def __init__(self, path: Path, rows: list[Row], epoch: int, update: int, write: bool = True) -> None:
        self.path, self.rows, self.write = path, rows, write
        self.row: Row = {'epoch': epoch, 'first_update': update, 'last_update': update}
        self.began = time.perf_counter()

    def trained(self, update: int) -> None:
        """The epoch's training ended, or was stopped, after ``update`` updates of the run."""
        seconds = time.perf_counter() - self.began
        self.row.update(last_update=update, train_seconds=round(seconds, 3), eval_seconds=0.0)
        self.rows.append(self.row)
        self._write()

    def evaluated(self) -> float:
        """The epoch is over; returns its seconds."""
        seconds = time.perf_counter() - self.began
        self.row['eval_seconds'] = round(seconds - self.row['train_seconds'], 3)
        self._write()
        return seconds

    def _write(self) -> None:
        if self.write:
            write_csv(self.path, self.rows)


def draw_curves(path: Path, rows: Sequence[Row], title: str) -> str | None:
    """Draw a run: see `draw_panels`, whose answer this is."""
    return draw_panels(path, [('', rows, 'ema' if 'ema_top1' in rows[-1] else 'eval')], title)


def draw_panels(path: Path, runs: Sequence[tuple[str, Sequence[Row], str]], title: str) -> str | None:
    """Draw loss, accuracy, learning rate, gradient norm and clipped share against the epoch.

    ``runs``: name, rows of the summary, which of the scores is the result ('eval' or 'ema'). Runs of one name share a
    colour; a run without a name is alone and shows all its scores. Returns a line for the log without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return f"no {path.name}: it needs matplotlib (pip install 'nf-zoo[plot]')"
    figure = Figure(figsize=(10, 7), layout='constrained')
    FigureCanvasAgg(figure)
    (losses, accuracies), (rates, norms) = figure.subplots(2, 2)
    shares = norms.twinx()
    shares.set_ylabel('clipped share / % (dotted)')
    shares.set_ylim(0, 105)
    clipped = False
    colours: dict[str, str] = {}
    for name, rows, kind in runs:
        first = name not in colours
        colour = colours.setdefault(name, f'C{len(colours)}')
        lines = [
            (losses, 'train_loss', 'training', 1, '-' if not name else '--'),
            (losses, f'{kind}_loss', 'validation', 1, '-'),
            (accuracies, f'{kind}_top1', 'top 1', 1, '-'),
            (rates, 'lr', 'learning rate', 1, '-'),
            (norms, 'grad_norm', 'gradient norm', 1, '-'),
            (shares, 'clipped', 'clipped share', 100, ':'),
        ]
        if not name:
            lines.append((accuracies, f'{kind}_top5', 'top 5', 1, '-'))
        if not name and kind == 'ema':
            lines += [
                (losses, 'eval_loss', 'without the average', 1, '--'),
                (accuracies, 'eval_top1', 'top 1 without', 1, '--'),
            ]
        for axes, key, label, factor, style in lines:
            if key not in rows[-1]:
                continue
            clipped |= axes is shares
            known = [row for row in rows if math.isfinite(row.get(key, math.nan))]
            epochs, values = [row['epoch'] + 1 for row in known], [factor * row[key] for row in known]
            options: dict[str, Any] = {'label': label}
            if name:
                shown = f'{name}: {label}' if axes is losses else name
                options = {'color': colour, 'label': shown if first else None}
            axes.plot(epochs, values, style, marker='.' if len(known) < 4 else None, **options)
    for axes, label in (
        (losses, 'loss'),
        (accuracies, 'validation accuracy / %'),
        (rates, 'learning rate'),
        (norms, 'gradient norm'),
    ):
        axes.set(xlabel='epoch', ylabel=label)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize='small')
    shares.set_visible(clipped)
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=120)
    write_whole(path, picture.getvalue())
    return None


def hardware(device: torch.device) -> str:
    """Name of the processor that trained, such as ``Intel Xeon, 2 threads``."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            name = next((line.split(':', 1)[1].strip() for line in file if line.startswith('model name')), name)
    except OSError:
        pass
    return f'{name}, {torch.get_num_threads()} threads of {os.cpu_count()} processors'


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {'python': platform.python_version(), 'torch': torch.__version__, 'timm': timm.__version__}
    for package in ('torchvision', 'nf-zoo'):
        try:
            found[package.replace('-', '_')] = version(package)
        except PackageNotFoundError:  # run from a checkout that isn't installed
            pass
    return found


def tensorboard(folder: Path, epoch: int) -> Any:
    """A SummaryWriter into ``folder``, which forgets what an earlier part of the run wrote from ``epoch`` on.

    Raises `UserError` without tensorboard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("log_tensorboard needs tensorboard: pip install 'nf-zoo[train]'") from None
    return SummaryWriter(str(folder / 'tensorboard'), purge_step=epoch)
