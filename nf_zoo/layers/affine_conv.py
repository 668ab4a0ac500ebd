"""Convolutions with scalar factors and with biases before and after them, and the plain modules that they become.

A product or a sum with features would be kept for backward. Factors and biases therefore go into the convolution's
weight and bias wherever nothing is padded.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recomputed import recomputed_conv
from .std_conv import plain_conv, scaled


class FactorConv2d(nn.Conv2d):
    """A convolution that multiplies its weight and its bias by a scalar instead of multiplying its output.

    Autograd would save the output of a multiplication for backward.
    """

    def scaled(self, factor: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias times ``factor``; as they are without one."""
        return scaled(factor, self.weight, self.bias)


def _before(pre: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The bias with which a convolution without padding gives conv(x + pre)."""
    shift = (weight * pre.view(1, -1, 1, 1)).sum((1, 2, 3))
    return shift if bias is None else bias + shift


def _add(x: Tensor, pre: Tensor | None) -> Tensor:
    return x if pre is None else x + pre.to(x.dtype).view(-1, 1, 1)


def shifted_conv(
    x: Tensor,
    pre: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """conv2d(x + pre, weight, bias, ...), with the memory of conv2d(x, ...). Autograd would save the sum."""
    if not torch.jit.is_scripting():
        return recomputed_conv(_add, x, pre, weight, bias, (stride, padding, dilation, groups))
    return F.conv2d(_add(x, pre), weight, bias, stride, padding, dilation, groups)


torch.fx.wrap('shifted_conv')  # fx can't look into an autograd.Function


class AffineConv2d(FactorConv2d):
    """factor * conv(x + pre) + post: a plain convolution whose block owns the factor and the biases."""

    def forward(
        self, x: Tensor, factor: Tensor | None = None, pre: Tensor | None = None, post: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            x: Features (N, in, H, W).
            factor: A scalar (1,).
            pre, post: Biases: one scalar (1,), or one number for each channel (in,) and (out,).
        """
        weight, bias = self.scaled(factor)
        if pre is not None and self.kernel_size == (1, 1):
            bias = _before(pre, weight, bias)
        if post is not None:
            bias = post.expand(self.out_channels) if bias is None else bias + post
        if pre is not None and self.kernel_size != (1, 1):
            conv = (self.stride, self.padding, self.dilation, self.groups)
            return shifted_conv(x, pre, weight, bias, *conv)  # type: ignore[arg-type]
        return self._conv_forward(x, weight, bias)

    def fuse(self) -> nn.Conv2d:
        """The plain convolution. Factor and biases belong to the block, whose ``fuse`` adds them."""
        return plain_conv(self, self.weight, self.bias)


class PreBiasConv2d(FactorConv2d):
    """W (x + b): a convolution with one bias b for each input channel, ``pre_bias`` (in,), and none behind it."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, bias=False)
        self.pre_bias = nn.Parameter(self.weight.new_zeros(self.in_channels))

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``x`` (N, in, H, W); ``factor``: a scalar (1,) that multiplies the output."""
        weight, _ = self.scaled(factor)
        if self.kernel_size == (1, 1):
            return self._conv_forward(x, weight, _before(self.pre_bias, weight, None))
        conv = (self.stride, self.padding, self.dilation, self.groups)
        return shifted_conv(x, self.pre_bias, weight, None, *conv)  # type: ignore[arg-type]

    def fuse(self) -> nn.Module:
        """A plain convolution. Where it pads, a :class:`Shift` adds the bias before it."""
        return biased(plain_conv(self, self.weight, None), self.pre_bias)


def _relu(x: Tensor, _: Tensor | None) -> Tensor:
    return x.relu()


def relu_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """conv2d(relu(x), weight, bias, ...). Autograd keeps x instead of relu(x)."""
    if not torch.jit.is_scripting():
        return recomputed_conv(_relu, x, None, weight, bias, (stride, padding, dilation, groups))
    return F.conv2d(_relu(x, None), weight, bias, stride, padding, dilation, groups)


torch.fx.wrap('relu_conv')


class ReluConv2d(nn.Conv2d):
    """W relu(x) + b, for a block that needs x itself again. Autograd keeps x, and not relu(x) beside it."""

    def forward(self, x: Tensor) -> Tensor:
        conv = (self.stride, self.padding, self.dilation, self.groups)
        return relu_conv(x, self.weight, self.bias, *conv)  # type: ignore[arg-type]

    def fuse(self) -> nn.Conv2d:
        """The plain convolution, without the ReLU, which the block at inference has."""
        return plain_conv(self, self.weight, self.bias)


class Scale(nn.Module):
    """gain * x with one gain: a factor that no convolution could take."""

    def __init__(self, gain: Tensor):
        super().__init__()
        self.gain = nn.Parameter(gain.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class Shift(nn.Module):
    """x + b, with one b or one for each channel. b is stored as (-1, 1, 1), so that the sum needs no reshape."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.detach().view(-1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class ShiftedReLU(nn.Module):
    """relu(x - b) + b = max(x, b), with one b or one for each channel, stored as (-1, 1, 1)."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias.detach().view(-1, 1, 1).clone())

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """``overwrite``: compute in the memory of ``x``."""
        bias = self.bias.to(x.dtype)
        return x.clamp_min_(bias) if overwrite else torch.maximum(x, bias)


def add_bias(module: nn.Module, bias: Tensor) -> None:
    """Add ``bias``, (1,) or (out,), to the output of ``module``: a convolution, or a sequence that ends with one."""
    conv = module[-1] if isinstance(module, nn.Sequential) else module
    assert isinstance(conv, nn.Conv2d)
    bias = bias.detach().to(conv.weight.dtype).expand(conv.out_channels)
    conv.bias = nn.Parameter(bias.clone() if conv.bias is None else conv.bias.detach() + bias)


def bias_and_conv(module: nn.Module) -> tuple[Tensor, nn.Conv2d] | None:
    """The bias (1,) or (in,) before a convolution, and the convolution, of what :func:`biased` gave. Else None."""
    if not isinstance(module, nn.Sequential) or not isinstance(module[0], Shift):
        return None
    assert isinstance(module[1], nn.Conv2d)
    return module[0].bias.flatten(), module[1]


@torch.no_grad()
def biased(conv: nn.Module, before: Tensor, after: Tensor | None = None) -> nn.Module:
    """conv(x + before) + after as plain modules. Changes ``conv``.

    Zero padding must not receive the bias. So before a convolution that pads, the bias stays a :class:`Shift`.

    Args:
        conv: A plain convolution.
        before: One scalar (1,), or one number for each input channel (in,).
        after: One scalar (1,), or one number for each output channel (out,).
    """
    if after is not None:
        add_bias(conv, after)
    assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
    if any(conv.padding):
        return nn.Sequential(OrderedDict(bias=Shift(before), conv=conv)).train(conv.training)
    add_bias(conv, _before(before, conv.weight, None))
    return conv
