"""The papers' signal propagation plots, computed anew: of Brock (2021), Hoedt (2022) and Civitelli (2021), et al.

The networks are the zoo's, timm's pre-activation ResNet with batch normalization in either order, and timm's ResNet.
By default they have a quarter of the papers' width and smaller images: every claim here holds for every width, and the
curves agree with those of the full size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from ..errors import UserError, nearest
from ..train.curves import COLOURS
from .figure_nets import (
    DEEP,
    STAGES,
    Size,
    bn_relu,
    classical,
    halve_attention,
    he_nf_resnet,
    nf_resnet,
    postact_resnet,
    preact_resnet,
    relu,
    relu_bn,
    without_pooling,
)
from .plots import Curve, Panel, draw
from .signal import signal_propagation
from .verdict import additions

BLUE, RED, GREEN, PINK, CYAN, ORANGE, BLACK = COLOURS
RELU_VARIANCE = 1 - 1 / math.pi  # of W relu(x) with He's weights, x ~ N(0, 1)


class Figure(NamedTuple):
    """``panels`` measures the networks. ``claim``: what the paper says of its picture, in short."""

    title: str
    claim: str
    full: Size
    quick: Size
    panels: Callable[[Size], list[list[Panel]]]


# ---- curves


def _measured(
    label: str,
    make: Callable[[], nn.Module],
    size: Size,
    colour: str,
    line: tuple[float, float] | None = None,
    style: str = '-',
    backward: bool = False,
    change: Callable[[Any], Any] | None = None,
) -> Curve:
    """Build and measure a network, awake. ``line``: the theory's variance start + slope n, n additions in the stage."""
    with torch.random.fork_rng():
        torch.manual_seed(size.seed)
        model = make()
    if change:
        change(model)
    x = torch.randn(size.batch, 3, size.pixels, size.pixels, generator=torch.Generator().manual_seed(size.seed))
    rows = signal_propagation(model, x, awake=True, backward=backward, seed=size.seed)
    expected = [line[0], *(line[0] + line[1] * n for n in additions(rows))] if line else None
    return Curve(label, rows, colour, expected, style)


def _three(curves: Sequence[Curve], log: bool = False) -> list[list[Panel]]:
    fields = ('squared_mean', 'variance', 'branch_variance')
    return [
        [
            Panel(curves, [(field, '')], title=f'({letter})', log=log)
            for letter, field in zip('abc', fields, strict=True)
        ]
    ]


def _bn_before(size: Size, depths: Sequence[int] = DEEP, colour: str = BLUE) -> Curve:
    label, line = 'batch norm, BN-ReLU-Conv, He', (RELU_VARIANCE, RELU_VARIANCE)
    return _measured(label, lambda: preact_resnet(size, depths, bn_relu), size, colour, line)


def _bn_behind(size: Size, depths: Sequence[int] = DEEP, colour: str = RED) -> Curve:
    # With He's 2 / fan-in the branch has variance 2; the paper's curve has 1.
    make = lambda: preact_resnet(size, depths, relu_bn, gain=1.0)  # noqa: E731
    return _measured('batch norm, ReLU-BN-Conv, 1 / fan-in', make, size, colour, (1.0, 1.0))


def _scaled_ws(size: Size, colour: str = CYAN, **kwargs: Any) -> Curve:
    return _measured('NF, scaled WS, alpha = 1', lambda: nf_resnet(size, **kwargs), size, colour, (1.0, 1.0))


def _brock1(size: Size) -> list[list[Panel]]:
    return _three([_bn_before(size), _bn_behind(size)])


def _brock2(size: Size) -> list[list[Panel]]:
    he = _measured('NF, He, alpha = 1', lambda: he_nf_resnet(size), size, GREEN)
    return _three([_bn_behind(size), he, _scaled_ws(size)])


def _brock6(size: Size) -> list[list[Panel]]:
    make = partial(timm.create_model, 'skipinit_resnet50', depths=DEEP, width=size.width)
    return _three([_measured('no normalisation, He', make, size, BLUE)], log=True)


def _brock7(size: Size) -> list[list[Panel]]:
    linear = partial(bn_relu, act=nn.Identity)
    normed = lambda: without_pooling(preact_resnet(size, DEEP, linear, gain=1.0))  # noqa: E731
    free = lambda: without_pooling(nf_resnet(size, act_layer='identity'))  # noqa: E731
    return _three(
        [
            _measured('batch norm, linear', normed, size, BLUE, (1.0, 1.0)),
            _measured('NF, linear, alpha = 1', free, size, GREEN, (1.0, 1.0)),
        ]
    )


def _brock8(size: Size) -> list[list[Panel]]:
    low = _measured('gamma = sqrt 2', lambda: nf_resnet(size, gamma=2**0.5), size, RED)
    return _three([low, _scaled_ws(size)._replace(label='gamma = 1.713')], log=True)


def _brock9(size: Size) -> list[list[Panel]]:
    make = partial(nf_resnet, size, attn_layer='se')
    return _three(
        [
            _measured('squeeze-and-excite', make, size, RED, change=halve_attention),
            _measured('squeeze-and-excite, times 2', make, size, BLUE, (1.0, 1.0)),
        ],
        log=True,
    )


def _brock10(size: Size) -> list[list[Panel]]:
    make = partial(timm.create_model, 'fixup_resnet50', depths=DEEP, width=size.width)
    return _three([_measured('Fixup', make, size, BLUE)])


def _brock11(size: Size) -> list[list[Panel]]:
    return _three([_measured('ResNet v1, batch norm', lambda: postact_resnet(size, DEEP), size, BLUE)])


def _twin(curves: Sequence[Curve], title: str, log: bool = False) -> Panel:
    return Panel(curves, [('squared_mean', '--'), ('variance', '-')], [('branch_variance', ':')], title=title, log=log)


def _hoedt4(size: Size) -> list[list[Panel]]:
    depths = STAGES['50']
    none = _measured('no BN', lambda: preact_resnet(size, depths, relu), size, RED)
    normed = _bn_before(size, depths)._replace(label='BN -> ReLU', expected=None)
    return [[_twin([none, normed], 'with and without BN', log=True), _twin([normed], 'with BN')]]


def _hoedt5(size: Size) -> list[list[Panel]]:
    depths = STAGES['50']
    normed = _bn_behind(size, depths, BLUE)._replace(label='ReLU -> BN', expected=None)
    he = _measured('NF, He', lambda: he_nf_resnet(size, depths), size, RED)
    centred = _scaled_ws(size, GREEN, depths=depths)._replace(label='NF, centred weights', expected=None)
    return [[_twin([normed, he], 'NF with He weights'), _twin([normed, centred], 'NF with centred weights')]]


def _civitelli(size: Size, layers: Sequence[str]) -> list[list[Panel]]:
    return [_civitelli_row(size, number) for number in layers]


def _civitelli_row(size: Size, layers: str) -> list[Panel]:
    curves = []
    for normalised, colour in ((False, BLACK), (True, ORANGE)):
        for mode, style in (('fan_in', '-'), ('fan_out', '--')):
            label = f'{"classical + BN" if normalised else "classical"}, {mode.replace("_", "-")}'
            make = partial(classical, size, layers, mode, normalised)
            curves.append(_measured(label, make, size, colour, style=style, backward=True))
    for name, colour in (('idshort', BLUE), ('learnscalar', GREEN), ('convshort', PINK)):
        for init, label, style in (('fan_out', 'eq. 2', '-'), ('brock', 'eq. 3 (Brock)', '--')):
            make = partial(timm.create_model, f'{name}_resnet{layers}_cifar', init=init, width=size.width)
            curve = _measured(f'{name}, {label}', make, size, colour, style=style, backward=True)
            # LearnScalar starts as IdShort: its curves lie on those of IdShort.
            curves.append(curve._replace(wide=name == 'idshort'))
    options: dict[str, Any] = dict(log=True, stem=False, transitions=True)
    return [
        Panel(curves, [('variance', '')], title=f'ResNet-{layers}: forward', **options),
        Panel(curves, [('gradient_variance', '')], title=f'ResNet-{layers}: backward', relative=True, **options),
    ]


_FULL, _QUICK = Size(1.0, 512), Size()
_HOEDT_FULL, _HOEDT_QUICK = Size(1.0, 224, 8), Size(0.25, 192, 8)
_CIFAR_FULL, _CIFAR_QUICK = Size(1.0, 32, 8), Size(0.25, 32, 8)

FIGURES: dict[str, Figure] = {
    'brock1': Figure(
        'ResNetV2-600 with batch normalization in two orders (Brock et al., figure 1)',
        'The variance grows linearly with depth in a stage and is reset at each transition; the branch has 0.68 or 1.',
        _FULL,
        _QUICK,
        _brock1,
    ),
    'brock2': Figure(
        'Normalizer-free ResNetV2-600 beside batch normalization (Brock et al., figure 2)',
        'With scaled weight standardisation the curves are almost those of batch normalization.',
        _FULL,
        _QUICK,
        _brock2,
    ),
    'brock6': Figure(
        'ResNetV2-600 without normalisation (Brock et al., figure 6)',
        'All three properties grow exponentially.',
        _FULL,
        _QUICK,
        _brock6,
    ),
    'brock7': Figure(
        'Linear ResNetV2-600 without max pooling (Brock et al., figure 7)',
        'The squared means stay close to 0, and the branch fluctuates around 1.',
        _FULL,
        _QUICK,
        _brock7,
    ),
    'brock8': Figure(
        'NF-ResNet-600 with the gain sqrt 2 (Brock et al., figure 8)',
        'The signal attenuates in each stage, and is scaled down further at each transition.',
        _FULL,
        _QUICK,
        _brock8,
    ),
    'brock9': Figure(
        'NF-ResNet-600 with squeeze-and-excite (Brock et al., figure 9)',
        'Unmodified squeeze-and-excite attenuates the signal.',
        _FULL,
        _QUICK,
        _brock9,
    ),
    'brock10': Figure(
        'Fixup ResNet-600 (Brock et al., figure 10)',
        'The variance is constant in a stage, and is reset across stages.',
        _FULL,
        _QUICK,
        _brock10,
    ),
    'brock11': Figure(
        'ResNet-600 v1 with batch normalization (Brock et al., figure 11)',
        'The branch has variance 1 throughout; the output is reset at transitions.',
        _FULL,
        _QUICK,
        _brock11,
    ),
    'hoedt4': Figure(
        'Pre-activation ResNet-50 with and without batch normalization (Hoedt et al., figure 4)',
        'Batch normalization turns exponential growth into linear growth.',
        _HOEDT_FULL,
        _HOEDT_QUICK,
        _hoedt4,
    ),
    'hoedt5': Figure(
        'NF-ResNet-50 beside batch normalization (Hoedt et al., figure 5)',
        'Scaling alone leaves a mean shift; centred weights remove it.',
        _HOEDT_FULL,
        _HOEDT_QUICK,
        _hoedt5,
    ),
    'civitelli2': Figure(
        'Ten initialisations of ResNet-50 and ResNet-101 (Civitelli et al., figure 2)',
        'Equation 2 keeps the gradients; equation 3 keeps the features, and the gradients explode.',
        _CIFAR_FULL,
        _CIFAR_QUICK,
        partial(_civitelli, layers=('50', '101')),
    ),
    'civitelli6': Figure(
        'Ten initialisations of ResNet-18 (Civitelli et al., figure 6)',
        'As figure 2, but weaker.',
        _CIFAR_FULL,
        _CIFAR_QUICK,
        partial(_civitelli, layers=('18',)),
    ),
}


def curves_of(panels: Sequence[Sequence[Panel]]) -> dict[str, Curve]:
    """The networks of a figure by their labels; those of several rows of panels have the row's title before it."""
    several = len(panels) > 1
    found: dict[str, Curve] = {}
    for row in panels:
        for panel in row:
            prefix = f'{panel.title.partition(":")[0]}, ' if several else ''
            found.update({prefix + curve.label: curve for curve in panel.curves})
    return found


def figure_size(name: str, full: bool = False, **given: Any) -> Size:
    """The size of a figure, quick or the paper's, with the fields in ``given`` changed.

    Raises:
        UserError: no such figure.
    """
    if name not in FIGURES:
        raise UserError(f"no figure '{name}': there are {', '.join(FIGURES)}{nearest(name, FIGURES)}")
    return replace(FIGURES[name].full if full else FIGURES[name].quick, **given)


def measure_figure(name: str, size: Size | None = None) -> list[list[Panel]]:
    """Measure the networks of a figure, at its quick size by default. Raises UserError: no such figure."""
    size = size or figure_size(name)
    return FIGURES[name].panels(size)


def draw_figure(name: str, path: Path, panels: Sequence[Sequence[Panel]], size: Size) -> None:
    """Write a measured figure as .png or .svg."""
    note = f'width x{size.width:g}, {size.batch} images N(0, 1) of {size.pixels} px, seed {size.seed}'
    draw(path, FIGURES[name].title, panels, note)
