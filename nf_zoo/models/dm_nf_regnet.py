r"""NF-RegNet, in its paper's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 4 and 5.2, appendices C and D.

.. math:: x_l = h(x_{l-1}) + \alpha g_l F_l(z), \qquad z = \beta_l \gamma\, a(x_{l-1}), \quad
          \beta_l = (1 + n \alpha^2)^{-1/2}

The block is NF-ResNet's in the same form (see :mod:`.dm_nf_resnet`) with four differences: the activation a is SiLU,
F is an inverted bottleneck, its 3x3 convolution is grouped, and squeeze-and-excite, times 2, follows this
convolution. The stem is a 3x3 convolution. Every stage starts with a transition block, whose shortcut h is average
pooling and a 1x1 convolution of z. A last 1x1 convolution widens the features before the activation and the head.

Init: as of :mod:`.dm_nf_resnet`. The average pooling then quarters the variance at each transition; beta doesn't
count that (B.4).

Bottlenecks are cut to whole groups of 8 channels, and squeeze-and-excite has half their width, which gives the
parameters of Table 3. The multiply-adds in Table 3 are those at the test size; for B2 and B5 it halves odd sizes as
real numbers. DeepMind's code has a plain ReLU in squeeze-and-excite, here it is gamma a (appendix D).
"""

from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PreBlock
from ..folding.rules import attended
from ..layers.std_conv import WSConv2d
from ..net.branch import ResidualBlock
from ..net.layout import REGNET_SIZES, Site, regnet
from ..net.network import ResNet
from ..net.parts import GammaAct, pooled_projection, shortcut, squeeze_excite
from ..net.registry import IMAGENET, register
from .dm_nf_resnet import ALPHA, DMNFResNet


class DMRegBlock(ResidualBlock):
    """x' = h + alpha g F(z), z = beta gamma a(x)."""

    def __init__(self, site: Site, act: partial[GammaAct], attn_layer: str | None = None, **dd: Any):
        super().__init__()
        conv = partial(WSConv2d, **dd)
        self.alpha = ALPHA
        self.beta = (1 + site.since * ALPHA**2) ** -0.5
        self.downsample = shortcut(site, pooled_projection, conv)
        self.conv3: nn.Module
        self.add_branch(site, conv, act=act, **dd)
        self.attn = squeeze_excite(attn_layer, site.mid_chs, site.mid_chs // 2, act, **dd) or nn.Identity()
        self.skip_gain = nn.Parameter(torch.zeros((), **dd))

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x, self.beta)
        h = x if self.downsample is None else self.downsample(z)
        return h + self.scaled_branch(z, self.alpha * self.skip_gain)

    def scaled_branch(self, x: Tensor, s: Tensor) -> Tensor:
        f = self.attn(self.conv2(self.act(self.conv1(x))))
        return self.drop_path(self.conv3(self.act(f), s))

    def fuse(self) -> PreBlock:
        """The block at inference: gamma and beta in the convolutions that follow them, alpha g in the last one."""
        plain = reparameterize_model(self)
        convs = plain.conv1, attended(plain.conv2, plain.attn), plain.conv3
        constants = dict(gain=self.alpha, scalar=self.skip_gain, beta=self.beta)
        return PreBlock(convs, plain.downsample, act=plain.act, **constants)


class DMNFRegNet(DMNFResNet):
    """NF-RegNet in the paper's form.

    Args:
        act_layer: The activation a: 'relu', 'silu', 'gelu' or 'identity'.
        gamma: Its constant factor; None for the activation's own.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.
    """

    def __init__(self, *args: Any, act_layer: str = 'silu', gamma: float | None = None, **kwargs: Any):
        act = partial(GammaAct, act_layer, gamma)
        ResNet.__init__(self, *args, conv=WSConv2d, block=partial(DMRegBlock, act=act), act=act, **kwargs)

    @torch.jit.ignore
    def ema_decay(self, update: int, decay: float) -> float:
        """Decay of the weights' moving average after ``update``, from 0. Appendix C prints min(i, ...), a slip."""
        return min(decay, (1 + update) / (10 + update))


# Image sizes in training and in the test (appendix D).
PIXELS = {'b0': (192, 224), 'b1': (240, 256), 'b2': (240, 272), 'b3': (288, 320), 'b4': (320, 384), 'b5': (384, 456)}

for size, (widths, depths) in REGNET_SIZES.items():
    train, test = PIXELS[size]
    layout = partial(regnet, widths=widths, rounded=False)
    register(
        DMNFRegNet,
        {f'dm_nf_regnet_{size}': dict(layout=layout, depths=depths, attn_layer='se')},
        dict(
            IMAGENET,
            input_size=(3, train, train),
            test_input_size=(3, test, test),
            pool_size=(-(-train // 32),) * 2,
            interpolation='bicubic',
        ),
    )
