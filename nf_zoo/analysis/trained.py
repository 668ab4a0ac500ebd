"""What a network has learned, block by block: scalars, what the branches contribute, sparsity, spectra.

Nguyen et al. (2023) show learned scalars (table 7), the weights of one convolution (figure 4), the share of outputs
that are not 0 (figure 5) and the variance of the blocks' outputs (figure 7). Brock et al. (2021), appendix A.1, write
that the weights of a network that collapses are badly conditioned, which its singular values show.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..block_scalars import DEAD, WEAK, Branch, ResidualWatch, block_scalar, branch_modules, variance
from ..errors import UserError
from ..train.curves import COLOURS
from .plots import new_figure, save

BINS = 100  # of the histogram of weights


class TrainedBlock(NamedTuple):
    """One residual block of a trained network.

    Attributes:
        block: The block's name in the model.
        scalar: Name of the parameter that scales the branch; '' if there is none.
        value: Its value; the mean of absolute values for a gain per channel.
        share: Variance of the branch, factors included, divided by that of the output.
        nonzero: Share of the output's elements that are not 0.
        total_variance: Variance of the output over all its elements.
        largest: Largest singular value of the branch's convolutions, as (out, in kh kw) matrices.
        smallest: Smallest singular value of them.
        worst: The convolution with the largest ratio of the two.
    """

    block: str
    scalar: str
    value: float
    share: float
    nonzero: float
    total_variance: float
    largest: float
    smallest: float
    worst: str


def trained_blocks(model: nn.Module, x: Tensor) -> list[TrainedBlock]:
    """Look at each residual block of ``model`` with images ``x`` (N, C, H, W); the model stays as it is.

    Raises:
        UserError: the model has no residual blocks.
    """
    net = copy.deepcopy(model).eval()
    modules: dict[str, nn.Module] = dict(net.named_modules())
    rows: list[TrainedBlock] = []

    def done(name: str, first: Tensor, output: Tensor, branch: Branch) -> None:
        scalar, value = block_scalar(modules[name]) or ('', math.nan)
        whole = variance(output)
        share = branch.added / whole if whole else 0.0
        nonzero = (output != 0).float().mean().item()
        total = output.float().var(correction=0).item()
        rows.append(TrainedBlock(name, scalar, value, share, nonzero, total, *_spectrum(modules[name])))

    with torch.no_grad(), ResidualWatch(net, x, done):
        net(x)
    if not rows:
        raise UserError(f'{type(model).__name__} has no residual block that can be found by its addition')
    return rows


def _weight(conv: Any) -> Tensor:
    """The weight that the convolution applies."""
    weight: Tensor = conv.effective_weight() if hasattr(conv, 'effective_weight') else conv.weight
    return weight.detach()


def _convs(block: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """The branch's convolutions and their names in the block."""
    return [(name, module) for name, module in branch_modules(block) if isinstance(module, nn.Conv2d)]


def singular_values(conv: nn.Conv2d) -> Tensor:
    """Singular values of the weight that the convolution applies, as a matrix (out, in kh kw), the largest first."""
    matrix = _weight(conv).double().flatten(1)
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix  # eigenvalues of the small one are much cheaper
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)


def _spectrum(block: nn.Module) -> tuple[float, float, str]:
    found = []
    for name, conv in _convs(block):
        values = singular_values(conv)
        found.append((values[0].item(), values[-1].item(), name))
    if not found:
        return math.nan, math.nan, ''
    worst = max(found, key=lambda item: item[0] / max(item[1], 1e-30))
    return max(item[0] for item in found), min(item[1] for item in found), worst[2]


def warnings(rows: Sequence[TrainedBlock]) -> list[str]:
    """A line for each block whose branch has hardly any share of its output."""
    return [
        f"{row.block}: its branch has {row.share:.1e} of the output's variance, so the block contributes "
        f'{"nothing" if row.share < DEAD else "next to nothing"}'
        for row in rows
        if not row.share >= WEAK
    ]


def last_weights(model: nn.Module, rows: Sequence[TrainedBlock], number: int = 3) -> tuple[str, Tensor]:
    """Name and weights of the last convolution of block ``number``, counted from 1."""
    row = rows[min(number, len(rows)) - 1]
    convs = _convs(model.get_submodule(row.block))
    if not convs:
        raise UserError(f'{row.block} has no convolution')
    name, conv = convs[-1]
    return f'{row.block}.{name}', _weight(conv).flatten().float()


def draw_trained(path: Path, networks: dict[str, tuple[nn.Module, Sequence[TrainedBlock]]], note: str) -> None:
    """Scalars, outputs that are not 0, variance of the outputs, and one convolution's weights, of one or two networks.

    Raises:
        UserError: matplotlib is missing, or the suffix is neither .png nor .svg.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.6, 7.6)
    (scalars, nonzero), (variances, weights) = figure.subplots(2, 2)
    count = len(networks)
    samples = {label: last_weights(model, rows) for label, (model, rows) in networks.items()}
    bound = max(float(values.abs().quantile(0.999)) for _, values in samples.values())
    for i, (label, (_, rows)) in enumerate(networks.items()):
        colour, blocks = COLOURS[i], range(1, len(rows) + 1)
        if any(row.scalar for row in rows):
            name = next(row.scalar for row in rows if row.scalar)
            scalars.plot(blocks, [row.value for row in rows], 'o-', color=colour, label=f'{label}: {name}')
        places = [block + (i - (count - 1) / 2) * 0.8 / count for block in blocks]
        nonzero.bar(places, [row.nonzero for row in rows], 0.8 / count, color=colour, label=label)
        variances.plot(blocks, [row.total_variance for row in rows], 'o-', color=colour, label=label)
        where, values = samples[label]
        density, edges = torch.histogram(values.cpu(), BINS, range=(-bound, bound), density=True)
        weights.stairs(density.numpy(), edges.numpy(), color=colour, label=f'{label}: {where}')
    for axes, title, ylabel in (
        (scalars, 'learned scalar or gain of the branch', 'value'),
        (nonzero, "block's output", 'share of elements that are not 0'),
        (variances, "block's output", 'variance over all elements'),
    ):
        axes.set(title=title, ylabel=ylabel, xlabel='residual block')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scalars.axhline(0, color='0.7', linewidth=0.8)
    nonzero.set_ylim(0, 1)
    variances.set_ylim(bottom=0)
    weights.set(title='weights of the last convolution of the third block', xlabel='weight', ylabel='density')
    for axes in (scalars, nonzero, variances, weights):
        axes.grid(alpha=0.25)
        axes.legend(fontsize='small', loc='upper center', bbox_to_anchor=(0.5, -0.16))
    figure.suptitle(f'Trained networks: {" and ".join(networks)}\n{note}', fontsize=11)
    save(figure, path)
