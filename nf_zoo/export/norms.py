"""The normalisation of activations in the form that ONNX Runtime runs fastest.

ONNX Runtime's convolutions and poolings work on channels in blocks; whatever else sees the features has them reordered
and back. So the moments come from global pooling, which takes the features as they lie, and what is left is a
difference and a product: of the convolution's input or, where a 1x1 convolution narrows it, of its output.
InstanceNormalization would be half the nodes and as fast with one image, but slower with several, and in the browser it
loses digits.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from ..convs import plain_conv
from ..input_norm import InputNormConv2d
from ..plain import Standardize


def for_onnx(network: nn.Module, commute: bool = True) -> nn.Module:
    """``network`` with each normalisation over an image's C, H, W in that form; a copy if there is one.

    ``commute``: normalise the output of convolutions, where it is the smaller.
    """

    def wanted(module: nn.Module) -> bool:
        return isinstance(module, InputNormConv2d | Standardize) and module.norm == 'sample'

    if not any(map(wanted, network.modules())):
        return network
    root = nn.ModuleList([deepcopy(network)])
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if wanted(module):
            root.set_submodule(name, _in_form(module, commute))
    return root[0]


def _in_form(module: nn.Module, commute: bool) -> nn.Module:
    if isinstance(module, Standardize):
        return _Norm(module.eps)
    assert isinstance(module, InputNormConv2d)
    plain = module.kernel_size == (1, 1) and module.padding == (0, 0)
    if commute and plain and module.out_channels < module.in_channels:
        return _ConvNorm(module)
    return nn.Sequential(_Norm(module.eps), plain_conv(module, module.weight, module.bias))


def _mean(x: Tensor) -> Tensor:
    """Of each image, (N, 1, 1, 1)."""
    return x.mean((2, 3), keepdim=True).mean(1, keepdim=True)


class _Norm(nn.Module):
    """With one image each node counts, also those of single numbers: the difference serves the variance as well."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - _mean(x)
        return centred * (_mean(centred * centred) + self.eps).pow(-0.5)


class _ConvNorm(nn.Module):
    """W (x - mu) / sigma + b as (W x) / sigma + (b - mu / sigma W 1): exact where nothing is padded."""

    def __init__(self, conv: InputNormConv2d):
        super().__init__()
        self.conv = plain_conv(conv, conv.weight, None)
        self.eps = conv.eps
        with torch.no_grad():
            self.total = nn.Parameter(conv.weight.sum((1, 2, 3)).view(-1, 1, 1))
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias.view(-1, 1, 1).clone())

    def forward(self, x: Tensor) -> Tensor:
        mean = _mean(x)
        # Rounding may leave less than the nothing that the variance of a blank image is.
        rstd = ((_mean(x * x) - mean * mean).relu() + self.eps).pow(-0.5)
        return self.conv(x) * rstd + (self.bias - mean * rstd * self.total)
