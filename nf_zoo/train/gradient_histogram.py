"""The distribution of one layer's gradients over a run. Gaur, Folz, Dengel (2020), arXiv:2008.07970, figure 3."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest
from ..files import write_whole
from . import report

SMALLEST, LARGEST, PER_DECADE = -9, 1, 5  # powers of ten of the magnitudes that are told apart


class GradientHistogram:
    """Counts the elements of a layer's gradient by sign and magnitude, over the updates of an epoch, before clipping.

    A bin is a fifth of a decade. Magnitudes below 1e-9 share the middle bin, those above 10 the outer ones. An epoch
    that was interrupted has the updates after the last checkpoint alone.

    Args:
        model: The network.
        layer: Name of a module of it with a ``weight``.
        folder: Folder of the run, for gradients.csv and gradients.png.

    Raises:
        UserError: there is no such layer.
    """

    def __init__(self, model: nn.Module, layer: str, folder: Path) -> None:
        named = {name: m.weight for name, m in model.named_modules() if isinstance(getattr(m, 'weight', None), Tensor)}
        if layer not in named:
            raise UserError(f"log_gradients: the model has no layer '{layer}' with a weight{nearest(layer, named)}")
        self.layer, self.folder = layer, folder
        self.weight: Any = named[layer]
        steps = (LARGEST - SMALLEST) * PER_DECADE
        positive = 10.0 ** (SMALLEST + torch.arange(steps + 1, dtype=torch.float64) / PER_DECADE)
        self.edges = torch.cat([-positive.flip(0), positive])
        self.rows: list[report.Row] = []
        self._reset()

    def _reset(self) -> None:
        self.counts = torch.zeros(len(self.edges) - 1, dtype=torch.float64)
        self.moments = torch.zeros(2, dtype=torch.float64)

    @torch.no_grad()
    def add(self) -> None:
        """Count the gradient of an update."""
        if self.weight.grad is None:
            return
        values = self.weight.grad.detach().flatten().double()
        inner = self.edges[1:-1].to(values.device)
        bins = torch.bucketize(values, inner)
        self.counts += torch.bincount(bins, minlength=len(self.counts)).cpu()
        self.moments += torch.stack([values.sum(), values.square().sum()]).cpu()

    def close_epoch(self, epoch: int, tensorboard: Any) -> None:
        """Write the epoch into gradients.csv, gradients.png and, where it is on, TensorBoard; begin the next one."""
        if not self.rows:
            known = report.read_csv(self.folder / 'gradients.csv')
            self.rows = [row for row in known if row['epoch'] < epoch]
        names = [f'{edge:.3g}' for edge in self.edges[:-1].tolist()]  # a column is named by its lower edge
        self.rows.append({'epoch': epoch, **dict(zip(names, self.counts.tolist(), strict=True))})
        report.write_csv(self.folder / 'gradients.csv', self.rows)
        if tensorboard:
            filled = self.counts.nonzero().flatten().tolist() or [0]
            low, high = filled[0], filled[-1] + 1
            tensorboard.add_histogram_raw(
                f'gradient/{self.layer}',
                min=self.edges[low].item(),
                max=self.edges[high].item(),
                num=self.counts.sum().item(),
                sum=self.moments[0].item(),
                sum_squares=self.moments[1].item(),
                bucket_limits=self.edges[low + 1 : high + 1].tolist(),
                bucket_counts=self.counts[low:high].tolist(),
                global_step=epoch,
            )
        self._reset()

    def draw(self) -> None:
        """Write gradients.png: a row for each epoch, a colour for the share of a bin. Nothing without matplotlib."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.colors import LogNorm
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError:
            return
        if not self.rows:
            return
        counts = torch.tensor([[v for k, v in row.items() if k != 'epoch'] for row in self.rows], dtype=torch.float64)
        shares = (counts / counts.sum(1, keepdim=True)).numpy()
        epochs = [row['epoch'] + 0.5 for row in self.rows]
        figure = Figure(figsize=(8, 4.5), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        image = axes.pcolormesh(
            self.edges.numpy(), [*epochs, epochs[-1] + 1], shares, norm=LogNorm(1e-6, 1), cmap='viridis', shading='flat'
        )
        axes.set_xscale('symlog', linthresh=10.0**SMALLEST)
        axes.set_xticks([*(-(10.0**k) for k in (0, -3, -6)), 0, *(10.0**k for k in (-6, -3, 0))])
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel='element of the gradient', ylabel='epoch', title=f'Gradients of {self.layer}, before clipping')
        figure.colorbar(image, label='share of the elements')
        picture = io.BytesIO()
        figure.savefig(picture, format='png', dpi=120)
        write_whole(self.folder / 'gradients.png', picture.getvalue())
