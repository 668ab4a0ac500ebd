"""Pictures of signals and of trained networks, as PNG or SVG."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files import write_whole
from .signal import BlockSignal

# Okabe and Ito's colours, which colour-blind readers can tell apart; the brightest, yellow, is left out.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
LABELS = {
    'squared_mean': 'average channel squared mean',
    'variance': 'average channel variance',
    'branch_variance': 'variance of the residual branch',
    'gradient_variance': 'variance of the gradient',
    'share': "branch's share of the output variance",
    'nonzero': 'share of elements that are not 0',
}


class Curve(NamedTuple):
    """One network in a picture. ``expected``: what theory says of the variance, for each row, or None."""

    label: str
    rows: Sequence[BlockSignal]
    colour: str
    expected: Sequence[float] | None = None
    style: str = '-'


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
    write_whole(path, picture.getvalue())


def check_suffix(path: Path) -> None:
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
    figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=2 * columns, fontsize='small')
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
                _draw_curve(target, panel, curve, field, style, several, handles)
        target.set_yscale('log' if panel.log else 'linear')
        unit = ' / that of the last block' if panel.relative else ''
        target.set_ylabel(', '.join(LABELS[field] for field, _ in fields) + unit, fontsize='small')
        if not panel.log:
            target.set_ylim(bottom=0)
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


def _draw_curve(
    axes: Any, panel: Panel, curve: Curve, field: str, style: str, several: bool, handles: dict[str, Any]
) -> None:
    first = 0 if panel.stem and field in ('squared_mean', 'variance') else 1
    values = [getattr(row, field) for row in curve.rows]
    scale = 1 / values[-1] if panel.relative and values[-1] else 1.0
    shown = [(x, value * scale) for x, value in enumerate(values) if x >= first and (value > 0 or not panel.log)]
    if not shown:
        return
    (line,) = axes.plot(*zip(*shown, strict=True), style or curve.style, color=curve.colour, linewidth=1.4)
    handles.setdefault(f'{curve.label}: {LABELS[field]}' if several else curve.label, line)
    ends = [x for x in range(1, len(values)) if x + 1 == len(values) or curve.rows[x + 1].stage != curve.rows[x].stage]
    points = [(x, values[x] * scale) for x in ends if values[x] > 0 or not panel.log]
    (dots,) = axes.plot(*zip(*points, strict=True), 'k.', markersize=5, zorder=3) if points else (None,)
    if dots is not None:
        handles.setdefault('last block of a stage', dots)
    if field == 'variance' and curve.expected:
        (theory,) = axes.plot(range(1, len(values)), curve.expected[1:], ':', color='0.35', linewidth=1.6, zorder=3)
        handles.setdefault('theory', theory)
