"""Plain forms of timm's own normalizer-free modules (nf_resnet, nf_regnet, nfnet, dm_nfnet, BiT)."""

from collections import OrderedDict
from typing import TypeAlias

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models.nfnet import NormFreeBlock
from torch import nn

from ..layers.std_conv import plain_conv, standardized
from .blocks import PreBlock
from .rules import attended, plain_act, scale_input

StdConv: TypeAlias = StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame


def plain_std_conv(conv: StdConv) -> nn.Conv2d:
    """The convolution whose weight is the standardised one. SAME padding that depends on the image size stays."""
    scaled = isinstance(conv, ScaledStdConv2d | ScaledStdConv2dSame)
    gain = (conv.gain * conv.scale).view(-1) if scaled else None
    plain = plain_conv(conv, standardized(conv.weight, gain, conv.eps), conv.bias)
    if not getattr(conv, 'same_pad', False):
        return plain
    shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups
    same = nn.utils.skip_init(Conv2dSame, *shape).train(conv.training)
    same.weight, same.bias = plain.weight, plain.bias
    return same


def plain_block(block: NormFreeBlock) -> PreBlock:
    """The plain block of ``block``, whose convolutions are plain already. It takes the parts of ``block``."""
    gain = block.alpha if block.attn_last is None else block.alpha * block.attn_gain
    conv2 = block.conv2
    if block.conv2b is not None:
        act, gamma = plain_act(block.act1)
        with torch.no_grad():
            scale_input(block.conv2b, gamma)
        conv2 = nn.Sequential(conv2, act, block.conv2b)
    convs = block.conv1, attended(conv2, block.attn or nn.Identity(), block.attn_gain), block.conv3
    shortcut = None
    if block.downsample is not None:
        shortcut = nn.Sequential(OrderedDict(pool=block.downsample.pool, conv=block.downsample.conv))
    constants = dict(gain=gain, scalar=block.skipinit_gain, act=block.act1, beta=block.beta)
    return PreBlock(convs, shortcut, block.attn_last, **constants)
