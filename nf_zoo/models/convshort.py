r"""IdShort, LearnScalar, ConvShort. Civitelli, Sortino, Lapucci, Bagattini, Galvan: "A robust initialization of
residual blocks for effective ResNet training without batch normalization", arXiv:2112.12299, section 3.

.. math:: x_l = c\, (h(x_{l-1}) + F_l(z)), \qquad z = a(x_{l-1}), \quad c = \sqrt{1/2}

F is two or three plain convolutions without bias, with the activation a between them. The shortcut h is x (IdShort),
s x with a learned scalar s (LearnScalar), or a strided 1x1 convolution of z (ConvShort). Where the shape changes, all
three have the convolution (6n + 2 layouts: IdShort and LearnScalar have He et al.'s parameter-free shortcut of z).

Init: He fan-out normal (equation 2), which keeps the variance of the gradients within a stage (each strided
transition divides it by about 4); then the weights of each layer are standardised to have exactly mean 0 and the
rule's deviation. s = 1, classifier as in torch. ``init='fan_in'`` is the same with He's fan-in rule. ``init='brock'``
is the rule that the paper compares with (equation 3): it keeps the variance of the features, and the gradients
explode.

The paper writes W x for the convolutional shortcut. In its derivation equation 2 gives W a gain of 1, which holds
only after a ReLU, so W takes z here. Equation 3 is a rule for each channel, so 'brock' standardises each output
channel, and with it the layer. Squeeze-and-excite follows the last convolution.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest
from ..folding.blocks import PreBlock
from ..layers.affine_conv import ReluConv2d
from ..net.branch import ResidualBlock, add_scalar
from ..net.layout import Site, cifar, cifar_wide, cifar_wide_basic, imagenet, imagenet_basic
from ..net.network import ResNet
from ..net.parts import shortcut, strided_projection
from ..net.registry import CIFAR, IMAGENET, register

C = 0.5**0.5


class IdShortBlock(ResidualBlock):
    """x' = c (h + F(z)), z = a(x), h = x."""

    first: type[nn.Conv2d] = nn.Conv2d  # the first convolution of F where h is x or s x

    def __init__(self, site: Site, attn_layer: str | None = None, **dd: Any):
        super().__init__()
        conv = partial(nn.Conv2d, bias=False, **dd)
        self.c = C
        self.downsample = self.make_shortcut(site, conv)
        first = conv if self.downsample is not None else partial(self.first, bias=False, **dd)
        self.add_branch(site, conv, first, attn_layer=attn_layer, **dd)

    @staticmethod
    def make_shortcut(site: Site, conv: Callable[..., nn.Module]) -> nn.Module | None:
        """The shortcut of z; None for one of x."""
        return shortcut(site, strided_projection, conv)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x)
        h = x if self.downsample is None else self.downsample(z)
        return self.c * (h + self.branch(z))

    def fuse(self) -> PreBlock:
        """The block at inference, with c in the last convolutions. c stays a factor of an identity shortcut."""
        return PreBlock.of(self, skip=self.c, gain=self.c)


class LearnScalarBlock(IdShortBlock):
    """x' = c (h + F(z)), z = a(x), h = s x.

    The gradient of s needs x, and that of F's first convolution needs z. Where both are needed, that convolution takes
    x and computes z itself, again in backward, so that x alone is kept.
    """

    first = ReluConv2d
    scale: Tensor

    def __init__(self, site: Site, attn_layer: str | None = None, **dd: Any):
        super().__init__(site, attn_layer, **dd)
        if self.downsample is None:
            add_scalar(self, 'scale', 1.0, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            s = self.scale.to(x.dtype)  # a float32 s would make float32 of the features of autocast
            return self.c * (s * x + self.branch(x))
        z = self.act(x)
        return self.c * (self.downsample(z) + self.branch(z))

    def fuse(self) -> PreBlock:
        """The block at inference, with c in the last convolutions. c s stays a factor of an identity shortcut."""
        return PreBlock.of(self, skip=self.c if self.downsample else self.c * self.scale, gain=self.c)


class ConvShortBlock(IdShortBlock):
    """x' = c (h + F(z)), z = a(x), h = W z."""

    @staticmethod
    def make_shortcut(site: Site, conv: Callable[..., nn.Module]) -> nn.Module | None:
        return strided_projection(site, conv)


def _draw(weight: Tensor, variance: float, dims: tuple[int, ...]) -> None:
    nn.init.normal_(weight)
    deviation, mean = torch.std_mean(weight, dims, correction=0, keepdim=True)
    weight.sub_(mean).mul_(variance**0.5 / deviation)


def fan_out_(weight: Tensor) -> None:
    """Equation 2: variance 2 / (k^2 out), standardised over the layer."""
    _draw(weight, 2 / weight[:, 0].numel(), (0, 1, 2, 3))


def fan_in_(weight: Tensor) -> None:
    """He's rule for the features: variance 2 / (k^2 in), standardised over the layer."""
    _draw(weight, 2 / weight[0].numel(), (0, 1, 2, 3))


def brock_(weight: Tensor) -> None:
    """Equation 3: variance 2 / (1 - 1 / pi) / (k^2 in), standardised over each output channel."""
    _draw(weight, 2 / (1 - 1 / math.pi) / weight[0].numel(), (1, 2, 3))


INITS: dict[str, Callable[[Tensor], None]] = {'fan_out': fan_out_, 'fan_in': fan_in_, 'brock': brock_}


class IdShortResNet(ResNet):
    """IdShort.

    Args:
        init: Rule of the initial weights: 'fan_out', 'fan_in' or 'brock'.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.

    Raises:
        UserError: another rule.
    """

    preact = True
    block_type: type[IdShortBlock] = IdShortBlock

    def __init__(self, *args: Any, init: str = 'fan_out', **kwargs: Any):
        if init not in INITS:
            raise UserError(f"init='{init}': use one of {', '.join(INITS)}{nearest(str(init), INITS)}")
        self.init = init  # before the base class, which calls init_weights
        super().__init__(*args, conv=partial(nn.Conv2d, bias=False), block=self.block_type, **kwargs)

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                INITS[self.init](module.weight)


class LearnScalarResNet(IdShortResNet):
    """LearnScalar. Arguments as of :class:`IdShortResNet`."""

    block_type = LearnScalarBlock


class ConvShortResNet(IdShortResNet):
    """ConvShort. Arguments as of :class:`IdShortResNet`."""

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
