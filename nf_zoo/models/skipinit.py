r"""SkipInit. De, Smith: "Batch normalization biases residual blocks towards the identity function in deep networks",
NeurIPS 2020, arXiv:2002.10444; the pre-activation network of Brock, De, Smith (2021), arXiv:2101.08692, section 5.1.

.. math:: x_l = h(x_{l-1}) + s_l F_l(z), \qquad z = a(x_{l-1})

F is three (CIFAR layouts: two) plain convolutions with the activation a between, s a learned scalar per block that
starts at 0. h is the identity of x or, where the shape changes, a strided 1x1 convolution of z (CIFAR layouts: He et
al.'s parameter-free shortcut of z). Every convolution but the stem's has a bias.

Init: s = 0, so that the network starts as the identity path; He fan-in normal, biases 0, classifier 0. Biases and
scalars are not decayed (Brock, De, Smith).

DeepMind's code draws the weights with variance 1 / fan-in, here it is 2 / fan-in, He's for ReLU. Squeeze-and-excite
stands before s.
"""

from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PreBlock
from ..layers.affine_conv import AffineConv2d
from ..net.layout import Site, cifar, conv_shape, imagenet, imagenet_basic
from ..net.network import ResNet, drop_path, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, register


class SkipInitBlock(nn.Module):
    """x' = h + s F(z), z = a(x)."""

    def __init__(
        self,
        site: Site,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(AffineConv2d, **dd)
        first, second, *third = site.convs
        self.downsample = shortcut(site, lambda s: conv(**conv_shape(s.in_chs, s.out_chs, 1, s.stride)))
        self.conv1 = conv(**first)
        self.conv2 = conv(**second)
        self.conv3 = conv(**third[0]) if third else None
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)
        self.skip_gain = nn.Parameter(torch.zeros(1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        z = x.relu()
        h = x if self.downsample is None else self.downsample(z)
        # s is a factor of the last convolution's weight: a product s F would keep F for backward.
        s = self.skip_gain if self.attn is None else None
        f = self.conv1(z).relu_()
        if self.conv3 is None:
            f = self.conv2(f, s)
        else:
            f = self.conv3(self.conv2(f).relu_(), s)
        if self.attn is not None:
            f = 2 * self.skip_gain * self.attn(f)
        return h + self.drop_path(f)

    def fuse(self) -> PreBlock:
        """The block at inference: s in the last convolution."""
        plain = reparameterize_model(self)
        convs = plain.conv1, plain.conv2, plain.conv3
        gain = self.skip_gain if self.attn is None else 2 * self.skip_gain
        return PreBlock(convs, plain.downsample, plain.attn, gain=gain)


class SkipInitResNet(ResNet):
    preact = True

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return AffineConv2d(**shape, bias=False, **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return SkipInitBlock(site, **kwargs)

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
