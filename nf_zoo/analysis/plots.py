"""Pictures of signals and of trained networks, as PNG or SVG."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import write_whole
from .signal import BlockSignal

LABELS = {
    'squared_mean': 'average channel squared mean',
    'variance': 'average channel variance',
    'branch_variance': 'variance of the residual branch',
    'gradient_variance': 'variance of the gradient',
    'share': "branch's share of the output variance",
    'nonzero': 'share of elements that are not 0',
}
STYLES = {'-': 'solid', '--': 'dashed', ':': 'dotted'}
THEORY, STAGE_END = 'theory', 'last block of a stage'


class Curve(NamedTuple):
    """One network in a picture. ``expected``: what theory says of the variance, for each row, or None."""

    label: str
    rows: Sequence[BlockSignal]
    colour: str
    expected: Sequence[float] | None = None
    style: str = '-'
    wide: bool = False  # a wide, pale line, on which another one of the same values stays visible


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        curves: The networks.
        fields: Fields of `BlockSignal` on the left axis, with their line styles; one style stands for the curve's own.
        right: Fields on a right axis, likewise.
        title: Above the axes; by default the field's name.
        log: Whether the y axes are logarithmic.
        relative: Whether values are divided by that of the last block.
        stem: Whether x = 0, the stem's output, is shown.
        transitions: Whether thin lines mark the first blocks of stages.
    """

    curves: Sequence[Curve]
    fields: Sequence[tuple[str, str]]
    right: Sequence[tuple[str, str]] = ()
    title: str = ''
    log: bool = False
    relative: bool = False
    stem: bool = True
    transitions: bool = False


def new_figure(width: float, height: float) -> Any:
    """An empty figure. Raises UserError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'nf-zoo[plot]'") from None
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure; the suffix of ``path`` says whether as PNG or as SVG. Raises UserError for another one."""
    from matplotlib import rc_context

    check_suffix(path)
    picture, kind = io.BytesIO(), path.suffix[1:].lower()
    # Without a date and with fixed ids the same picture has the same bytes.
    with rc_context({'svg.hashsalt': 'nf_zoo', 'svg.fonttype': 'none'}):
        figure.savefig(picture, format=kind, dpi=120, metadata={'Date': None} if kind == 'svg' else None)
    content = picture.getvalue()
    if kind == 'svg':  # a hundredth of a point is enough, and halves the file
        content = re.sub(rb'(\d\.\d\d)\d+', rb'\1', content)
    write_whole(path, content)


def check_suffix(path: Path) -> None:
    """Raise `UserError` unless the file name ends in .png or .svg."""
    if path.suffix.lower() not in ('.png', '.svg'):
        raise UserError(f"'{path}' has to end with .png or .svg")


def draw(path: Path, title: str, panels: Sequence[Sequence[Panel]], note: str = '') -> None:
    """Draw rows of panels. ``note``: a line below the title.

    Raises:
        UserError: matplotlib is missing, or the suffix is neither .png nor .svg.
    """
    check_suffix(path)
    columns = max(len(row) for row in panels)
    figure = new_figure(4.2 * columns + 0.4, 3.5 * len(panels) + 1.3)
    grid = figure.subplots(len(panels), columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes_row, row in zip(grid, panels, strict=True):
        for axes, panel in zip(axes_row, row, strict=False):
            _draw_panel(axes, panel, handles)
        for axes in axes_row[len(row) :]:
            axes.set_visible(False)
    figure.suptitle(f'{title}\n{note}' if note else title, fontsize=11)
    last = [label for label in (THEORY, STAGE_END) if label in handles]
    labels = [label for label in handles if label not in last] + last
    fitting = int(13 * figure.get_figwidth() / (8 + max(map(len, labels))))
    columns = min(len(labels), max(1, fitting))
    figure.legend(
        [handles[label] for label in labels], labels, loc='outside lower center', ncols=columns, fontsize='small'
    )
    save(figure, path)


def _draw_panel(axes: Any, panel: Panel, handles: dict[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    both = [(axes, panel.fields)]
    if panel.right:
        twin = axes.twinx()
        both.append((twin, panel.right))
    several = len(panel.fields) + len(panel.right) > 1
    for target, fields in both:
        for curve in panel.curves:
            for field, style in fields:
                _draw_curve(target, panel, curve, field, style, handles)
        target.set_yscale('log' if panel.log else 'linear')
        unit = ' / that of the last block' if panel.relative else ''
        names = [LABELS[field] + (f' ({STYLES[style]})' if several else '') for field, style in fields]
        target.set_ylabel(',\n'.join(names) + unit, fontsize='small')
        if not panel.log:
            target.set_ylim(0, 1.06 * target.get_ylim()[1])
    if panel.transitions and panel.curves:
        rows = panel.curves[0].rows
        for x in range(2, len(rows)):
            if rows[x].stage != rows[x - 1].stage:
                axes.axvline(x - 0.5, color='0.8', linewidth=0.6)
    axes.set_xlabel('residual block (0: behind the stem)' if panel.stem else 'residual block')
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if panel.title:
        axes.set_title(panel.title, fontsize=10)


def _draw_curve(axes: Any, panel: Panel, curve: Curve, field: str, style: str, handles: dict[str, Any]) -> None:
    first = 0 if panel.stem and field in ('squared_mean', 'variance') else 1
    values = [getattr(row, field) for row in curve.rows]
    scale = 1 / values[-1] if panel.relative and values[-1] else 1.0
    drawable = [math.isfinite(value) and (value > 0 or not panel.log) for value in values]
    shown = [(x, value * scale) for x, value in enumerate(values) if x >= first and drawable[x]]
    if not shown:
        return
    look = dict(linewidth=4.0, alpha=0.4) if curve.wide else dict(linewidth=1.4)
    (line,) = axes.plot(*zip(*shown, strict=True), style or curve.style, color=curve.colour, **look)
    if curve.label not in handles or style == '-':
        handles[curve.label] = line
    ends = [x for x in range(1, len(values)) if x + 1 == len(values) or curve.rows[x + 1].stage != curve.rows[x].stage]
    points = [(x, values[x] * scale) for x in ends if drawable[x]]
    if points:
        (handles[STAGE_END],) = axes.plot(*zip(*points, strict=True), 'k.', markersize=5, zorder=3)
    if field == 'variance' and curve.expected:
        blocks = range(1, len(values))
        (handles[THEORY],) = axes.plot(blocks, curve.expected[1:], '--', color='0.3', linewidth=1.3, zorder=3)
