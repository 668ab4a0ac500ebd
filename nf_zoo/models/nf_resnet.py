r"""NF-ResNet, in timm's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 3 and 4.

.. math:: x_l = h(x_{l-1}) + \alpha F_l(z), \qquad z = \beta_l\, a(x_{l-1}), \quad \beta_l = (1 + n \alpha^2)^{-1/2}

F is three (CIFAR layouts: two) scaled weight-standardised convolutions with the activation a between, n the additions
since the last transition block: without normalisation the variance grows by alpha^2 with each, and is reset by a
transition block, whose shortcut h taps z (average pooling and a 1x1 convolution; CIFAR layouts: He et al.'s
parameter-free shortcut). Else h is the identity of x. alpha = 0.2.

Init: He fan-in normal (the standardisation makes it immaterial), the gain of the branch's last convolution 0, so that
the network starts as the identity path (CIFAR layouts: 1, for their zero-padded channels could not leave 0 again);
biases 0; classifier N(0, 0.01).

timm's form, with whose weights this is drop-in, differs from the paper's in this: the activation's constant gamma is in
every convolution, the stem's too, instead of behind each activation; a zero gain replaces the SkipInit scalar; average
pooling in the shortcut; eps 1e-5 is added to the variance. It differs from timm in stochastic depth, which here never
divides by the keep rate (the paper's appendix B.2). Squeeze-and-excite: after the last convolution, ratio 1/16.
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
from ..net.layout import Site, cifar, imagenet
from ..net.network import PadShortcut, ResNet, drop_path, pooled_projection, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, Owned, register

ALPHA = 0.2


class NFBlock(nn.Module):
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
        gamma = GAMMA['relu']
        self.alpha = ALPHA
        self.beta = (1 + site.since * ALPHA**2) ** -0.5
        first = partial(ScaledStdConv2d, gamma=gamma * self.beta, **dd)
        conv = partial(ScaledStdConv2d, gamma=gamma, **dd)
        # A zero-padded channel is exactly 0, where ReLU passes no gradient: with zero gain it would stay 0 for ever.
        last = partial(conv, gain_init=1.0 if site.padded else 0.0)
        self.downsample = shortcut(site, partial(pooled_projection, conv=first))
        # A convolution of the shortcut would bring gamma and beta; zero padding has to be given them.
        self.shortcut_gain = gamma * self.beta if isinstance(self.downsample, PadShortcut) else 1.0
        self.conv1 = first(**site.convs[0])
        self.conv2 = (conv if site.bottleneck else last)(**site.convs[1])
        self.conv3 = last(**site.convs[2]) if site.bottleneck else None
        hidden = make_divisible(site.out_chs / 16, 8, round_limit=0.0)
        self.attn_last = squeeze_excite(attn_layer, site.out_chs, hidden, **dd)
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        z = x.relu()
        h = x
        if self.downsample is not None:
            h = self.downsample(z)
            if self.shortcut_gain != 1.0:
                h = self.shortcut_gain * h
        f = self.conv2(self.conv1(z).relu_())
        if self.conv3 is not None:
            f = self.conv3(f.relu_())
        if self.attn_last is not None:
            f = 2 * self.attn_last(f)
        return torch.add(h, self.drop_path(f), alpha=self.alpha)

    def fuse(self) -> PreBlock:
        """The block at inference: alpha in the last convolution, the shortcut's gain in one of its own."""
        plain = reparameterize_model(self)
        convs = plain.conv1, plain.conv2, plain.conv3
        gain = self.alpha * (1 if self.attn_last is None else 2)
        return PreBlock(convs, plain.downsample, plain.attn_last, skip=self.shortcut_gain, gain=gain)


class NFResNet(ResNet):
    preact = True

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return ScaledStdConv2d(**shape, gamma=GAMMA['relu'], **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return NFBlock(site, **kwargs)

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
        """Gains and biases (section 5.1: no weight decay on them)."""
        return {name for name, _ in self.named_parameters() if name.endswith(('.gain', '.bias'))}


def owned(names: Iterable[str]) -> dict[str, Owned]:
    """timm's entry points of these names, to which its ``NfCfg`` keywords go."""
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
