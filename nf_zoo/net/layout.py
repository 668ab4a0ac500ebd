"""Where each residual block of a network stands.

A layout is the plan of a network without its method: stem, stages and, for every residual block, its :class:`Site`.
The depth-dependent constants of all methods are functions of a site's integers, so a block needs nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from timm.layers import make_divisible

from ..errors import UserError


@dataclass(frozen=True)
class Site:
    """One residual block's place in the network: all that a method may depend on.

    ``dilation`` is the pair (first, other) of dilations that replaces the stride under a reduced output stride.
    """

    in_chs: int
    mid_chs: int
    out_chs: int
    bottleneck: bool  # 1x1, 3x3, 1x1 instead of 3x3, 3x3
    stride: int
    dilation: tuple[int, int]
    groups: int
    stage: int
    index: int  # k: blocks before this one
    depth: int  # L: blocks in the network
    since: int  # n: additions since the last transition block, that block's own included
    padded: bool  # the layout's shortcut has no parameters: subsample, zero channels (He et al.)
    drop_path: float = 0.0

    @property
    def transition(self) -> bool:
        """Whether the block changes the shape (or the dilation), so that its shortcut cannot be the identity."""
        return self.in_chs != self.out_chs or self.stride != 1 or self.dilation[0] != self.dilation[1]

    @property
    def convs(self) -> tuple[dict[str, Any], ...]:
        """The branch's convolutions, as keyword arguments of ``nn.Conv2d``. Their number is the papers' m."""
        if not self.bottleneck:
            return (
                conv_shape(self.in_chs, self.mid_chs, 3, self.stride, self.dilation[0]),
                conv_shape(self.mid_chs, self.out_chs, 3, 1, self.dilation[1]),
            )
        return (
            conv_shape(self.in_chs, self.mid_chs, 1),
            conv_shape(self.mid_chs, self.mid_chs, 3, self.stride, self.dilation[0], self.groups),
            conv_shape(self.mid_chs, self.out_chs, 1),
        )


@dataclass(frozen=True)
class Layout:
    """A network's plan.

    ``stem``: kernel, stride and width of the first conv, and whether a 3x3 max pool follows. ``head_chs``: width of a
    1x1 conv behind the last stage, 0 for none.
    """

    stem_kernel: int
    stem_stride: int
    stem_chs: int
    stem_pool: bool
    stages: tuple[tuple[Site, ...], ...]
    head_chs: int = 0

    @property
    def stem_reduction(self) -> int:
        return self.stem_stride * (2 if self.stem_pool else 1)

    @property
    def depths(self) -> list[int]:
        return [len(stage) for stage in self.stages]


def conv_shape(
    in_chs: int, out_chs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> dict[str, Any]:
    """Keyword arguments of an ``nn.Conv2d`` whose symmetric padding keeps ceil(size / stride)."""
    return dict(
        in_channels=in_chs,
        out_channels=out_chs,
        kernel_size=kernel,
        stride=stride,
        padding=dilation * (kernel - 1) // 2,
        dilation=dilation,
        groups=groups,
    )


def _stages(
    widths: Sequence[int],
    mids: Sequence[int],
    strides: Sequence[int],
    *,
    depths: Sequence[int],
    in_chs: int,
    bottleneck: bool,
    reduction: int,
    output_stride: int,
    padded: bool = False,
) -> tuple[tuple[Site, ...], ...]:
    if len(depths) != len(widths) or any(not isinstance(n, int) or n < 1 for n in depths):
        raise UserError(f'depths={tuple(depths)}: give {len(widths)} positive integers, the blocks of each stage')
    if output_stride not in (8, 16, 32):
        raise UserError(f'output_stride={output_stride}: use 8, 16 or 32')
    stages = []
    index = since = 0
    dilation = 1
    for stage, (width, mid, stride, depth) in enumerate(zip(widths, mids, strides, depths, strict=True)):
        if reduction >= output_stride and stride > 1:
            dilation, stride = dilation * stride, 1
        reduction *= stride
        first = 1 if dilation in (1, 2) else 2
        sites = []
        for block in range(depth):
            site = Site(
                in_chs=in_chs,
                mid_chs=mid,
                out_chs=width,
                bottleneck=bottleneck,
                stride=stride if block == 0 else 1,
                dilation=(first if block == 0 else dilation, dilation),
                groups=1,
                stage=stage,
                index=index,
                depth=sum(depths),
                since=since,
                padded=padded,
            )
            sites.append(site)
            since = 1 if block == 0 and stage > 0 else since + 1
            index, in_chs = index + 1, width
        stages.append(tuple(sites))
    return tuple(stages)


def imagenet(*, depths: Sequence[int], bottleneck: bool = True, output_stride: int = 32) -> Layout:
    """ResNet v1.5 for ImageNet: 7x7 stem, max pool, four stages; a bottleneck's stride is in its 3x3 conv."""
    mids = (64, 128, 256, 512)
    widths = tuple(4 * c for c in mids) if bottleneck else mids
    stages = _stages(
        widths,
        mids,
        (1, 2, 2, 2),
        depths=depths,
        in_chs=64,
        bottleneck=bottleneck,
        reduction=4,
        output_stride=output_stride,
    )
    return Layout(stem_kernel=7, stem_stride=2, stem_chs=64, stem_pool=True, stages=stages)


imagenet_basic = partial(imagenet, bottleneck=False)


def cifar(*, depths: Sequence[int], output_stride: int = 32) -> Layout:
    """He et al. (2016), section 4.2: 3x3 stem, three stages of two-conv blocks, widths 16, 32, 64; 6n + 2 layers."""
    _refuse(output_stride, fixed=4)
    widths = (16, 32, 64)
    stages = _stages(
        widths,
        widths,
        (1, 2, 2),
        depths=depths,
        in_chs=16,
        bottleneck=False,
        reduction=1,
        output_stride=output_stride,
        padded=True,
    )
    return Layout(stem_kernel=3, stem_stride=1, stem_chs=16, stem_pool=False, stages=stages)


def regnet(*, widths: Sequence[int], rounded: bool, depths: Sequence[int], output_stride: int = 32) -> Layout:
    """NF-RegNet (Brock, De, Smith 2021, appendices C and D): 3x3 stem without pool, four strided stages, a head conv.

    A bottleneck is 2.25 times as wide as the block's input (the first one: as wide) and has groups of 8 channels.

    Args:
        widths: The stages' widths before the multiplier 0.75.
        rounded: Round all widths to multiples of 8, as timm; else cut bottlenecks to whole groups, as the paper.
        depths: Blocks of each stage.
        output_stride: 8, 16 or 32.
    """

    def widen(site: Site) -> Site:
        mid = site.in_chs * (1 if site.index == 0 else 2.25)
        mid_chs = make_divisible(mid, 8) if rounded else int(mid) // 8 * 8
        return replace(site, mid_chs=mid_chs, groups=mid_chs // 8)

    exact = [int(0.75 * width) for width in widths]
    chs = [make_divisible(width, 8) for width in exact] if rounded else exact
    stages = _stages(
        chs,
        chs,
        (2, 2, 2, 2),
        depths=depths,
        in_chs=chs[0],
        bottleneck=True,
        reduction=2,
        output_stride=output_stride,
    )
    stages = tuple(tuple(widen(site) for site in stage) for stage in stages)
    head = 1280 * exact[-1] // 440
    return Layout(stem_kernel=3, stem_stride=2, stem_chs=chs[0], stem_pool=False, stages=stages, head_chs=head)


def cifar_wide(*, depths: Sequence[int], bottleneck: bool = True, output_stride: int = 32) -> Layout:
    """The ImageNet ResNet's stages for 32 px: a 3x3 stem with 64 channels, no pooling, an output stride of 8."""
    _refuse(output_stride, fixed=8)
    plan = imagenet(depths=depths, bottleneck=bottleneck)
    return replace(plan, stem_kernel=3, stem_stride=1, stem_pool=False)


cifar_wide_basic = partial(cifar_wide, bottleneck=False)


def _refuse(output_stride: int, fixed: int) -> None:
    if output_stride != 32:
        raise UserError(f'output_stride is for the ImageNet layouts; this CIFAR layout has an output stride of {fixed}')
