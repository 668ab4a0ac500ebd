"""What a bench gives besides lines: the machine, a JSON file, a picture of bars."""

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..analysis.plots import new_figure, save
from ..files import write_whole
from ..train.curves import COLOURS
from ..train.report import hardware, versions
from .measure import BenchRow


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, threads and versions."""
    found: dict[str, Any] = {'hardware': hardware(device), 'threads': torch.get_num_threads(), **versions()}
    if device.type == 'cuda':
        found |= {'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()}
    return found


def describe(found: dict[str, Any]) -> str:
    """The machine in one line."""
    libraries = [f'{key} {value}' for key, value in found.items() if key not in ('hardware', 'threads')]
    return ', '.join([found['hardware'], *libraries])


def write_json(path: Path, command: str, found: dict[str, Any], rows: Sequence[BenchRow]) -> None:
    """Write all rows, the machine and the command to ``path``."""
    content = {
        'command': command,
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        'machine': found,
        'rows': [row.as_dict() for row in rows],
    }
    write_whole(path, (json.dumps(content, indent=1) + '\n').encode())


def draw_bars(path: Path, title: str, note: str, rows: Sequence[BenchRow]) -> None:
    """Write a picture of the ratios: a bar for each row, a thin line over its quartiles, the peer at 1.

    Raises:
        UserError: matplotlib is missing, or the suffix is neither .png nor .svg.
    """
    figure = new_figure(9, 1.4 + 0.26 * len(rows))
    axes = figure.subplots()
    peers = list(dict.fromkeys(row.peer for row in rows))
    for number, row in enumerate(rows):
        colour = COLOURS[peers.index(row.peer) % len(COLOURS)]
        low, _, high = row.ratios
        spread = [[max(0.0, row.ratio - low)], [max(0.0, high - row.ratio)]]
        label = row.peer if row.peer not in [before.peer for before in rows[:number]] else None
        axes.barh(number, row.ratio, color=colour, xerr=spread if len(row.values) > 1 else None, label=label)
        axes.text(0, number, f' {row.ratio:.3f}', va='center', color='white', fontsize='small')
    axes.axvline(1, color='black', linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.what for row in rows], fontsize='small')
    axes.invert_yaxis()
    axes.set_xlabel('multiple of the peer', fontsize='small')
    figure.legend(title='peer', fontsize='small', title_fontsize='small', loc='outside lower center', ncols=len(peers))
    figure.suptitle(f'{title}\n{note}', fontsize=9)
    save(figure, path)
