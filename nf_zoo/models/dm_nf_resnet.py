r"""NF-ResNet, in its paper's form. Brock, De, Smith: "Characterizing signal propagation to close the performance gap in
unnormalized ResNets", ICLR 2021, arXiv:2101.08692, sections 3 and 4; in the form of DeepMind's code.

.. math:: x_l = h(x_{l-1}) + \alpha g_l F_l(z), \qquad z = \beta_l \gamma\, a(x_{l-1}), \quad
          \beta_l = (1 + n \alpha^2)^{-1/2}

F is three scaled weight-standardised convolutions with the activation gamma a between them. gamma a(x) has variance 1
for x ~ N(0, 1); it also comes before the head. n counts the additions since the last transition block. Each block has
a learned scalar g (SkipInit). beta here is 1 over the paper's beta. h is the identity of x; in a transition block it
is a strided 1x1 convolution of z. alpha is 0.2.

Init: g = 0, so that the network starts as its identity path; weights N(0, 1 / fan-in) (the standardisation makes it
immaterial), biases 0, classifier 0 (appendix D; DeepMind's NF-ResNet draws it from N(0, 0.01)).

:mod:`.nf_resnet` is the same method in timm's form, which is faster because its constants are in the weights. Padding
is symmetric as in appendix D. DeepMind's code pads one side only where a stride meets an even size, so with its
weights the logits are the same for images of 65, 129, 257 ... pixels. Squeeze-and-excite follows the last
convolution, with ratio 1/4 and gamma a inside (appendix D; DeepMind's code has a plain ReLU). Stochastic depth never
divides by the keep rate (B.2).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.blocks import PreBlock
from ..layers.std_conv import WSConv2d
from ..net.branch import ResidualBlock
from ..net.layout import Layout, Site, imagenet
from ..net.network import ResNet
from ..net.parts import GammaAct, shortcut, squeeze_excite, strided_projection
from ..net.registry import IMAGENET, register

ALPHA = 0.2


class DMBlock(ResidualBlock):
    """x' = h + alpha g F(z), z = beta gamma a(x)."""

    def __init__(self, site: Site, act: partial[GammaAct], attn_layer: str | None = None, **dd: Any):
        super().__init__()
        conv = partial(WSConv2d, **dd)
        self.alpha = ALPHA
        self.beta = (1 + site.since * ALPHA**2) ** -0.5
        self.downsample = shortcut(site, strided_projection, conv)
        self.add_branch(site, conv, act=act, **dd)
        self.attn = squeeze_excite(attn_layer, site.out_chs, act=act, **dd) or nn.Identity()
        self.scalar_in_conv = attn_layer is None
        self.skip_gain = nn.Parameter(torch.zeros((), **dd))

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x, self.beta)
        h = x if self.downsample is None else self.downsample(z)
        return h + self.scaled_branch(z, self.alpha * self.skip_gain)

    def fuse(self) -> PreBlock:
        """The block at inference: gamma and beta in the convolutions that follow them, alpha g in the last one."""
        return PreBlock.of(self, gain=self.alpha, scalar=self.skip_gain, beta=self.beta)


class DMNFResNet(ResNet):
    """NF-ResNet in the paper's form.

    Args:
        act_layer: The activation a: 'relu', 'silu', 'gelu' or 'identity'.
        gamma: Its constant factor; None for the activation's own.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.
    """

    preact = True

    def __init__(self, *args: Any, act_layer: str = 'relu', gamma: float | None = None, **kwargs: Any):
        act = partial(GammaAct, act_layer, gamma)
        super().__init__(*args, conv=WSConv2d, block=partial(DMBlock, act=act), act=act, **kwargs)

    def drop_path_rates(self, rate: float, plan: Layout) -> list[float]:
        """Rate ``rate`` i / n for block i of n. i counts from 0, so that the last block has less than ``rate``."""
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
