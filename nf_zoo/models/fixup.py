r"""Fixup. Zhang, Dauphin, Ma: "Fixup initialization: residual learning without normalization", ICLR 2019,
arXiv:1901.09321, section 3; in the form of the official code (hongyi-zhang/Fixup).

.. math:: x_l = \mathrm{relu}(h(x_{l-1}) + s_l F_l(x_{l-1}) + b_l), \qquad
          F = W_m (\cdot + a_m) \circ \ldots \circ \mathrm{relu} \circ (W_1 (\cdot + a_1) + b_1)

F is two or three plain convolutions W with ReLU between them. Each has a scalar bias a before it and a scalar bias b
after it; the last b is the block's. Each block has a learned scalar s. A scalar bias also follows the stem's
convolution, and one comes before the classifier. h is the identity of x; where the shape changes it is a strided 1x1
convolution of x + a_1 (CIFAR layouts: He et al.'s parameter-free shortcut of x + a_1).

Init, with L blocks of m convolutions: He fan-out normal, in a branch times L^(-1 / (2m - 2)), its last convolution 0;
scalar biases 0, s = 1; classifier 0, so that the logits start as exactly 0; the stem's convolution as in torch.
Scalars and biases learn at a tenth of the rate (the groups of the official code).

Here the bias before the classifier is added before the pooling, which gives the same. ``scale=False`` removes s.
Squeeze-and-excite comes before s. Stochastic depth drops s F + b.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PostBlock
from ..folding.rules import projection
from ..layers.affine_conv import AffineConv2d, biased
from ..net.branch import ResidualBlock, add_scalar
from ..net.foreign import resnet_names
from ..net.layout import Layout, Site, cifar, imagenet, imagenet_basic
from ..net.network import ResNet
from ..net.parts import Bias, biased_stem, shortcut, strided_projection
from ..net.registry import CIFAR, IMAGENET, register


class FixupBlock(ResidualBlock):
    """x' = relu(h + s F(x) + b), with a scalar bias before and after each convolution of F."""

    scale: Tensor

    def __init__(self, site: Site, scale: bool, attn_layer: str | None = None, **dd: Any):
        super().__init__()
        conv = partial(AffineConv2d, bias=False, **dd)
        self.downsample = shortcut(site, strided_projection, conv)
        self.bias1a, self.bias1b, self.bias2a, self.bias2b = (nn.Parameter(torch.zeros(1, **dd)) for _ in range(4))
        if site.bottleneck:
            self.bias3a, self.bias3b = (nn.Parameter(torch.zeros(1, **dd)) for _ in range(2))
        add_scalar(self, 'scale', 1.0, learned=scale, **dd)
        self.add_branch(site, conv, attn_layer=attn_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x, pre=self.bias1a)
        return (h + self.shifted_branch(x)).relu()

    def shifted_branch(self, x: Tensor) -> Tensor:
        """s F(x) + b. The convolutions take the scalars up, because sums and products would be kept for backward."""
        f = self.act(self.conv1(x, None, self.bias1a, self.bias1b))
        if self.conv3 is None:
            f = self.conv2(f, self.in_conv(self.scale), self.bias2a, self.in_conv(self.bias2b))
            return self.finish(f, self.scale, self.bias2b)
        f = self.act(self.conv2(f, None, self.bias2a, self.bias2b))
        f = self.conv3(f, self.in_conv(self.scale), self.bias3a, self.in_conv(self.bias3b))
        return self.finish(f, self.scale, self.bias3b)

    def fuse(self) -> PostBlock:
        """The block at inference, with all scalars in the convolutions."""
        plain, conv3, b = reparameterize_model(self), None, self.bias2b
        conv1 = biased(plain.conv1, self.bias1a, self.bias1b)
        conv2 = biased(plain.conv2, self.bias2a, None if plain.conv3 is None else b)
        if plain.conv3 is not None:
            conv3, b = biased(plain.conv3, self.bias3a), self.bias3b
        h = plain.downsample
        if h is not None:
            h = biased(projection(h, conv1), self.bias1a)
        return PostBlock((conv1, conv2, conv3), h, plain.attn, act=plain.act, scalar=self.scale, shift=b)


class FixupResNet(ResNet):
    """Fixup.

    Args:
        scale: Whether each block has a learned scalar s; else s is 1.
        args, kwargs: As of :class:`~nf_zoo.net.network.ResNet`.
    """

    def __init__(self, *args: Any, scale: bool = True, **kwargs: Any):
        super().__init__(*args, conv=partial(nn.Conv2d, bias=False), block=partial(FixupBlock, scale=scale), **kwargs)

    def make_stem(
        self, plan: Layout, in_chans: int, conv: Callable[..., nn.Module], act: Callable[[], nn.Module], **dd: Any
    ) -> nn.Sequential:
        return biased_stem(super().make_stem(plan, in_chans, conv, act), 1, **dd)

    def make_final(self, chs: int, act: Callable[[], nn.Module], **dd: Any) -> nn.Module:
        return Bias(1, **dd)

    def init_weights(self) -> None:
        blocks = [module for module in self.modules() if isinstance(module, FixupBlock)]
        for block in blocks:
            *convs, last = block.convs()
            for conv in convs:
                nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
                conv.weight.mul_(len(blocks) ** (-0.5 / len(convs)))
            nn.init.zeros_(last.weight)
            if isinstance(block.downsample, nn.Conv2d):
                nn.init.kaiming_normal_(block.downsample.weight, mode='fan_out', nonlinearity='relu')
        if isinstance(self.head.fc, nn.Linear):
            nn.init.zeros_(self.head.fc.weight)
            nn.init.zeros_(self.head.fc.bias)

    @torch.jit.ignore
    def lr_scales(self) -> dict[str, float]:
        """Scalars and biases, also the classifier's, learn at a tenth of the rate."""
        return {r'bias|scale': 0.1}

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Also takes the weights of the official code, for ImageNet or CIFAR."""
        names = {'bias1': 'stem.bias.bias', 'bias2': 'final_act.bias'}
        return {names.get(k, k): v for k, v in resnet_names(state_dict, model).items()}


register(
    FixupResNet,
    {
        'fixup_resnet18': dict(layout=imagenet_basic, depths=(2, 2, 2, 2)),
        'fixup_resnet34': dict(layout=imagenet_basic, depths=(3, 4, 6, 3)),
        'fixup_resnet50': dict(layout=imagenet, depths=(3, 4, 6, 3)),
        'fixup_resnet101': dict(layout=imagenet, depths=(3, 4, 23, 3)),
        'fixup_resnet152': dict(layout=imagenet, depths=(3, 8, 36, 3)),
    },
    IMAGENET,
)
register(
    FixupResNet,
    {
        'fixup_resnet20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
        'fixup_resnet56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
        'fixup_resnet110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
    },
    CIFAR,
)
