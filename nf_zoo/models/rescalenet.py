r"""RescaleNet. Shao, Hu, Wang, Xue, Raj: "Is normalization indispensable for training deep neural networks?",
NeurIPS 2020, section 3; the forms of the official code (hukkai/rescaling).

.. math:: x_l = \mathrm{relu}(\alpha_l h(x_{l-1}) + L^{-1/2} s_l F_l(x_{l-1})), \qquad \alpha_l^2 = k / (k + 1)

Plain convolutions without bias; a bias per channel before every convolution of the branch F and of the shortcut, behind
the stem's convolution and before the pooling. L residual blocks, k = L - 1 ... 2L - 2, s a learned scalar per block
that starts at 1. h is the identity, or average pooling and a 1x1 convolution, biased before, where the shape changes
(CIFAR layouts: He et al.'s parameter-free shortcut, without bias).

Init: He fan-in normal; each of a branch's m convolutions times (L / (k + 1))^(1 / (2m)), so that the branch's whole
factor is beta = (k + 1)^(-1/2) and alpha^2 + beta^2 = 1; shortcuts and classifier N(0, 1 / fan-in); biases 0, to be set
from data by :meth:`RescaleNet.init_from_data`. Biases and scalars are not decayed, the classifier's bias is.

The official code centres in its first eight calls of forward, in whatever mode; here forward has no state, and the bias
less the mean that it took off is one parameter. Ablations: ``scale=False`` (no s) and ``residual_scaling=False`` (no
alpha, no L^(-1/2)). Squeeze-and-excite stands before s.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.affine_conv import AffineConv2d, PreBiasConv2d
from ..net.foreign import resnet_names
from ..net.layout import Layout, Site, cifar, imagenet, imagenet_basic
from ..net.network import Bias, ResNet, biased_stem, drop_path, pooled_projection, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, register


class RescaleBlock(nn.Module):
    """x' = relu(alpha h(x) + L^(-1/2) s F(x)), F of two or three convolutions with ReLU between."""

    def __init__(
        self,
        site: Site,
        scale: bool = True,
        residual_scaling: bool = True,
        drop_conv_rate: float = 0.0,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(PreBiasConv2d, **dd)
        k, depth = site.depth - 1 + site.index, site.depth
        drop = drop_conv_rate if site.stage >= 2 else 0.0
        self.alpha = (k / (k + 1)) ** 0.5 if residual_scaling else 1.0
        self.beta = depth**-0.5 if residual_scaling else 1.0
        self.init_gain = (depth / (k + 1)) ** (0.5 / len(site.convs)) * (1 - drop) ** 0.5
        self.downsample = shortcut(site, partial(pooled_projection, conv=conv))
        first, second, *third = site.convs
        self.conv1 = conv(**first)
        self.conv2 = conv(**second)
        self.conv3 = conv(**third[0]) if third else None
        self.drop = nn.Dropout2d(drop) if drop else nn.Identity()
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)
        self.scale = nn.Parameter(torch.ones(1, **dd)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        # L^(-1/2) s is a factor of the last convolution's weight: a product with F would keep F for backward.
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
        """The block at inference: L^(-1/2) s in the last convolution, alpha in the shortcut's where it has one."""
        plain = reparameterize_model(self)
        convs = plain.conv1, plain.conv2, plain.conv3
        gain = self.beta if self.scale is None else self.beta * self.scale
        return PostBlock(convs, plain.downsample, plain.attn, self.alpha, gain if self.attn is None else 2 * gain)


def _centre(bias: Tensor, share: float, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    bias.lerp_(-args[0].mean((0, 2, 3)).to(bias), share)


class RescaleNet(ResNet):
    """Method keywords: ``scale``, ``residual_scaling``, ``drop_conv_rate`` (Dropout2d in stages 3 and 4)."""

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return AffineConv2d(**shape, bias=False, **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return RescaleBlock(site, **kwargs)

    def make_stem(self, plan: Layout, in_chans: int, **dd: Any) -> nn.Sequential:
        return biased_stem(super().make_stem(plan, in_chans, **dd), plan.stem_chs, **dd)

    def make_final(self, chs: int, **dd: Any) -> nn.Module:
        return Bias(chs, **dd)

    def init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, AffineConv2d | PreBiasConv2d):
                linear = 'downsample' in name
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='linear' if linear else 'relu')
        for block in self.modules():
            if isinstance(block, RescaleBlock):
                for conv in (block.conv1, block.conv2, block.conv3):
                    if conv is not None:
                        conv.weight.mul_(block.init_gain)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=self.head.fc.in_features**-0.5)

    @torch.no_grad()
    def init_from_data(self, batches: Tensor | Iterable[Tensor]) -> None:
        """Set every bias before a convolution to minus the mean of each channel there, so that its input is centred.

        Args:
            batches: A batch of images (N, in_chans, H, W), or several, whose means are averaged (official code: eight).
        """
        biases: dict[nn.Module, Tensor] = {m: m.bias for m in self.modules() if isinstance(m, Bias)}
        biases |= {m: m.pre_bias for m in self.modules() if isinstance(m, PreBiasConv2d)}
        for n, x in enumerate([batches] if isinstance(batches, Tensor) else batches, 1):
            hooks = [m.register_forward_pre_hook(partial(_centre, bias, 1 / n)) for m, bias in biases.items()]
            try:
                self.forward_features(x)
            finally:
                for hook in hooks:
                    hook.remove()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The scalars and all biases but the classifier's."""
        names = [name for name, _ in self.named_parameters() if not name.startswith('head.')]
        return {name for name in names if name.endswith(('bias', '.scale'))}

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """The official code's weights under our names, the mean that a bias has taken off in the bias."""
        names = {'addbias1': 'stem.bias.bias', 'addbias2': 'final_act.bias'}
        found = resnet_names(state_dict, model)
        renamed = {}
        for name, value in found.items():
            place, _, leaf = name.rpartition('.')
            if leaf == '_bias':
                name = names.get(place, place.replace('.addbias', '.conv') + '.pre_bias')
                value = (value - found[f'{place}.init_mean']).flatten()
            if leaf not in ('init_mean', 'count'):
                renamed[name.replace('._scale', '.scale')] = value
        return renamed


register(
    RescaleNet,
    {
        'rescalenet18': dict(layout=imagenet_basic, depths=(2, 2, 2, 2)),
        'rescalenet34': dict(layout=imagenet_basic, depths=(3, 4, 6, 3)),
        'rescalenet50': dict(layout=imagenet, depths=(3, 4, 6, 3)),
        'rescalenet101': dict(layout=imagenet, depths=(3, 4, 23, 3)),
        'rescalenet152': dict(layout=imagenet, depths=(3, 8, 36, 3)),
    },
    IMAGENET,
)
register(
    RescaleNet,
    {
        'rescalenet20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
        'rescalenet56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
        'rescalenet110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
    },
    CIFAR,
)
