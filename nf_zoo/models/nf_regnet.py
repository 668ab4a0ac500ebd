r"""NF-RegNet, in timm's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 4 and 6, appendices C and D.

.. math:: x_l = h(x_{l-1}) + \alpha F_l(z), \qquad z = \beta_l\, a(x_{l-1}), \quad \beta_l = (1 + n \alpha^2)^{-1/2}

NF-ResNet's block (see :mod:`.nf_resnet`) with SiLU, an inverted bottleneck, a grouped 3x3 convolution and
squeeze-and-excite, times 2, in the middle of F. Stem 3x3; every stage starts with a transition block, whose shortcut is
average pooling and a 1x1 convolution; a last 1x1 convolution widens the features before the activation and the head.

Init: as NF-ResNet's.

timm's form, with whose weights this is drop-in, differs from the paper's (:mod:`.dm_nf_regnet`) as NF-ResNet's does
and in this: all widths, squeeze-and-excite's too, are multiples of 8, and squeeze-and-excite has a plain ReLU. It
differs from timm in stochastic depth, which here never divides by the keep rate (appendix B.2).
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import make_divisible
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PreBlock, attended
from ..layers.std_conv import GAMMA, ScaledStdConv2d
from ..net.layout import Site, regnet
from ..net.network import drop_path, pooled_projection, shortcut, squeeze_excite
from ..net.registry import IMAGENET, register
from .nf_resnet import ALPHA, NFResNet, owned


class NFRegBlock(nn.Module):
    """x' = h + alpha F(z), z = beta a(x); beta is a constant factor of the convolutions that z goes into."""

    def __init__(
        self,
        site: Site,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        self.alpha = ALPHA
        self.beta = (1 + site.since * ALPHA**2) ** -0.5
        first = partial(ScaledStdConv2d, gamma=GAMMA['silu'] * self.beta, **dd)
        conv = partial(ScaledStdConv2d, gamma=GAMMA['silu'], **dd)
        self.downsample = shortcut(site, partial(pooled_projection, conv=first))
        self.conv1 = first(**site.convs[0])
        self.conv2 = conv(**site.convs[1])
        hidden = make_divisible(site.mid_chs / 2, 8, round_limit=0.0)
        self.attn = squeeze_excite(attn_layer, site.mid_chs, hidden, **dd)
        self.conv3 = conv(**site.convs[2], gain_init=0.0)
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        z = F.silu(x)
        h = x if self.downsample is None else self.downsample(z)
        f = self.conv2(F.silu(self.conv1(z)))
        if self.attn is not None:
            f = 2 * self.attn(f)
        f = self.conv3(F.silu(f))
        return torch.add(h, self.drop_path(f), alpha=self.alpha)

    def fuse(self) -> PreBlock:
        """The block at inference: the constants in the convolutions before them."""
        plain = reparameterize_model(self)
        convs = plain.conv1, attended(plain.conv2, plain.attn, 2), plain.conv3
        return PreBlock(convs, plain.downsample, gain=self.alpha, act=nn.SiLU)


class NFRegNet(NFResNet):
    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return ScaledStdConv2d(**shape, gamma=GAMMA['silu'], **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return NFRegBlock(site, **kwargs)

    def make_final(self, chs: int, **dd: Any) -> nn.Module:
        return nn.SiLU()


# The paper's widths, before its multiplier 0.75, and depths.
SIZES = {
    'b0': ((48, 104, 208, 440), (1, 3, 6, 6)),
    'b1': ((48, 104, 208, 440), (2, 4, 7, 7)),
    'b2': ((56, 112, 232, 488), (2, 4, 8, 8)),
    'b3': ((56, 128, 248, 528), (2, 5, 9, 9)),
    'b4': ((64, 144, 288, 616), (2, 6, 11, 11)),
    'b5': ((80, 168, 336, 704), (3, 7, 14, 14)),
}

register(
    NFRegNet,
    {
        f'nf_regnet_{size}': dict(layout=partial(regnet, widths=widths, rounded=True), depths=depths, attn_layer='se')
        for size, (widths, depths) in SIZES.items()
    },
    IMAGENET,
    owned(f'nf_regnet_{size}' for size in SIZES),
)
