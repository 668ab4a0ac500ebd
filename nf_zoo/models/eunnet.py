r"""EUNNet. Nguyen, Choi, Yang: "EUNNet: Efficient UN-Normalized Convolution Layer for Stable Training of Deep Residual
Networks Without Batch Normalization Layer", IEEE Access 11 (2023), doi:10.1109/ACCESS.2023.3244072.

.. math:: x_l = \mathrm{relu}(\alpha_l h(x_{l-1}) + \beta s_l F_l(x_{l-1})),
          \qquad \alpha_l^2 = k / (k + 1), \quad \beta^2 = 1 / L

Every convolution of the branch F and of the shortcut h is an EUNConv (equation 8): it standardises its input and has a
bias. L residual blocks, k = L - 1 ... 2L - 2, s a learned scalar per block that starts at 1. h is the identity, or
average pooling and a 1x1 EUNConv where the shape changes (CIFAR layouts: He et al.'s parameter-free shortcut).

Init: He fan-in normal, biases 0 (the stem's as in torch), classifier N(0, 1 / fan-in).

The paper leaves open over what mu and sigma are taken. Its official code uses the whole batch (``norm='tensor'``), its
appendix the channels of a pixel (``norm='l2'``). Here each image has its own (``norm='sample'``): the signal of the
official code, but an image's logits do not depend on its neighbours in the batch. Biases, scalars and coefficients
follow the official code, whose alpha^2 + beta^2 is 1 ... 1 + 1/L - 1/(2L - 1), not 1 as equation 4 asks.
Table 4's ablations are ``scale=False`` (no s) and ``residual_scaling=False`` (no alpha, beta).
"""

from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.input_norm import InputNormConv2d
from ..net.foreign import resnet_names
from ..net.layout import Site, cifar, imagenet, imagenet_basic
from ..net.network import ResNet, drop_path, pooled_projection, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, register


class EUNBlock(nn.Module):
    """x' = relu(alpha h(x) + beta s F(x)), F of two or three EUNConvs with ReLU between."""

    def __init__(
        self,
        site: Site,
        norm: str = 'sample',
        scale: bool = True,
        residual_scaling: bool = True,
        drop_conv_rate: float = 0.0,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(InputNormConv2d, norm=norm, **dd)
        k, depth = site.depth - 1 + site.index, site.depth
        self.alpha = (k / (k + 1)) ** 0.5 if residual_scaling else 1.0
        self.beta = depth**-0.5 if residual_scaling else 1.0
        self.downsample = shortcut(site, partial(pooled_projection, conv=conv))
        first, second, *third = site.convs
        self.conv1 = conv(**first)
        self.conv2 = conv(**second)
        self.conv3 = conv(**third[0]) if third else None
        self.drop = nn.Dropout2d(drop_conv_rate) if drop_conv_rate and site.stage >= 2 else nn.Identity()
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)
        self.scale = nn.Parameter(torch.ones(1, **dd)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        # beta s is a factor of the last convolution's weight: a product beta s F would keep F for backward.
        s = self.beta * self.scale if self.scale is not None else None
        factor = s if self.attn is None else None
        f = self.drop(self.conv1(x)).relu_()
        if self.conv3 is None:
            f = self.conv2(f, factor)
        else:
            f = self.conv3(self.drop(self.conv2(f)).relu_(), factor)
        f = self.drop(f)
        if self.attn is not None:
            f = 2 * self.attn(f)
        if factor is None:
            f = f * (self.beta if s is None else s)
        return torch.add(self.drop_path(f), h, alpha=self.alpha).relu_()

    def fuse(self) -> PostBlock:
        """The block at inference: beta s in the last convolution, alpha in the shortcut's where it has one."""
        plain = reparameterize_model(self)
        convs = plain.conv1, plain.conv2, plain.conv3
        gain = self.beta if plain.scale is None else self.beta * plain.scale.detach()
        if plain.attn is not None:
            gain = 2 * gain
        return PostBlock(convs, plain.downsample, plain.attn, skip=self.alpha, gain=gain)


class EUNNet(ResNet):
    """Method keywords: ``norm``, ``scale``, ``residual_scaling``, ``drop_conv_rate`` (Dropout2d in stages 3 and 4)."""

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return InputNormConv2d(**shape, norm=self.block_args.get('norm', 'sample'), **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return EUNBlock(site, **kwargs)

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
        """The scalars s learn at a tenth of the rate, as Fixup's authors do it. This rule is ours."""
        return {r'^stages\.\d+\.\d+\.scale$': 0.1}

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """The official code's weights too; they mean ``norm='tensor'``."""
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
