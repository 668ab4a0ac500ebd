r"""EUNNet. Nguyen, Choi, Yang: "EUNNet: Efficient UN-Normalized Convolution Layer for Stable Training of Deep
Residual Networks Without Batch Normalization Layer", IEEE Access 11 (2023), doi:10.1109/ACCESS.2023.3244072.

.. math:: x_l = \mathrm{relu}(\alpha_l h(x_{l-1}) + \beta s_l F_l(x_{l-1})),
          \qquad \alpha_l^2 = k / (k + 1), \quad \beta^2 = 1 / L

F is two or three convolutions with ReLU between them. Every convolution of F and of the shortcut h is an EUNConv
(equation 8): it standardises its input, and has a bias. There are L residual blocks, for which k = L - 1 ... 2L - 2.
Each has a learned scalar s. h is the identity; where the shape changes it is average pooling and a 1x1 EUNConv (CIFAR
layouts: He et al.'s parameter-free shortcut).

Init: He fan-in normal, biases 0 (the stem's as in torch), s = 1, classifier N(0, 1 / fan-in).

Equation 8 writes mu_B and sigma_B, the letters of the mini-batch in equation 2, but leaves open over which axes they
are taken. Its official code takes the whole batch (``norm='tensor'``), its appendix the channels of a pixel
(``norm='l2'``). Here each image has its own mean and variance (``norm='sample'``). The signal is that of the official
code, but the logits of an image don't depend on the other images of the batch. Biases, scalars and coefficients
follow the official code. Its alpha^2 + beta^2 lies between 1 and 1 + 1/L - 1/(2L - 1); equation 4 asks for 1. With
He's fan-in weights behind a standardised input Var(F) is 2, where equation 9 has 1.

``scale=False`` (no s) and ``residual_scaling=False`` (no alpha and no beta) are the ablations of Table 4.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.input_norm import InputNormConv2d
from ..net.branch import ResidualBlock, add_scalar
from ..net.foreign import resnet_names
from ..net.layout import Site, cifar, imagenet, imagenet_basic
from ..net.network import ResNet
from ..net.parts import check_rates, late_dropout, pooled_projection, shortcut
from ..net.registry import CIFAR, IMAGENET, register


class EUNBlock(ResidualBlock):
    """x' = relu(alpha h(x) + beta s F(x)), with EUNConvs in F and h."""

    scale: Tensor

    def __init__(
        self,
        site: Site,
        norm: str,
        scale: bool,
        residual_scaling: bool,
        drop_conv_rate: float,
        attn_layer: str | None = None,
        **dd: Any,
    ):
        super().__init__()
        conv = partial(InputNormConv2d, norm=norm, **dd)
        k = site.depth - 1 + site.index
        self.alpha = (k / (k + 1)) ** 0.5 if residual_scaling else 1.0
        self.beta = site.depth**-0.5 if residual_scaling else 1.0
        self.downsample = shortcut(site, pooled_projection, conv)
        self.add_branch(site, conv, drop=late_dropout(site, drop_conv_rate), attn_layer=attn_layer, **dd)
        add_scalar(self, 'scale', 1.0, learned=scale, **dd)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        return torch.add(self.scaled_branch(x, self.beta * self.scale), h, alpha=self.alpha).relu()

    def fuse(self) -> PostBlock:
        """The block at inference, with beta s in the last convolution and alpha in the shortcut's where it has one."""
        return PostBlock.of(self, skip=self.alpha, gain=self.beta, scalar=self.scale)


class EUNNet(ResNet):
    """EUNNet.

    Args:
        norm: Over which numbers an EUNConv takes mean and variance: 'sample', 'tensor' or 'l2'.
        scale: Whether each block has a learned scalar s.
        residual_scaling: Whether alpha and beta are those of the equation; else both are 1.
        drop_conv_rate: Rate of Dropout2d after each convolution of F in stages 3 and 4.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.
    """

    def __init__(
        self,
        *args: Any,
        norm: str = 'sample',
        scale: bool = True,
        residual_scaling: bool = True,
        drop_conv_rate: float = 0.0,
        **kwargs: Any,
    ):
        check_rates(drop_conv_rate=drop_conv_rate)
        block = partial(
            EUNBlock, norm=norm, scale=scale, residual_scaling=residual_scaling, drop_conv_rate=drop_conv_rate
        )
        super().__init__(*args, conv=partial(InputNormConv2d, norm=norm), block=block, **kwargs)

    def init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, InputNormConv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='relu')
                if name != 'stem.conv' and module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=self.head.fc.in_features**-0.5)

    @torch.jit.ignore
    def lr_scales(self) -> dict[str, float]:
        """The scalars s learn at a tenth of the learning rate, as Fixup's authors do it for theirs. This rule is ours.

        At the full rate, an EUNNet-50 on CIFAR-10 ended with s = -5e-6 and -1e-5 in its last two blocks, which then add
        nothing and learn nothing. With the rule, an EUNNet-50 on Imagenette ended with s from 0.99 to 1.35. At depth 20
        no block dies either way; see RESULTS.md.
        """
        return {r'^stages\.\d+\.\d+\.scale$': 0.1}

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Also takes the weights of the official code, which are meant for ``norm='tensor'``."""
        return {k.replace('._scale', '.scale'): v for k, v in resnet_names(state_dict, model).items()}


register(
    EUNNet,
    {
        'eunnet18': dict(layout=imagenet_basic, depths=(2, 2, 2, 2)),
        'eunnet34': dict(layout=imagenet_basic, depths=(3, 4, 6, 3)),
        'eunnet50': dict(layout=imagenet, depths=(3, 4, 6, 3)),
        'eunnet101': dict(layout=imagenet, depths=(3, 4, 23, 3)),
        'eunnet152': dict(layout=imagenet, depths=(3, 8, 36, 3)),
    },
    IMAGENET,
)
register(
    EUNNet,
    {
        'eunnet20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
        'eunnet56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
        'eunnet110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
    },
    CIFAR,
)
