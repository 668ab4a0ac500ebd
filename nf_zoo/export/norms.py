"""The normalisation of activations in the form that ONNX Runtime and AOTInductor run fastest.

In a block, only the last convolution divides its input by sigma. The output of each other convolution is then sigma
times larger. ReLU passes a positive factor on, and the next normalisation removes it. Each of these convolutions needs
two means, which AOTInductor computes in one pass, and a sum, which ONNX Runtime makes a part of a convolution.

ONNX Runtime stores channels in blocks for its convolutions, poolings, and sums and products of equal shapes. Before any
other operator it reorders the features, and afterwards it reorders them back. So a mean begins with a pooling
(onnx_file.py). InstanceNormalization would need half as many nodes, but it is slower with several images and less
precise in the browser.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.input_norm import InputNormConv2d, Standardize
from ..layers.std_conv import plain_conv


def in_means(network: nn.Module, defer: bool = True) -> nn.Module:
    """Bring each normalisation over an image's C, H, W into that form; a network without one is returned as it is.

    Args:
        network: A folded network. It isn't changed.
        defer: Leave the division by sigma to the next normalisation where there is one.
    """
    if not hasattr(network, 'is_folded') or not any(map(_wanted, network.modules())):
        return network
    root = nn.ModuleList([deepcopy(network)])
    blocks: dict[nn.Module, nn.Module] = {}
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if defer and isinstance(module, PostBlock) and _wanted(module.conv2) and _wanted(module.last()):
            blocks[module] = _DeferringBlock(module)
        if module in blocks:
            root.set_submodule(name, blocks[module])
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if isinstance(module, Standardize) and _wanted(module):
            root.set_submodule(name, _Norm(module.eps))
        elif isinstance(module, InputNormConv2d) and _wanted(module):
            plain = plain_conv(module, module.weight, module.bias)
            root.set_submodule(name, nn.Sequential(_Norm(module.eps), plain))
    return root[0]


def _wanted(module: nn.Module) -> bool:
    return isinstance(module, InputNormConv2d | Standardize) and module.norm == 'sample'


def _mean(x: Tensor) -> Tensor:
    """The mean of each image, (N, 1, 1, 1)."""
    return x.mean((1, 2, 3), keepdim=True)


class _Norm(nn.Module):
    """At batch 1 the cost is per node, so x - mean is computed once and used for the variance too."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, factor: float | Tensor = 1.0) -> Tensor:
        """``factor`` is the square of the number that x is multiplied by, (N, 1, 1, 1)."""
        centred = x - _mean(x)
        return centred * (_mean(centred * centred) + self.eps * factor).pow(-0.5)


class _DeferredConv(nn.Module):
    """sigma (W (x - mu) / sigma + b) as W x + (sigma b - mu W 1). The bracket convolves maps of mu and sigma."""

    def __init__(self, conv: InputNormConv2d):
        super().__init__()
        self.conv = plain_conv(conv, conv.weight, None)
        self.eps = conv.eps
        shift = conv.weight.new_zeros(conv.out_channels, 2, *conv.kernel_size)
        shift[:, 0] = -conv.weight.detach().sum(1)
        if conv.bias is not None:
            rows, columns = conv.kernel_size
            shift[:, 1, rows // 2, columns // 2] = conv.bias.detach()
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor, factor: float | Tensor) -> tuple[Tensor, Tensor]:
        """``factor`` is that of :class:`_Norm`. Returns the output and its factor."""
        mean = _mean(x)
        # A blank image has variance 0; rounding can make the difference slightly negative.
        var = (_mean(x * x) - mean * mean).relu() + self.eps * factor
        maps = torch.cat((mean, var.sqrt()), 1).expand(-1, -1, *x.shape[2:])
        conv = self.conv
        shift = F.conv2d(maps, self.shift, None, conv.stride, conv.padding, conv.dilation)
        # ONNX Runtime adds in place of the first operand, where each thread finds what it has just written.
        return shift + conv(x), var


class _DeferringBlock(nn.Module):
    """A block in which only the last convolution divides its input by sigma. It takes the convolutions of ``block``."""

    def __init__(self, block: PostBlock):
        super().__init__()
        *convs, last = block.convs()
        self.block = block
        self.convs = nn.ModuleList(_DeferredConv(c) if isinstance(c, InputNormConv2d) else c for c in convs)
        assert isinstance(last, InputNormConv2d)
        self.norm = _Norm(last.eps)
        self.last = plain_conv(last, last.weight, last.bias)
        block.conv1, block.conv2, block.conv3 = nn.Identity(), nn.Identity(), None

    def forward(self, x: Tensor) -> Tensor:
        z = self.block.norm(x)
        h = x if self.block.downsample is None else self.block.downsample(z)
        factor: float | Tensor = 1.0
        for conv in self.convs:
            if isinstance(conv, _DeferredConv):
                z, factor = conv(z, factor)
            else:
                z = conv(z)
            z = self.block.act(z)
        f = self.block.scaled(self.last(self.norm(z, factor)))
        return self.block.act(self.block.merge(h, f, False))
