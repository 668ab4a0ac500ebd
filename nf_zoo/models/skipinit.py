r"""SkipInit. De, Smith: "Batch normalization biases residual blocks towards the identity function in deep networks",
NeurIPS 2020, arXiv:2002.10444; the pre-activation network of Brock, De, Smith (2021), arXiv:2101.08692, section 5.1.

.. math:: x_l = h(x_{l-1}) + s_l F_l(z), \qquad z = a(x_{l-1})

F is three (CIFAR layouts: two) plain convolutions with the activation a between them. Each block has a learned scalar
s. h is the identity of x; where the shape changes it is a strided 1x1 convolution of z (CIFAR layouts: He et al.'s
parameter-free shortcut of z). Every convolution but the stem's has a bias.

Init: s = 0, so that the network starts as its identity path; He fan-in normal, biases 0, classifier 0. Biases aren't
decayed (Brock, De, Smith, appendix B.1), nor are scalars (DeepMind's code).

DeepMind's code draws the weights with variance 1 / fan-in. Here it is 2 / fan-in, as He et al. derive for ReLU.
``scale=False`` removes s: the plain residual network, whose variance grows with every block. Squeeze-and-excite comes
before s.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.blocks import PreBlock
from ..layers.affine_conv import AffineConv2d
from ..net.branch import ResidualBlock, add_scalar
from ..net.layout import Site, cifar, imagenet, imagenet_basic
from ..net.network import ResNet
from ..net.parts import shortcut, strided_projection
from ..net.registry import CIFAR, IMAGENET, register


class SkipInitBlock(ResidualBlock):
    """x' = h + s F(z), z = a(x)."""

    skip_gain: Tensor

    def __init__(self, site: Site, scale: bool, attn_layer: str | None = None, **dd: Any):
        super().__init__()
        conv = partial(AffineConv2d, **dd)
        self.downsample = shortcut(site, strided_projection, conv)
        self.add_branch(site, conv, attn_layer=attn_layer, **dd)
        add_scalar(self, 'skip_gain', 0.0, learned=scale, **dd)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x)
        h = x if self.downsample is None else self.downsample(z)
        return h + self.scaled_branch(z, self.skip_gain)

    def fuse(self) -> PreBlock:
        """The block at inference, with s in the last convolution."""
        return PreBlock.of(self, scalar=self.skip_gain)


class SkipInitResNet(ResNet):
    """SkipInit.

    Args:
        scale: Whether each block has a learned scalar s; else s is 1.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.
    """

    preact = True

    def __init__(self, *args: Any, scale: bool = True, **kwargs: Any):
        super().__init__(
            *args, conv=partial(AffineConv2d, bias=False), block=partial(SkipInitBlock, scale=scale), **kwargs
        )

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, AffineConv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='relu')
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.zeros_(self.head.fc.weight)
            nn.init.zeros_(self.head.fc.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Biases and scalars."""
        return {name for name, _ in self.named_parameters() if name.endswith(('.bias', '.skip_gain'))}


register(
    SkipInitResNet,
    {
        'skipinit_resnet18': dict(layout=imagenet_basic, depths=(2, 2, 2, 2)),
        'skipinit_resnet34': dict(layout=imagenet_basic, depths=(3, 4, 6, 3)),
        'skipinit_resnet50': dict(layout=imagenet, depths=(3, 4, 6, 3)),
        'skipinit_resnet101': dict(layout=imagenet, depths=(3, 4, 23, 3)),
        'skipinit_resnet152': dict(layout=imagenet, depths=(3, 8, 36, 3)),
    },
    IMAGENET,
)
register(
    SkipInitResNet,
    {
        'skipinit_resnet20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
        'skipinit_resnet56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
        'skipinit_resnet110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
    },
    CIFAR,
)
