"""The normalisation of activations in the form that ONNX Runtime and AOTInductor run fastest.

Of a block's convolutions only the last divides its input by sigma. The others give sigma times what they gave: ReLU
lets a positive factor through, the next normalisation takes it away. What is left of theirs are two means, which
AOTInductor takes in one pass, and a sum, which ONNX Runtime makes a part of a convolution.

ONNX Runtime's convolutions, poolings, and sums and products of equal shapes work on channels in blocks; whatever else
sees the features has them reordered and back. So its means begin with a pooling (onnx_file.py).
InstanceNormalization would be half the nodes, but slower with several images, and in the browser it loses digits.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.input_norm import InputNormConv2d, Standardize
from ..layers.std_conv import plain_conv


def in_means(network: nn.Module, defer: bool = True) -> nn.Module:
    """A folded ``network`` with each normalisation over an image's C, H, W in that form; any other as it is.

    ``defer``: leave the division by sigma to the next normalisation, where there is one.
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
    """Of each image, (N, 1, 1, 1)."""
    return x.mean((1, 2, 3), keepdim=True)


class _Norm(nn.Module):
    """With one image each node counts, also those of single numbers: the difference serves the variance as well."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, factor: float | Tensor = 1.0) -> Tensor:
        """``factor``: the square of what x is multiplied by, (N, 1, 1, 1)."""
        centred = x - _mean(x)
        return centred * (_mean(centred * centred) + self.eps * factor).pow(-0.5)


class _DeferredConv(nn.Module):
    """sigma (W (x - mu) / sigma + b) as W x + (sigma b - mu W 1), the latter a convolution of maps of mu and sigma."""

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
        """``factor`` as of :class:`_Norm`; that of the output too."""
        mean = _mean(x)
        # Rounding may leave less than the nothing that the variance of a blank image is.
        var = (_mean(x * x) - mean * mean).relu() + self.eps * factor
        maps = torch.cat((mean, var.sqrt()), 1).expand(-1, -1, *x.shape[2:])
        conv = self.conv
        shift = F.conv2d(maps, self.shift, None, conv.stride, conv.padding, conv.dilation)
        # ONNX Runtime lets the first of the two add, in place, where each thread finds what it has just written.
        return shift + conv(x), var


class _DeferringBlock(nn.Module):
    """A block of whose convolutions only the last divides its input by sigma; takes them out of ``block``."""

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
