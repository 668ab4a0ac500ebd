"""What a run leaves behind for its reader: summary.csv and times.csv."""

import csv
import io
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from ..errors import extra
from ..files import refuse_special, write_whole
from .recipe import Recipe

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
    refuse_special(path)
    with open(path, newline='', encoding='utf-8') as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


class Clock:
    """Keeps times.csv, a row for each epoch or part of one. It is the one file that differs between repetitions."""

    def __init__(self, path: Path, rows: list[Row], epoch: int, update: int, write: bool = True) -> None:
        self.path, self.rows, self.write = path, rows, write
        self.row: Row = {'epoch': epoch, 'first_update': update, 'last_update': update}
        self.began = time.perf_counter()

    def trained(self, update: int) -> None:
        """Note that the training of the epoch has ended, or was stopped, after ``update`` updates of the run."""
        seconds = time.perf_counter() - self.began
        self.row.update(last_update=update, train_seconds=round(seconds, 3), eval_seconds=0.0)
        self.rows.append(self.row)
        self._write()

    def evaluated(self) -> float:
        """Note that the epoch is over, and return its seconds."""
        seconds = time.perf_counter() - self.began
        self.row['eval_seconds'] = round(seconds - self.row['train_seconds'], 3)
        self._write()
        return seconds

    def _write(self) -> None:
        if self.write:
            write_csv(self.path, self.rows)


def hardware(device: torch.device) -> str:
    """The name of the processor, such as ``Intel Xeon, 2 threads of 2 processors``."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            name = next((line.split(':', 1)[1].strip() for line in file if line.startswith('model name')), name)
    except OSError:
        pass
    threads, processors = torch.get_num_threads(), os.cpu_count() or 1
    return f'{name}, {threads} thread{"s" * (threads != 1)} of {processors} processor{"s" * (processors != 1)}'


def parent(recipe: Recipe, cfg: Mapping[str, Any]) -> str | None:
    """What the card says of the weights that a training started from; None if they were drawn.

    ``cfg`` is the pretrained_cfg of the model.
    """
    if recipe.initial_checkpoint:
        name, license = Path(recipe.initial_checkpoint).name, None  # the file's folder is private
    elif recipe.pretrained:
        tagged = '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))
        name, license = cfg.get('hf_hub_id') or tagged or recipe.model, cfg.get('license')
    else:
        return None
    licensed = f' (licence: {license})' if license else ''
    return (
        f'Fine-tuned from the weights `{name}`{licensed}. Their licence, and the terms of the images that they were '
        'trained on, hold for these weights too.'
    )


def versions() -> dict[str, str]:
    """The versions of the libraries that decide a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {'python': platform.python_version(), 'torch': torch.__version__, 'timm': timm.__version__}
    for package in ('torchvision', 'nf-zoo'):
        try:
            found[package.replace('-', '_')] = version(package)
        except PackageNotFoundError:  # run from a checkout that isn't installed
            pass
    return found


def tensorboard(folder: Path, epoch: int) -> Any:
    """A TensorBoard writer in ``folder``. It discards what an earlier part of the run wrote for ``epoch`` and later.

    Raises `UserError` without tensorboard.
    """
    extra('tensorboard', 'train')
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / 'tensorboard'), purge_step=epoch)
