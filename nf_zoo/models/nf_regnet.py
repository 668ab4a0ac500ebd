r"""NF-RegNet, in timm's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 4 and 5.2, appendices C and D.

.. math:: x_l = h(x_{l-1}) + \alpha F_l(z), \qquad z = \beta_l\, a(x_{l-1}), \quad \beta_l = (1 + n \alpha^2)^{-1/2}

The block is NF-ResNet's (see :mod:`.nf_resnet`) with four differences: the activation a is SiLU, F is an inverted
bottleneck, its 3x3 convolution is grouped, and squeeze-and-excite, times 2, follows this convolution. The stem is a
3x3 convolution. Every stage starts with a transition block, whose shortcut is average pooling and a 1x1 convolution.
A last 1x1 convolution widens the features before the activation and the head.

Init: as of NF-ResNet.

timm's form, with whose weights this is drop-in, differs from the paper's (:mod:`.dm_nf_regnet`) as it does for
NF-ResNet, and in two more points: all widths, also those of squeeze-and-excite, are multiples of 8, and
squeeze-and-excite has a plain ReLU. This page differs from timm in stochastic depth, which here never divides by the
keep rate (appendix B.2).
"""

from functools import partial
from typing import Any

import torch
from timm.layers import make_divisible
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PreBlock
from ..folding.rules import attended
from ..layers.std_conv import GAMMA, ScaledStdConv2d
from ..net.branch import ResidualBlock
from ..net.layout import REGNET_SIZES, Site, regnet
from ..net.network import ResNet
from ..net.parts import drop_path, pooled_projection, shortcut, squeeze_excite
from ..net.registry import IMAGENET, register
from .nf_resnet import ALPHA, NFResNet, owned


class NFRegBlock(ResidualBlock):
    """x' = h + alpha F(z), z = beta a(x). beta is a constant factor of the convolutions that z goes into."""

    def __init__(self, site: Site, attn_layer: str | None = None, **dd: Any):
        super().__init__()
        self.alpha = ALPHA
        self.beta = (1 + site.since * ALPHA**2) ** -0.5
        first = partial(ScaledStdConv2d, gamma=GAMMA['silu'] * self.beta, **dd)
        conv = partial(ScaledStdConv2d, gamma=GAMMA['silu'], **dd)
        self.downsample = shortcut(site, pooled_projection, first)
        self.act = nn.SiLU()
        self.conv1 = first(**site.convs[0])
        self.conv2 = conv(**site.convs[1])
        hidden = make_divisible(site.mid_chs / 2, 8, round_limit=0.0)
        self.attn = squeeze_excite(attn_layer, site.mid_chs, hidden, **dd) or nn.Identity()
        self.conv3: nn.Module = conv(**site.convs[2], gain_init=0.0)
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x)
        h = x if self.downsample is None else self.downsample(z)
        return torch.add(h, self.branch(z), alpha=self.alpha)

    def branch(self, x: Tensor) -> Tensor:
        f = self.attn(self.conv2(self.act(self.conv1(x))))
        return self.drop_path(self.conv3(self.act(f)))

    def fuse(self) -> PreBlock:
        """The block at inference, with alpha in the last convolution."""
        plain = reparameterize_model(self)
        convs = plain.conv1, attended(plain.conv2, plain.attn), plain.conv3
        return PreBlock(convs, plain.downsample, act=plain.act, gain=self.alpha)


class NFRegNet(NFResNet):
    """NF-RegNet in timm's form. Arguments as of :class:`~nf_zoo.net.network.ResNet`."""

    def __init__(self, *args: Any, **kwargs: Any):
        conv = partial(ScaledStdConv2d, gamma=GAMMA['silu'])
        ResNet.__init__(self, *args, conv=conv, block=NFRegBlock, act=nn.SiLU, **kwargs)


register(
    NFRegNet,
    {
        f'nf_regnet_{size}': dict(layout=partial(regnet, widths=widths, rounded=True), depths=depths, attn_layer='se')
        for size, (widths, depths) in REGNET_SIZES.items()
    },
    IMAGENET,
    owned(f'nf_regnet_{size}' for size in REGNET_SIZES),
)
