r"""NF-RegNet, in its paper's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 4 and 6, appendices C and D.

.. math:: x_l = h(x_{l-1}) + \alpha g_l F_l(z), \qquad z = \beta_l \gamma\, a(x_{l-1}), \quad
          \beta_l = (1 + n \alpha^2)^{-1/2}

NF-ResNet's block in the same form (see :mod:`.dm_nf_resnet`) with SiLU, an inverted bottleneck, a grouped 3x3
convolution and squeeze-and-excite, times 2, in the middle of F. Stem 3x3; every stage starts with a transition block,
whose shortcut h is average pooling and a 1x1 convolution of z; a last 1x1 convolution widens the features before the
activation and the head.

Init: as there. The average pooling then quarters the variance at each transition, which beta does not count (B.4).

Bottlenecks are cut to whole groups of 8 channels, squeeze-and-excite has half their width: table 3's parameters. Its
multiply-adds are those at the test size; for B2 and B5 it halves odd sizes as real numbers. DeepMind's code has a plain
ReLU in squeeze-and-excite, here it is gamma a (appendix D).
"""

from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PreBlock, attended
from ..layers.std_conv import WSConv2d
from ..net.layout import Site, regnet
from ..net.network import drop_path, pooled_projection, shortcut, squeeze_excite
from ..net.registry import IMAGENET, register
from .dm_nf_resnet import ALPHA, DMNFResNet, GammaAct, fuse_gamma
from .nf_regnet import SIZES


class DMRegBlock(nn.Module):
    """x' = h + alpha g F(z), z = beta gamma a(x)."""

    def __init__(
        self,
        site: Site,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(WSConv2d, **dd)
        self.alpha = ALPHA
        self.beta = (1 + site.since * ALPHA**2) ** -0.5
        self.act = GammaAct('silu')
        self.downsample = shortcut(site, partial(pooled_projection, conv=conv))
        self.conv1, self.conv2, self.conv3 = (conv(**shape) for shape in site.convs)
        self.attn = squeeze_excite(
            attn_layer, site.mid_chs, site.mid_chs // 2, act_layer=partial(GammaAct, 'silu'), **dd
        )
        self.drop_path = drop_path(site)
        self.skip_gain = nn.Parameter(torch.zeros((), **dd))

    def forward(self, x: Tensor) -> Tensor:
        z = self.beta * self.act(x)
        h = x if self.downsample is None else self.downsample(z)
        f = self.conv2(self.act(self.conv1(z)))
        if self.attn is not None:
            f = 2 * self.attn(f)
        f = self.conv3(self.act(f))
        return h + self.alpha * self.skip_gain * self.drop_path(f)

    def fuse(self) -> PreBlock:
        """The block at inference: gamma and beta in the convolutions behind them, alpha g in the last one."""
        plain, gamma = reparameterize_model(self), self.act.gamma
        fuse_gamma(plain.attn)
        convs = plain.conv1, attended(plain.conv2, plain.attn, 2), plain.conv3
        gain = self.alpha * self.skip_gain
        return PreBlock(convs, plain.downsample, gain=gain, act=nn.SiLU, gamma=gamma, beta=self.beta)


class DMNFRegNet(DMNFResNet):
    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return DMRegBlock(site, **kwargs)

    def make_final(self, chs: int, **dd: Any) -> nn.Module:
        return GammaAct('silu')

    @torch.jit.ignore
    def ema_decay(self, update: int, decay: float) -> float:
        """Decay of the weights' moving average after ``update``, from 0 (appendix C, where min(i, ...) is a slip)."""
        return min(decay, (1 + update) / (10 + update))


# Appendix D: training and test size.
PIXELS = {'b0': (192, 224), 'b1': (240, 256), 'b2': (240, 272), 'b3': (288, 320), 'b4': (320, 384), 'b5': (384, 456)}

for size, (widths, depths) in SIZES.items():
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
