r"""RescaleNet. Shao, Hu, Wang, Xue, Raj: "Is normalization indispensable for training deep neural networks?",
NeurIPS 2020, section 3; in the form of the official code (hukkai/rescaling).

.. math:: x_l = \mathrm{relu}(\alpha_l h(x_{l-1}) + L^{-1/2} s_l F_l(x_{l-1})), \qquad \alpha_l^2 = k / (k + 1)

F is two or three plain convolutions with ReLU between them. No convolution has a bias after it. A bias per channel
stands before every convolution of F and of the shortcut h, after the stem's convolution, and before the pooling.
There are L residual blocks, for which k = L - 1 ... 2L - 2. Each has a learned scalar s. h is the identity; where the
shape changes it is average pooling, a bias and a 1x1 convolution (CIFAR layouts: He et al.'s parameter-free shortcut
without bias).

Init: He fan-in normal. Each of the m convolutions of F is multiplied by (L / (k + 1))^(1 / (2m)), so that the factor
of the whole branch is beta = (k + 1)^(-1/2), and alpha^2 + beta^2 = 1. (Hoedt et al., section 4.1, count one further:
1 / (L + 1) ... 1 / (2L). Nguyen et al. print the factor as (L / (k + L))^(2 / m), a misprint.) Shortcuts and
classifier N(0, 1 / fan-in), s = 1. Biases are 0, and :meth:`RescaleNet.init_from_data` then sets them from images.
Biases and scalars aren't decayed; the classifier's bias is.

The official code centres the features in its first eight calls of forward, in training and in evaluation. Here
forward has no state: the bias minus the mean is one parameter. ``scale=False`` removes s, ``residual_scaling=False``
removes alpha and L^(-1/2). Squeeze-and-excite comes before s.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..layers.affine_conv import PreBiasConv2d
from ..net.branch import ResidualBlock, add_scalar
from ..net.foreign import resnet_names
from ..net.layout import Layout, Site, cifar, imagenet, imagenet_basic
from ..net.network import ResNet
from ..net.parts import Bias, biased_stem, check_rates, late_dropout, pooled_projection, shortcut
from ..net.registry import CIFAR, IMAGENET, register


class RescaleBlock(ResidualBlock):
    """x' = relu(alpha h(x) + L^(-1/2) s F(x)), with a bias before each convolution of F and h."""

    scale: Tensor

    def __init__(
        self,
        site: Site,
        scale: bool,
        residual_scaling: bool,
        drop_conv_rate: float,
        attn_layer: str | None = None,
        **dd: Any,
    ):
        super().__init__()
        conv = partial(PreBiasConv2d, **dd)
        k, depth = site.depth - 1 + site.index, site.depth
        self.alpha = (k / (k + 1)) ** 0.5 if residual_scaling else 1.0
        self.beta = depth**-0.5 if residual_scaling else 1.0
        self.downsample = shortcut(site, pooled_projection, conv)
        drop = late_dropout(site, drop_conv_rate)
        self.add_branch(site, conv, drop=drop, attn_layer=attn_layer, **dd)
        # Dropout multiplies the second moment of what it keeps by 1 / (1 - rate); the weights make up for that.
        kept = 1.0 if drop is None else 1 - drop_conv_rate
        self.init_gain = (depth / (k + 1)) ** (0.5 / len(site.convs)) * kept**0.5
        add_scalar(self, 'scale', 1.0, learned=scale, **dd)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        return torch.add(self.scaled_branch(x, self.beta * self.scale), h, alpha=self.alpha).relu()

    def fuse(self) -> PostBlock:
        """The block at inference, with L^(-1/2) s in the last convolution and alpha in the shortcut's, if any."""
        return PostBlock.of(self, skip=self.alpha, gain=self.beta, scalar=self.scale)


def _centre(bias: Tensor, share: float, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    bias.lerp_(-args[0].mean((0, 2, 3)).to(bias), share)


class RescaleNet(ResNet):
    """RescaleNet.

    Args:
        scale: Whether each block has a learned scalar s.
        residual_scaling: Whether alpha and the factor L^(-1/2) are those of the equation; else both are 1.
        drop_conv_rate: Rate of Dropout2d after each convolution of F in stages 3 and 4.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.
    """

    def __init__(
        self,
        *args: Any,
        scale: bool = True,
        residual_scaling: bool = True,
        drop_conv_rate: float = 0.0,
        **kwargs: Any,
    ):
        check_rates(drop_conv_rate=drop_conv_rate)
        block = partial(RescaleBlock, scale=scale, residual_scaling=residual_scaling, drop_conv_rate=drop_conv_rate)
        super().__init__(*args, conv=partial(nn.Conv2d, bias=False), block=block, **kwargs)

    def make_stem(
        self, plan: Layout, in_chans: int, conv: Callable[..., nn.Module], act: Callable[[], nn.Module], **dd: Any
    ) -> nn.Sequential:
        return biased_stem(super().make_stem(plan, in_chans, conv, act), plan.stem_chs, **dd)

    def make_final(self, chs: int, act: Callable[[], nn.Module], **dd: Any) -> nn.Module:
        return Bias(chs, **dd)

    def init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, PreBiasConv2d) or name == 'stem.conv':
                linear = 'downsample' in name
                nn.init.kaiming_normal_(module.weight, mode='fan_in', nonlinearity='linear' if linear else 'relu')
        for block in self.modules():
            if isinstance(block, RescaleBlock):
                for conv in block.convs():
                    conv.weight.mul_(block.init_gain)
        if isinstance(self.head.fc, nn.Linear):
            nn.init.normal_(self.head.fc.weight, std=self.head.fc.in_features**-0.5)

    @torch.no_grad()
    def init_from_data(self, batches: Tensor | Iterable[Tensor]) -> None:
        """Set every bias to minus the mean of each channel there, so that the input of each convolution is centred.

        Args:
            batches: Images (N, in_chans, H, W), or several such batches, whose means are averaged. The official code
                takes eight batches.
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
        """The scalars, and all biases except the classifier's."""
        names = [name for name, _ in self.named_parameters() if not name.startswith('head.')]
        return {name for name in names if name.endswith(('bias', '.scale'))}

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Also takes the weights of the official code; its running means become part of the biases."""
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
