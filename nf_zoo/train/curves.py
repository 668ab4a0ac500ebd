"""Pictures of training runs: loss, accuracy, learning rate and gradient norm against the epoch."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import extra
from ..files import write_whole
from .report import Row

# Okabe and Ito's colours, which colour-blind readers can tell apart; the brightest, yellow, is left out.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')


def draw_run(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw one run with all its scores. Raises `UserError` without matplotlib."""
    kind = 'ema' if 'ema_top1' in rows[-1] else 'eval'
    _Panels(title).add(rows, kind).write(path)


def draw_runs(path: Path, runs: Sequence[tuple[str, Sequence[Row], str]], title: str) -> None:
    """Draw several runs over one another, a colour for each name.

    Args:
        path: The PNG file to write.
        runs: Of each its name, the rows of its summary, and the scores that are its result ('eval' or 'ema').
        title: What is compared.

    Raises:
        UserError: matplotlib is missing, or the file can't be written.
    """
    panels = _Panels(title)
    for name, rows, kind in runs:
        panels.add(rows, kind, name)
    panels.write(path)


class _Panels:
    """Four panels that share the axis of epochs; the share of clipped gradients has an axis in the fourth."""

    def __init__(self, title: str):
        self.figure = extra('matplotlib.figure', 'plot').Figure(figsize=(10, 7), layout='constrained')
        extra('matplotlib.backends.backend_agg', 'plot').FigureCanvasAgg(self.figure)
        self.integers = extra('matplotlib.ticker', 'plot').MaxNLocator
        self.figure.suptitle(title)
        (self.losses, self.accuracies), (self.rates, self.norms) = self.figure.subplots(2, 2)
        self.shares = self.norms.twinx()
        self.shares.set(ylabel='clipped gradients / % (dotted)', ylim=(0, 105), visible=False)
        self.colours: dict[str, str] = {}

    def add(self, rows: Sequence[Row], kind: str, name: str = '') -> '_Panels':
        """Draw a run. One without a name is alone: it has its top-5 accuracy and, with an average, both scores."""
        lines = [
            (self.losses, 'train_loss', 'training', 1, '--' if name else '-'),
            (self.losses, f'{kind}_loss', 'validation', 1, '-'),
            (self.accuracies, f'{kind}_top1', 'top-1', 1, '-'),
            (self.rates, 'lr', 'learning rate', 1, '-'),
            (self.norms, 'grad_norm', 'gradient norm', 1, '-'),
            (self.shares, 'clipped', 'clipped', 100, ':'),
        ]
        if not name:
            lines.append((self.accuracies, f'{kind}_top5', 'top-5', 1, '-'))
        if not name and kind == 'ema':
            lines.append((self.losses, 'eval_loss', 'validation, without averaging', 1, '--'))
            lines.append((self.accuracies, 'eval_top1', 'top-1, without averaging', 1, '--'))
        first = name not in self.colours
        colour = self.colours.setdefault(name, COLOURS[len(self.colours) % len(COLOURS)])
        for axes, key, label, factor, style in lines:
            if key not in rows[-1]:
                continue
            known = [row for row in rows if math.isfinite(row.get(key, math.nan))]
            options: dict[str, Any] = {'label': label}
            if name:
                named = first and axes is self.losses
                options = {'color': colour, 'label': f'{name}: {label} loss' if named else None}
            epochs, values = [row['epoch'] + 1 for row in known], [factor * row[key] for row in known]
            options.setdefault('color', COLOURS[1 if axes is self.shares else len(axes.lines) % len(COLOURS)])
            axes.plot(epochs, values, style, marker='.' if len(known) < 4 else None, **options)
            if axes is self.shares:
                axes.set_visible(True)
        return self

    def write(self, path: Path) -> None:
        for axes, label in (
            (self.losses, 'loss'),
            (self.accuracies, 'validation accuracy / %'),
            (self.rates, 'learning rate'),
            (self.norms, 'gradient norm'),
        ):
            axes.set(xlabel='epoch', ylabel=label)
            axes.xaxis.set_major_locator(self.integers(integer=True))
            axes.grid(alpha=0.3)
            if '' in self.colours and len(axes.lines) > 1:  # above the panel, where there is no curve
                axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=3, fontsize='small', frameon=False)
        if '' not in self.colours:
            self.figure.legend(loc='outside lower center', ncols=2, fontsize='small')
        picture = io.BytesIO()
        self.figure.savefig(picture, format='png', dpi=120)
        write_whole(path, picture.getvalue())
