"""The papers' signal propagation plots, computed anew: Brock (2021), Hoedt (2022), Civitelli (2021) and their coauthors.

The networks are the zoo's, timm's pre-activation ResNet with batch normalization in either order, and timm's ResNet.
By default they have a quarter of the papers' width and smaller images: every claim here holds for every width, and the
curves agree with those of the full size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import create_conv2d
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from ..errors import UserError, nearest
from ..layers.std_conv import WSConv2d
from .plots import COLOURS, Curve, Panel, draw
from .signal import signal_propagation
from .verdict import additions, verdict

BLUE, RED, GREEN, PINK, CYAN, ORANGE, BLACK = COLOURS
DEEP = (50, 50, 50, 50)  # ResNet-600
RELU_VARIANCE = 1 - 1 / math.pi  # of W relu(x) with He's weights, x ~ N(0, 1)
CIFAR_STAGES = {'18': (2, 2, 2, 2), '50': (3, 4, 6, 3), '101': (3, 4, 23, 3)}


@dataclass(frozen=True)
class Size:
    """How large a figure's networks and images are. ``width`` is a factor of all widths."""

    width: float = 0.25
    pixels: int = 192
    batch: int = 2
    seed: int = 0

    def channels(self, *widths: int) -> tuple[int, ...]:
        return tuple(max(8, int(width * self.width)) for width in widths)


class Figure(NamedTuple):
    """``panels`` measures the networks. ``claim``: what the paper says of its picture, in short."""

    title: str
    claim: str
    full: Size
    quick: Size
    panels: Callable[[Size], list[list[Panel]]]


# ---- initialisation


def he_(model: nn.Module, mode: str = 'fan_in', gain: float = 2.0, standardised: bool = False) -> nn.Module:
    """Draw every convolution from N(0, gain / fan), in place.

    ``standardised``: each layer's weights get exactly that mean and variance (Civitelli et al., section 4).
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.weight[0].numel() if mode == 'fan_in' else module.weight[:, 0].numel()
                nn.init.normal_(module.weight)
                if standardised:
                    deviation, mean = torch.std_mean(module.weight, correction=0)
                    module.weight.sub_(mean).div_(deviation)
                module.weight.mul_((gain / fan) ** 0.5)
    return model


# ---- networks


def _bn_relu(chs: int, act: Callable[..., nn.Module] = nn.ReLU, **dd: Any) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(chs, **dd), act())


def _relu_bn(chs: int, act: Callable[..., nn.Module] = nn.ReLU, **dd: Any) -> nn.Module:
    return nn.Sequential(act(), nn.BatchNorm2d(chs, **dd))


def _relu(chs: int, **dd: Any) -> nn.Module:
    return nn.ReLU()


def preact_resnet(size: Size, depths: Sequence[int], norm: Callable[..., nn.Module], gain: float = 2.0) -> nn.Module:
    """timm's ResNetV2 with plain convolutions of variance gain / fan-in; ``norm`` gives what precedes each of them."""
    model = ResNetV2(
        tuple(depths),
        channels=size.channels(256, 512, 1024, 2048),
        stem_chs=size.channels(64)[0],
        conv_layer=create_conv2d,
        norm_layer=_as_function(norm),
    )
    return he_(model, gain=gain)


def _as_function(norm: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """timm takes a plain function as what makes a normalisation with its activation."""

    def layer(chs: int, **kwargs: Any) -> nn.Module:
        return norm(chs, **{key: value for key, value in kwargs.items() if key in ('device', 'dtype')})

    return layer


def nf_resnet(size: Size, depths: Sequence[int] = DEEP, alpha: float = 1.0, **kwargs: Any) -> nn.Module:
    """The zoo's NF-ResNet in the paper's form, with another alpha; its branches are woken when it is measured."""
    model: Any = timm.create_model('dm_nf_resnet50', depths=depths, width=size.width, **kwargs)
    since = 0
    for stage in model.stages:
        for n, block in enumerate(stage):
            block.alpha, block.beta = alpha, (1 + since * alpha**2) ** -0.5
            since = 1 if n == 0 and stage is not model.stages[0] else since + 1
    return model


def he_nf_resnet(size: Size, depths: Sequence[int] = DEEP) -> nn.Module:
    """An NF-ResNet with plain ReLU and He's weights instead of scaled weight standardisation."""
    model = nf_resnet(size, depths, gamma=1.0)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, WSConv2d):
                setattr(module, name, child.fuse())
    return he_(model)


def without_pooling(model: Any) -> nn.Module:
    """The stem's max pooling replaced by taking every second pixel, which keeps the mean at 0."""
    model.stem.pool = nn.MaxPool2d(1, stride=2)
    return model


def postact_resnet(size: Size, depths: Sequence[int]) -> nn.Module:
    """timm's ResNet (v1): batch normalization behind each convolution, ReLU behind the sum."""
    return ResNet(Bottleneck, tuple(depths), channels=size.channels(64, 128, 256, 512), zero_init_last=False)


def classical(size: Size, layers: str, mode: str, normalised: bool) -> nn.Module:
    """Civitelli et al.'s classical ResNet for 32 px, c = 1 with identity shortcuts, with or without BN."""
    if normalised:
        chs, stem = (64, 128, 256, 512) if layers == '18' else (256, 512, 1024, 2048), size.channels(64)[0]
        model: Any = ResNetV2(
            CIFAR_STAGES[layers],
            channels=size.channels(*chs),
            stem_chs=stem,
            basic=layers == '18',
            bottle_ratio=1.0 if layers == '18' else 0.25,
            conv_layer=create_conv2d,
            norm_layer=_as_function(_bn_relu),
        )
        model.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False))
        return he_(model, mode, standardised=True)
    model = timm.create_model(f'idshort_resnet{layers}_cifar', width=size.width)
    for stage in model.stages:
        for block in stage:
            block.c = 1.0
    return he_(model, mode, standardised=True)


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
    return _measured(label, lambda: preact_resnet(size, depths, _bn_relu), size, colour, line)


def _bn_behind(size: Size, depths: Sequence[int] = DEEP, colour: str = RED) -> Curve:
    # With He's 2 / fan-in the branch has variance 2; the paper's curve has 1.
    make = lambda: preact_resnet(size, depths, _relu_bn, gain=1.0)  # noqa: E731
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
    linear = partial(_bn_relu, act=nn.Identity)
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


def halve_attention(model: nn.Module) -> None:
    """Take the factor 2 away from every squeeze-and-excite module, in place."""
    for name, module in model.named_modules():
        if name.rpartition('.')[2].startswith('attn'):
            module.register_forward_hook(lambda _, args, y: y / 2)


def _brock10(size: Size) -> list[list[Panel]]:
    make = partial(timm.create_model, 'fixup_resnet50', depths=DEEP, width=size.width)
    return _three([_measured('Fixup', make, size, BLUE)])


def _brock11(size: Size) -> list[list[Panel]]:
    return _three([_measured('ResNet v1, batch norm', lambda: postact_resnet(size, DEEP), size, BLUE)])


def _twin(curves: Sequence[Curve], title: str, log: bool = False) -> Panel:
    return Panel(curves, [('squared_mean', '--'), ('variance', '-')], [('branch_variance', ':')], title=title, log=log)


def _hoedt4(size: Size) -> list[list[Panel]]:
    depths = CIFAR_STAGES['50']
    none = _measured('no BN', lambda: preact_resnet(size, depths, _relu), size, RED)
    normed = _bn_before(size, depths)._replace(label='BN -> ReLU', expected=None)
    return [[_twin([none, normed], 'with and without BN', log=True), _twin([normed], 'with BN')]]


def _hoedt5(size: Size) -> list[list[Panel]]:
    depths = CIFAR_STAGES['50']
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


def measure_figure(name: str, full: bool = False, **size: Any) -> list[list[Panel]]:
    """Measure the networks of a figure. ``size``: fields of `Size` to change. Raises UserError: an unknown name."""
    if name not in FIGURES:
        raise UserError(f"no figure '{name}'{nearest(name, FIGURES)}; there are {', '.join(FIGURES)}")
    figure = FIGURES[name]
    return figure.panels(replace(figure.full if full else figure.quick, **size))


def draw_figure(name: str, path: Path, panels: Sequence[Sequence[Panel]], size: Size) -> None:
    """Write a measured figure as .png or .svg."""
    note = f'width x{size.width:g}, {size.batch} images N(0, 1) of {size.pixels} px, seed {size.seed}'
    draw(path, FIGURES[name].title, panels, note)


def verdicts(panels: Sequence[Sequence[Panel]]) -> dict[str, str]:
    """For each network of a figure its `verdict`."""
    return {label: verdict(curve.rows) for label, curve in curves_of(panels).items()}
