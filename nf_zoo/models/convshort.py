r"""IdShort, LearnScalar, ConvShort. Civitelli, Sortino, Lapucci, Bagattini, Galvan: "A robust initialization of
residual blocks for effective ResNet training without batch normalization", arXiv:2112.12299, section 3.

.. math:: x_l = c\, (h(x_{l-1}) + F_l(z)), \qquad z = a(x_{l-1}), \quad c = \sqrt{1/2}

F is two or three plain convolutions without bias, the activation a between. h is x (IdShort), s x with a learned scalar
s that starts at 1 (LearnScalar), or a strided 1x1 convolution of z (ConvShort; in all three where the shape changes).
In the 6n + 2 layout IdShort and LearnScalar take He et al.'s parameter-free shortcut of z where the shape changes.

Init: He fan-out normal (equation 2), which keeps the variance of the gradients; then each layer's weights are
standardised to zero mean and the rule's deviation, exactly. ``init='brock'`` is what the paper compares with (equation
3): it keeps the variance of the features, and the gradients explode. Classifier as in torch.

The paper writes W x for the convolutional shortcut. Its derivation, in which equation 2 gives W a gain of 1, holds
behind a ReLU only, so W taps z here. Equation 3 is for each channel, so 'brock' standardises each output channel, and
thereby the layer. Squeeze-and-excite stands after the last convolution.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest
from ..folding.blocks import PreBlock
from ..net.layout import Site, cifar, cifar_wide, cifar_wide_basic, conv_shape, imagenet, imagenet_basic
from ..net.network import ResNet, drop_path, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, register

C = 0.5**0.5


class IdShortBlock(nn.Module):
    """x' = c (h + F(z)), z = a(x), h = x."""

    def __init__(
        self,
        site: Site,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(nn.Conv2d, bias=False, **dd)
        first, second, *third = site.convs
        self.c = C
        self.downsample = self.shortcut(site, lambda s: conv(**conv_shape(s.in_chs, s.out_chs, 1, s.stride)))
        self.conv1 = conv(**first)
        self.conv2 = conv(**second)
        self.conv3 = conv(**third[0]) if third else None
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)

    @staticmethod
    def shortcut(site: Site, projection: Callable[[Site], nn.Module]) -> nn.Module | None:
        """What the shortcut does to z; None where the shortcut takes x."""
        return shortcut(site, projection)

    def identity(self, x: Tensor) -> Tensor:
        """The shortcut where it isn't a convolution."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        z = x.relu()
        h = self.identity(x) if self.downsample is None else self.downsample(z)
        f = self.conv2(self.conv1(z).relu_())
        if self.conv3 is not None:
            f = self.conv3(f.relu_())
        if self.attn is not None:
            f = 2 * self.attn(f)
        return self.c * (h + self.drop_path(f))

    def fuse(self) -> PreBlock:
        """The block at inference: c in the last convolutions, as the identity's factor where that is the shortcut."""
        plain = deepcopy(self)
        convs = plain.conv1, plain.conv2, plain.conv3
        skip = self.c if self.downsample is not None else self.identity(plain.conv1.weight.new_tensor(self.c))
        return PreBlock(convs, plain.downsample, plain.attn, skip, self.c if self.attn is None else 2 * self.c)


class LearnScalarBlock(IdShortBlock):
    """x' = c (h + F(z)), z = a(x), h = s x."""

    def __init__(self, site: Site, **kwargs: Any):
        super().__init__(site, **kwargs)
        if self.downsample is None:
            self.scale = nn.Parameter(self.conv1.weight.new_ones(1))

    def identity(self, x: Tensor) -> Tensor:
        return self.scale * x


class ConvShortBlock(IdShortBlock):
    """x' = c (h + F(z)), z = a(x), h = W z."""

    @staticmethod
    def shortcut(site: Site, projection: Callable[[Site], nn.Module]) -> nn.Module:
        return projection(site)


def _draw(weight: Tensor, variance: float, dims: tuple[int, ...]) -> None:
    nn.init.normal_(weight)
    deviation, mean = torch.std_mean(weight, dims, correction=0, keepdim=True)
    weight.sub_(mean).mul_(variance**0.5 / deviation)


def fan_out_(weight: Tensor) -> None:
    """Equation 2: variance 2 / (k^2 out), standardised over the layer."""
    _draw(weight, 2 / weight[:, 0].numel(), (0, 1, 2, 3))


def brock_(weight: Tensor) -> None:
    """Equation 3: variance 2 / (1 - 1 / pi) / (k^2 in), standardised over each output channel."""
    _draw(weight, 2 / (1 - 1 / math.pi) / weight[0].numel(), (1, 2, 3))


INITS: dict[str, Callable[[Tensor], None]] = {'fan_out': fan_out_, 'brock': brock_}


class IdShortResNet(ResNet):
    """Method keyword: ``init``, 'fan_out' or 'brock'."""

    preact = True
    block_type: type[IdShortBlock] = IdShortBlock

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return nn.Conv2d(**shape, bias=False, **dd)

    def block(self, site: Site, init: str = 'fan_out', **kwargs: Any) -> nn.Module:
        return self.block_type(site, **kwargs)

    def init_weights(self) -> None:
        init = self.block_args.get('init', 'fan_out')
        if init not in INITS:
            raise UserError(f"init='{init}': use one of {', '.join(INITS)}{nearest(str(init), INITS)}")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                INITS[init](module.weight)


class LearnScalarResNet(IdShortResNet):
    block_type = LearnScalarBlock


class ConvShortResNet(IdShortResNet):
    block_type = ConvShortBlock


for _net, _family in (
    (IdShortResNet, 'idshort_resnet'),
    (LearnScalarResNet, 'learnscalar_resnet'),
    (ConvShortResNet, 'convshort_resnet'),
):
    register(
        _net,
        {
            f'{_family}18': dict(layout=imagenet_basic, depths=(2, 2, 2, 2)),
            f'{_family}50': dict(layout=imagenet, depths=(3, 4, 6, 3)),
            f'{_family}101': dict(layout=imagenet, depths=(3, 4, 23, 3)),
        },
        IMAGENET,
    )
    register(
        _net,
        {
            f'{_family}20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
            f'{_family}56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
            f'{_family}110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
        },
        CIFAR,
    )
    register(
        _net,
        {
            f'{_family}18_cifar': dict(layout=cifar_wide_basic, depths=(2, 2, 2, 2)),
            f'{_family}50_cifar': dict(layout=cifar_wide, depths=(3, 4, 6, 3)),
            f'{_family}101_cifar': dict(layout=cifar_wide, depths=(3, 4, 23, 3)),
        },
        dict(CIFAR, pool_size=(4, 4)),
    )
