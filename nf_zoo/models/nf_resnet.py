r"""NF-ResNet, in timm's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 3 and 4.

.. math:: x_l = h(x_{l-1}) + \alpha F_l(z), \qquad z = \beta_l\, a(x_{l-1}), \quad \beta_l = (1 + n \alpha^2)^{-1/2}

F is three (CIFAR layouts: two) scaled weight-standardised convolutions with the activation a between them. n counts
the additions since the last transition block. Each addition adds alpha^2 to the variance, and a transition block
resets it: its shortcut h is average pooling and a 1x1 convolution of z (CIFAR layouts: He et al.'s parameter-free
shortcut of z). Otherwise h is the identity of x. alpha is 0.2. beta here is 1 over the paper's beta.

Init: He fan-in normal (the standardisation makes it immaterial). The gain of each branch's last convolution is 0, so
that the network starts as its identity path. In the CIFAR layouts it is 1: with 0 the zero-padded channels would stay
0 for ever. Biases 0, classifier N(0, 0.01).

timm's form, with whose weights this is drop-in, differs from the paper's in four points. The constant gamma of the
activation is in every convolution, also the stem's; the paper has it after each activation. A zero gain replaces the
scalar of SkipInit. The shortcut has average pooling. eps is 1e-5, added to the variance. The stem's gamma trebles the
variance and each pooled shortcut quarters it, so that the stages begin at about 3, 1, 0.25 and 0.05 where the paper's
form begins at 1 (``nf-zoo signal nf_resnet50``). This page differs from timm in stochastic
depth, which here never divides by the keep rate (appendix B.2 of the paper). Squeeze-and-excite follows the last
convolution, with ratio 1/16.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from timm.layers import make_divisible
from timm.models import nfnet
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PreBlock
from ..layers.std_conv import GAMMA, ScaledStdConv2d
from ..net.branch import ResidualBlock
from ..net.layout import Site, cifar, imagenet
from ..net.network import ResNet
from ..net.parts import PadShortcut, pooled_projection, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, Owned, register

ALPHA = 0.2


class NFBlock(ResidualBlock):
    """x' = h + alpha F(z), z = beta a(x). beta is a constant factor of the convolutions that z goes into."""

    def __init__(self, site: Site, attn_layer: str | None = None, **dd: Any):
        super().__init__()
        gamma = GAMMA['relu']
        self.alpha = ALPHA
        self.beta = (1 + site.since * ALPHA**2) ** -0.5
        first = partial(ScaledStdConv2d, gamma=gamma * self.beta, **dd)
        self.downsample = shortcut(site, pooled_projection, first)
        if isinstance(self.downsample, PadShortcut):  # has no convolution with gamma and beta
            self.downsample.gain = gamma * self.beta
        self.add_branch(site, partial(ScaledStdConv2d, gamma=gamma, **dd), first)
        # A zero-padded channel is exactly 0, and ReLU passes no gradient there: with gain 0 it would stay 0 for ever.
        if not site.padded:
            nn.init.zeros_(self.convs()[-1].gain)
        hidden = make_divisible(site.out_chs / 16, 8, round_limit=0.0)
        self.attn_last = squeeze_excite(attn_layer, site.out_chs, hidden, **dd) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x)
        h = x if self.downsample is None else self.downsample(z)
        return torch.add(h, self.branch(z), alpha=self.alpha)

    def branch(self, x: Tensor) -> Tensor:
        return self.drop_path(self.attn_last(self.convolutions(x)))

    def fuse(self) -> PreBlock:
        """The block at inference, with alpha in the last convolution."""
        plain = reparameterize_model(self)
        convs = plain.conv1, plain.conv2, plain.conv3
        return PreBlock(convs, plain.downsample, plain.attn_last, act=plain.act, gain=self.alpha)


class NFResNet(ResNet):
    """NF-ResNet in timm's form. Arguments as of :class:`~nf_zoo.net.network.ResNet`."""

    preact = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, conv=partial(ScaledStdConv2d, gamma=GAMMA['relu']), block=NFBlock, **kwargs)

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='linear')
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=0.01)
            nn.init.zeros_(self.head.fc.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Gains and biases, as appendix B.1 says."""
        return {name for name, _ in self.named_parameters() if name.endswith(('.gain', '.bias'))}


def owned(names: Iterable[str]) -> dict[str, Owned]:
    """The entry points of timm for these names. They get the calls with keywords of timm's ``NfCfg``."""
    keywords = frozenset(nfnet.NfCfg.__dataclass_fields__) - {'depths', 'attn_layer'}
    return {name: Owned(getattr(nfnet, name), nfnet.default_cfgs[name], keywords) for name in names}


DEPTHS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

register(
    NFResNet,
    {
        **{f'nf_resnet{n}': dict(layout=imagenet, depths=depths) for n, depths in DEPTHS.items()},
        **{f'nf_seresnet{n}': dict(layout=imagenet, depths=depths, attn_layer='se') for n, depths in DEPTHS.items()},
        'nf_resnet152': dict(layout=imagenet, depths=(3, 8, 36, 3)),
        'nf_resnet200': dict(layout=imagenet, depths=(3, 24, 36, 3)),
        'nf_resnet288': dict(layout=imagenet, depths=(24, 24, 24, 24)),
    },
    dict(IMAGENET, crop_pct=0.9, interpolation='bicubic'),
    owned(f'nf_{kind}resnet{n}' for kind in ('', 'se') for n in DEPTHS),
)
register(
    NFResNet,
    {
        'nf_resnet20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
        'nf_resnet56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
        'nf_resnet110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
    },
    CIFAR,
)
