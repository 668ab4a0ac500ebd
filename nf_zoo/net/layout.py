"""The plan of a network, whatever its method: stem, stages, and the place of every residual block.

A :class:`Layout` gives each block its :class:`Site`. The constants of all methods that depend on the depth are
functions of a site's integers, so a block needs no other argument for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from timm.layers import make_divisible

from ..errors import UserError


@dataclass(frozen=True)
class Site:
    """The place of one residual block in the network. A block may depend on nothing else of the network.

    ``dilation`` is the pair (first 3x3 convolution, other convolutions). It replaces the stride where ``output_stride``
    keeps the maps large.
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
    padded: bool  # the layout's shortcut has no parameters: He et al.'s subsampling and zero channels
    drop_path: float = 0.0

    @property
    def transition(self) -> bool:
        """Whether the block changes the shape or the dilation, so that its shortcut can't be the identity."""
        return self.in_chs != self.out_chs or self.stride != 1 or self.dilation[0] != self.dilation[1]

    @property
    def convs(self) -> tuple[dict[str, Any], ...]:
        """Keyword arguments of ``nn.Conv2d`` for each convolution of the branch. Their number is the papers' m."""
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
    """The plan of a network: the stem, the blocks of every stage, and the head.

    Attributes:
        stem_kernel, stem_stride, stem_chs: Kernel size, stride and output channels of the first convolution.
        stem_pool: Whether a 3x3 max pooling of stride 2 follows it.
        stages: The sites of every stage's blocks.
        head_chs: Output channels of a 1x1 convolution after the last stage; 0 for no such convolution.
        stem_is_level: Whether the stem is a feature level of its own. It is none where its output has the resolution
            and the width of the first stage.
    """

    stem_kernel: int
    stem_stride: int
    stem_chs: int
    stem_pool: bool
    stages: tuple[tuple[Site, ...], ...]
    head_chs: int = 0
    stem_is_level: bool = True

    @property
    def stem_reduction(self) -> int:
        """Image size divided by the size of the stem's output."""
        return self.stem_stride * (2 if self.stem_pool else 1)

    @property
    def depths(self) -> list[int]:
        """Blocks of every stage."""
        return [len(stage) for stage in self.stages]

    @property
    def levels(self) -> int:
        """Number of feature levels: the stages, and the stem where it is one."""
        return len(self.stages) + self.stem_is_level


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


def _scaled(width: float, *channels: int) -> tuple[int, ...]:
    """``channels`` times ``width``, rounded to multiples of 8 as timm does; unchanged for ``width`` 1."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 64:
        raise UserError(f'width={width!r}: give a factor of the channels, above 0 and at most 64')
    return channels if width == 1 else tuple(make_divisible(width * chs, 8) for chs in channels)


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


def imagenet(*, depths: Sequence[int], bottleneck: bool = True, output_stride: int = 32, width: float = 1.0) -> Layout:
    """ResNet v1.5 for ImageNet: 7x7 stem, max pooling, four stages. A bottleneck has its stride in the 3x3 convolution.

    Args:
        depths: Blocks of each stage.
        bottleneck: 1x1, 3x3 and 1x1 convolutions in a block, else two 3x3 convolutions.
        output_stride: 8, 16 or 32; below 32 the later stages are dilated.
        width: Factor of all widths, which are then rounded to multiples of 8.

    Raises:
        UserError: a value that isn't possible.
    """
    mids = _scaled(width, 64, 128, 256, 512)
    widths = tuple(4 * c for c in mids) if bottleneck else mids
    stages = _stages(
        widths,
        mids,
        (1, 2, 2, 2),
        depths=depths,
        in_chs=mids[0],
        bottleneck=bottleneck,
        reduction=4,
        output_stride=output_stride,
    )
    return Layout(stem_kernel=7, stem_stride=2, stem_chs=mids[0], stem_pool=True, stages=stages)


imagenet_basic = partial(imagenet, bottleneck=False)


def cifar(*, depths: Sequence[int], output_stride: int = 32, width: float = 1.0) -> Layout:
    """The layout of He et al. (2016), section 4.2, for 32 px: 3x3 stem, three stages of widths 16, 32 and 64.

    With n blocks of two 3x3 convolutions in each stage it has 6n + 2 layers. Arguments as of :func:`imagenet`; the
    output stride is 4.
    """
    _refuse(output_stride, fixed=4)
    widths = _scaled(width, 16, 32, 64)
    stages = _stages(
        widths,
        widths,
        (1, 2, 2),
        depths=depths,
        in_chs=widths[0],
        bottleneck=False,
        reduction=1,
        output_stride=output_stride,
        padded=True,
    )
    return Layout(stem_kernel=3, stem_stride=1, stem_chs=widths[0], stem_pool=False, stages=stages, stem_is_level=False)


# Widths of NF-RegNet's stages before the multiplier 0.75, and their blocks (Brock, De, Smith 2021, appendix D).
REGNET_SIZES = {
    'b0': ((48, 104, 208, 440), (1, 3, 6, 6)),
    'b1': ((48, 104, 208, 440), (2, 4, 7, 7)),
    'b2': ((56, 112, 232, 488), (2, 4, 8, 8)),
    'b3': ((56, 128, 248, 528), (2, 5, 9, 9)),
    'b4': ((64, 144, 288, 616), (2, 6, 11, 11)),
    'b5': ((80, 168, 336, 704), (3, 7, 14, 14)),
}


def regnet(
    *, widths: Sequence[int], rounded: bool, depths: Sequence[int], output_stride: int = 32, width: float = 1.0
) -> Layout:
    """NF-RegNet (Brock, De, Smith 2021, appendices C and D): 3x3 stem without pooling, four strided stages, a head.

    A bottleneck is 2.25 times as wide as the block's input (the first one: as wide) and has groups of 8 channels. The
    head is a 1x1 convolution after the last stage.

    Args:
        widths: Widths of the stages before the multiplier 0.75.
        rounded: Round all widths to multiples of 8, as timm; else cut the bottlenecks to whole groups, as the paper.
        depths: Blocks of each stage.
        output_stride: 8, 16 or 32; below 32 the later stages are dilated.
        width: Factor of all widths, which are then rounded to multiples of 8.

    Raises:
        UserError: a value that isn't possible.
    """

    def widen(site: Site) -> Site:
        mid = site.in_chs * (1 if site.index == 0 else 2.25)
        mid_chs = make_divisible(mid, 8) if rounded else int(mid) // 8 * 8
        return replace(site, mid_chs=mid_chs, groups=mid_chs // 8)

    exact = _scaled(width, *(int(0.75 * chs) for chs in widths))
    chs = [make_divisible(n, 8) for n in exact] if rounded else exact
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
    head = 1280 * exact[-1] // 440 if width == 1 else make_divisible(1280 * exact[-1] / 440, 8)
    return Layout(stem_kernel=3, stem_stride=2, stem_chs=chs[0], stem_pool=False, stages=stages, head_chs=head)


def cifar_wide(
    *, depths: Sequence[int], bottleneck: bool = True, output_stride: int = 32, width: float = 1.0
) -> Layout:
    """The stages of :func:`imagenet` for 32 px: a 3x3 stem of stride 1 without pooling, an output stride of 8."""
    _refuse(output_stride, fixed=8)
    plan = imagenet(depths=depths, bottleneck=bottleneck, width=width)
    return replace(plan, stem_kernel=3, stem_stride=1, stem_pool=False, stem_is_level=False)


cifar_wide_basic = partial(cifar_wide, bottleneck=False)


def _refuse(output_stride: int, fixed: int) -> None:
    if output_stride != 32:
        raise UserError(f'output_stride is for the ImageNet layouts; this CIFAR layout has an output stride of {fixed}')
