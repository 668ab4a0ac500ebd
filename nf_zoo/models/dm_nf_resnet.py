r"""NF-ResNet, in its paper's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 3 and 4; the code is DeepMind's.

.. math:: x_l = h(x_{l-1}) + \alpha g_l F_l(z), \qquad z = \beta_l \gamma\, a(x_{l-1}), \quad
          \beta_l = (1 + n \alpha^2)^{-1/2}

F is three scaled weight-standardised convolutions with the activation gamma a between, n the additions since the last
transition block, g a learned scalar per block (SkipInit). h is the identity of x, a transition block's a strided 1x1
convolution of z. alpha = 0.2; gamma a has variance 1 for N(0, 1), and stands before the head too.

Init: g = 0, so that the network starts as the identity path; weights N(0, 1 / fan-in) (the standardisation makes it
immaterial), biases 0, classifier 0 (appendix D; DeepMind's NF-ResNet draws it from N(0, 0.01)).

:mod:`.nf_resnet` is the same method in timm's form, faster because its constants are in the weights. Padding
is symmetric, as appendix D's; DeepMind's code pads one side where a stride meets an even size, so with its weights the
logits are the same for 65, 129, 257 ... pixels. Squeeze-and-excite: after the last convolution, ratio 1/4, with gamma a
inside (appendix D; DeepMind's code has a plain ReLU). Stochastic depth never divides by the keep rate (B.2).
"""

from functools import partial
from typing import Any

import torch
from timm.layers import get_act_layer
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PreBlock, scale_input
from ..layers.std_conv import GAMMA, WSConv2d
from ..net.layout import Layout, Site, conv_shape, imagenet
from ..net.network import ResNet, drop_path, shortcut, squeeze_excite
from ..net.registry import IMAGENET, register

ALPHA = 0.2


class GammaAct(nn.Module):
    """gamma a(x): variance 1 for x ~ N(0, 1)."""

    def __init__(self, name: str):
        super().__init__()
        self.act = get_act_layer(name)()
        self.gamma = GAMMA[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.act(x)


@torch.no_grad()
def fuse_gamma(attn: Any) -> None:
    """Move gamma inside squeeze-and-excite, if there is one, into the layer behind it."""
    if attn is not None:
        scale_input(attn.fc2, attn.act.gamma)
        attn.act = attn.act.act


class DMBlock(nn.Module):
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
        self.act = GammaAct('relu')
        self.downsample = shortcut(site, lambda s: conv(**conv_shape(s.in_chs, s.out_chs, 1, s.stride)))
        self.conv1, self.conv2, self.conv3 = (conv(**shape) for shape in site.convs)
        self.attn = squeeze_excite(attn_layer, site.out_chs, act_layer=partial(GammaAct, 'relu'), **dd)
        self.drop_path = drop_path(site)
        self.skip_gain = nn.Parameter(torch.zeros((), **dd))

    def forward(self, x: Tensor) -> Tensor:
        z = self.beta * self.act(x)
        h = x if self.downsample is None else self.downsample(z)
        f = self.conv3(self.act(self.conv2(self.act(self.conv1(z)))))
        if self.attn is not None:
            f = 2 * self.attn(f)
        return h + self.alpha * self.skip_gain * self.drop_path(f)

    def fuse(self) -> PreBlock:
        """The block at inference: gamma and beta in the convolutions behind them, alpha g in the last one."""
        plain, act = reparameterize_model(self), self.act
        fuse_gamma(plain.attn)
        convs, gain = (plain.conv1, plain.conv2, plain.conv3), self.alpha * self.skip_gain
        gain = gain if self.attn is None else 2 * gain
        return PreBlock(convs, plain.downsample, plain.attn, gain=gain, gamma=act.gamma, beta=self.beta)


class DMNFResNet(ResNet):
    preact = True

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return WSConv2d(**shape, **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return DMBlock(site, **kwargs)

    def make_final(self, chs: int, **dd: Any) -> nn.Module:
        return GammaAct('relu')

    def drop_path_rates(self, rate: float, plan: Layout) -> list[float]:
        """Rate i / n for block i of n, from 0: the last one has less than ``rate``."""
        n = sum(plan.depths)
        return [rate * i / n for i in range(n)]

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='linear')
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.zeros_(self.head.fc.weight)
            nn.init.zeros_(self.head.fc.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Gains, biases and scalars."""
        return {name for name, _ in self.named_parameters() if name.endswith(('gain', '.bias'))}


register(
    DMNFResNet,
    {
        'dm_nf_resnet50': dict(layout=imagenet, depths=(3, 4, 6, 3)),
        'dm_nf_resnet101': dict(layout=imagenet, depths=(3, 4, 23, 3)),
        'dm_nf_resnet152': dict(layout=imagenet, depths=(3, 8, 36, 3)),
        'dm_nf_resnet200': dict(layout=imagenet, depths=(3, 24, 36, 3)),
        'dm_nf_resnet288': dict(layout=imagenet, depths=(24, 24, 24, 24)),
    },
    dict(IMAGENET, interpolation='bicubic'),
)
