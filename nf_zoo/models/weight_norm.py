r"""Weight-normalised ResNet. Gaur, Folz, Dengel: "Training deep neural networks without batch normalization",
arXiv:2008.07970, sections 3.2 and 3.3.

.. math:: x_l = \mathrm{relu}(h(x_{l-1}) + F_l(x_{l-1})), \qquad W' = g\, v / |v|

The ResNet of He et al. without batch normalization. Every convolution (of F, of the shortcut, the stem) has a
normalised weight and a bias, so that there are as many parameters as with batch normalization. h is the identity;
where the shape changes it is a strided 1x1 convolution (6n + 2 layouts: He et al.'s parameter-free shortcut). The
paper's other half is :meth:`WNResNet.clip_grad`: gradients are clipped to a norm that changes with the epoch.

Init: He fan-out normal, g = |v|, biases 0, classifier as in torch. At first the network is therefore the plain one
without normalization, in which the variance of features and gradients grows with every block.

Weights of a ResNet with batch normalization are converted when they are loaded: v is the original filter,
g = |v| gamma / sigma, and the bias takes up the rest (:func:`nf_zoo.layers.std_conv.without_batch_norm`). The outputs
stay the same, so the tags of timm's ResNets are tags of these networks too.

The paper leaves open: the init (here that of torchvision's network, wrapped); whether the stem and the shortcuts are
normalised and have biases; where its dropout is, and at what rate (here ``drop_conv_rate``, 0 by default: of single
activations, before every convolution of F but the first); the logarithm in the clipping, which it calls both reducing
and increasing (here increasing); weight decay. ``weight_norm=False`` gives plain convolutions with biases: the
network that the paper trains with clipping alone. Squeeze-and-excite follows the last convolution.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.std_conv import WeightNormConv2d
from ..net.batch_norm_weights import weight_norm_weights
from ..net.branch import ResidualBlock
from ..net.layout import Site, cifar, imagenet, imagenet_basic
from ..net.network import ResNet
from ..net.parts import check_rates, shortcut, strided_projection
from ..net.registry import CIFAR, IMAGENET, register


class WNBlock(ResidualBlock):
    """x' = relu(h(x) + F(x)), with weight-normalised convolutions in F and h."""

    def __init__(
        self, site: Site, conv: type[nn.Conv2d], drop_conv_rate: float, attn_layer: str | None = None, **dd: Any
    ):
        super().__init__()
        make = partial(conv, **dd)
        self.downsample = shortcut(site, strided_projection, make)
        drop = nn.Dropout(drop_conv_rate) if drop_conv_rate else None
        self.add_branch(site, make, drop=drop, attn_layer=attn_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        return (h + self.branch(x)).relu()

    def fuse(self) -> PostBlock:
        """The block at inference."""
        return PostBlock.of(self)


class WNResNet(ResNet):
    """Weight-normalised ResNet.

    Args:
        weight_norm: Whether the weights are normalised; else the convolutions are plain ones with biases.
        drop_conv_rate: Dropout rate before every convolution of F but the first.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.
    """

    def __init__(self, *args: Any, weight_norm: bool = True, drop_conv_rate: float = 0.0, **kwargs: Any):
        check_rates(drop_conv_rate=drop_conv_rate)
        conv = WeightNormConv2d if weight_norm else nn.Conv2d
        super().__init__(*args, conv=conv, block=partial(WNBlock, conv=conv, drop_conv_rate=drop_conv_rate), **kwargs)

    checkpoint_filter = staticmethod(weight_norm_weights)

    def init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and '.attn.' not in name:
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
                if isinstance(module, WeightNormConv2d):
                    module.gain.copy_(module.norm())
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def clip_grad(self, epoch: int) -> float:
        """Norm to which all gradients together are clipped in ``epoch``, counted from 0: 5 (1 + ln(1 + epoch))."""
        return 5 * (1 + math.log1p(epoch))


register(
    WNResNet,
    {
        'wn_resnet18': dict(layout=imagenet_basic, depths=(2, 2, 2, 2)),
        'wn_resnet34': dict(layout=imagenet_basic, depths=(3, 4, 6, 3)),
        'wn_resnet50': dict(layout=imagenet, depths=(3, 4, 6, 3)),
        'wn_resnet101': dict(layout=imagenet, depths=(3, 4, 23, 3)),
        'wn_resnet152': dict(layout=imagenet, depths=(3, 8, 36, 3)),
    },
    IMAGENET,
    batch_normalized={f'wn_resnet{depth}': f'resnet{depth}' for depth in (18, 34, 50, 101, 152)},
)
register(
    WNResNet,
    {
        'wn_resnet20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
        'wn_resnet56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
        'wn_resnet110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
    },
    CIFAR,
)
