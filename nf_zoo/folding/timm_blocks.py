"""timm's own normalizer-free parts (nf_resnet, nf_regnet, nfnet, dm_nfnet, BiT) as plain ones."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.layers.create_act import _ACT_FN_DEFAULT, create_act_layer
from timm.models.nfnet import GammaAct, NormFreeBlock
from torch import nn

from ..layers.std_conv import plain_conv, standardized
from .blocks import PreBlock, attended, scale_input

StdConv: TypeAlias = StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame


def plain_std_conv(conv: StdConv) -> nn.Conv2d:
    """The convolution with the standardised weight as its weight; SAME padding stays where it depends on the size."""
    scaled = isinstance(conv, ScaledStdConv2d | ScaledStdConv2dSame)
    gain = (conv.gain * conv.scale).view(-1) if scaled else None
    plain = plain_conv(conv, standardized(conv.weight, gain, conv.eps), conv.bias)
    if not getattr(conv, 'same_pad', False):
        return plain
    shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups
    same = nn.utils.skip_init(Conv2dSame, *shape).train(conv.training)
    same.weight, same.bias = plain.weight, plain.bias
    return same


def plain_act(act: GammaAct) -> Callable[..., nn.Module]:
    """Factory of the activation without its gamma."""
    name = next(name for name, function in _ACT_FN_DEFAULT.items() if function is act.act_fn)
    return partial(create_act_layer, name)


def plain_block(block: NormFreeBlock) -> PreBlock:
    """``block`` at inference, after its convolutions have become plain: its constants are in them. It is used up."""
    gain: float | torch.Tensor = block.alpha
    if block.attn_last is not None:
        gain *= block.attn_gain
    if block.skipinit_gain is not None:
        gain = gain * block.skipinit_gain
    act: Callable[..., nn.Module] = type(block.act1)
    gamma = 1.0
    if isinstance(block.act1, GammaAct):
        act, gamma = plain_act(block.act1), block.act1.gamma
    conv2 = block.conv2
    if block.conv2b is not None:
        with torch.no_grad():
            scale_input(block.conv2b, gamma)
        conv2 = nn.Sequential(conv2, act(inplace=True), block.conv2b)
    convs = block.conv1, attended(conv2, block.attn, block.attn_gain), block.conv3
    shortcut = None
    if block.downsample is not None:
        shortcut = nn.Sequential()
        shortcut.add_module('pool', block.downsample.pool)
        shortcut.add_module('conv', block.downsample.conv)
    return PreBlock(convs, shortcut, block.attn_last, gain=gain, act=act, gamma=gamma, beta=block.beta)
