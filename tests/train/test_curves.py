"""The pictures of runs: whole epochs on the axis, what is compared in the title, no legend over a curve."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from nf_zoo.errors import UserError
from nf_zoo.train.curves import COLOURS, draw_run, draw_runs

pytestmark = pytest.mark.usefixtures('rendered')


def rows(n: int = 3, **more: float) -> list[dict[str, Any]]:
    return [
        {'epoch': float(i), 'train_loss': 2.0 - i / n, 'eval_loss': math.nan if i == 1 else 1.0, 'eval_top1': 50.0 + i,
         'eval_top5': 90.0, 'lr': 0.1, 'grad_norm': 1.0, 'clipped': 0.5, **more}
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    from matplotlib.figure import Figure

    drawn: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    return drawn


def check(figure: Any) -> None:
    figure.canvas.draw()
    for axes in figure.axes[:4]:
        assert axes.get_xlabel() == 'epoch' and axes.get_ylabel()
        low, high = axes.get_xlim()
        assert all(float(tick).is_integer() for tick in axes.get_xticks() if low <= tick <= high)
    assert {line.get_color() for axes in figure.axes for line in axes.lines} <= set(COLOURS)
    panels = [axes.get_window_extent() for axes in figure.axes]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert legends
    for legend in legends:
        box = legend.get_window_extent()
        assert not any(box.shrunk(0.9, 0.9).overlaps(panel) for panel in panels), 'a legend lies over a panel'


def test_one_run(tmp_path: Path, figures: list[Any]) -> None:
    draw_run(tmp_path / 'a.png', rows(), 'net on toys')
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
    check(figures[0])
    assert figures[0].get_suptitle() == 'net on toys'


def test_several_runs(tmp_path: Path, figures: list[Any]) -> None:
    runs = [('first', rows(), 'eval'), ('second', rows(2), 'eval'), ('first', rows(4), 'eval')]
    draw_runs(tmp_path / 'a.png', runs, 'first and second on toys')
    check(figures[0])
    labels = [text.get_text() for legend in figures[0].legends for text in legend.get_texts()]
    assert labels == [f'{name}: {kind} loss' for name in ('first', 'second') for kind in ('training', 'validation')]


def test_without_matplotlib_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(UserError, match=r"needs matplotlib, which is not installed: pip install 'nf-zoo\[plot\]'"):
        draw_run(tmp_path / 'a.png', rows(), 'net')
    assert not list(tmp_path.iterdir())
