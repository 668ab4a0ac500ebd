r"""Weight-normalised ResNet. Gaur, Folz, Dengel: "Training deep neural networks without batch normalization",
arXiv:2008.07970, sections 3.2 and 3.3.

.. math:: x_l = \mathrm{relu}(h(x_{l-1}) + F_l(x_{l-1})), \qquad W' = g\, v / |v|

The ResNet of He et al. without batch normalization; every convolution (F's, the shortcut's, the stem's) has a
normalised weight and a bias, so that there are as many parameters as with batch normalization. h is the identity or,
where the shape changes, a strided 1x1 convolution (CIFAR layouts: He et al.'s parameter-free shortcut).
:meth:`WNResNet.clip_grad` is the paper's other half: gradients are clipped to a norm that changes with the epoch.

Init: He fan-out normal, g = |v|, biases 0, classifier as in torch: at first the network is the plain one without
normalization, in which the variance of features and gradients grows with every block.

Weights of a ResNet with batch normalization are converted when they are loaded: v is the original filter,
g = |v| gamma / sigma, and the bias takes up the rest (:func:`nf_zoo.layers.std_conv.without_batch_norm`). The outputs
stay the same, so timm's tags of the ResNets are tags of these networks too.

The paper leaves open: the init (this is what a wrapper around torchvision's network gives); whether the stem and the
shortcuts are normalised and biased too; where its dropout is, and at what rate (here ``drop_conv_rate``, 0 by default:
of single activations, before every convolution of F but the first); the logarithm in the clipping, which it calls both
reducing and increasing (here increasing); weight decay. Squeeze-and-excite stands after the last convolution.
"""

import math
from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.std_conv import WeightNormConv2d
from ..net.batch_norm_weights import weight_norm_weights
from ..net.layout import Site, cifar, conv_shape, imagenet, imagenet_basic
from ..net.network import ResNet, drop_path, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, register


class WNBlock(nn.Module):
    """x' = relu(h(x) + F(x)), F of two or three weight-normalised convolutions with ReLU between."""

    def __init__(
        self,
        site: Site,
        drop_conv_rate: float = 0.0,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(WeightNormConv2d, **dd)
        first, second, *third = site.convs
        self.downsample = shortcut(site, lambda s: conv(**conv_shape(s.in_chs, s.out_chs, 1, s.stride)))
        self.conv1 = conv(**first)
        self.conv2 = conv(**second)
        self.conv3 = conv(**third[0]) if third else None
        self.drop = nn.Dropout(drop_conv_rate) if drop_conv_rate else nn.Identity()
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        f = self.conv2(self.drop(self.conv1(x).relu_()))
        if self.conv3 is not None:
            f = self.conv3(self.drop(f.relu_()))
        if self.attn is not None:
            f = 2 * self.attn(f)
        return (h + self.drop_path(f)).relu_()

    def fuse(self) -> PostBlock:
        """The block at inference."""
        plain = reparameterize_model(self)
        convs = plain.conv1, plain.conv2, plain.conv3
        return PostBlock(convs, plain.downsample, plain.attn, gain=1.0 if self.attn is None else 2.0)


class WNResNet(ResNet):
    """Method keyword: ``drop_conv_rate``."""

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return WeightNormConv2d(**shape, **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return WNBlock(site, **kwargs)

    checkpoint_filter = staticmethod(weight_norm_weights)

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, WeightNormConv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
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
