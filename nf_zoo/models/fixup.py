r"""Fixup. Zhang, Dauphin, Ma: "Fixup initialization: residual learning without normalization", ICLR 2019,
arXiv:1901.09321, section 3; the forms of the official code (hongyi-zhang/Fixup).

.. math:: x_l = \mathrm{relu}(h(x_{l-1}) + s_l F_l(x_{l-1}) + b_l), \qquad
          F = W_m (\cdot + a_m) \circ \ldots \circ \mathrm{relu} \circ (W_1 (\cdot + a_1) + b_1)

Plain convolutions without bias; a scalar bias before each (a) and after each (b), a scalar s after the branch, one
scalar bias after the stem's convolution and one before the classifier. h is the identity of x or, where the shape
changes, a strided 1x1 convolution of x + a_1 (CIFAR layouts: He et al.'s parameter-free shortcut of x + a_1).

Init, with L blocks of m convolutions: He fan-out normal, in a branch times L^(-1 / (2m - 2)), its last convolution 0;
scalar biases 0, s = 1; classifier 0, so that the logits start as exactly 0; the stem's convolution as in torch.
Scalars and biases learn at a tenth of the rate (the official code's groups).

The bias before the classifier is added before the pooling here, which is the same. Squeeze-and-excite stands before s.
"""

from functools import partial
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..folding.blocks import PostBlock, projection
from ..layers.affine_conv import AffineConv2d, biased
from ..net.foreign import resnet_names
from ..net.layout import Layout, Site, cifar, conv_shape, imagenet, imagenet_basic
from ..net.network import Bias, ResNet, biased_stem, drop_path, shortcut, squeeze_excite
from ..net.registry import CIFAR, IMAGENET, register


class FixupBlock(nn.Module):
    """x' = relu(h + s F(x) + b), each convolution of F with a scalar bias before it and one after it."""

    def __init__(
        self,
        site: Site,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(AffineConv2d, bias=False, **dd)
        first, second, *third = site.convs
        self.downsample = shortcut(site, lambda s: conv(**conv_shape(s.in_chs, s.out_chs, 1, s.stride)))
        self.bias1a = nn.Parameter(torch.zeros(1, **dd))
        self.conv1 = conv(**first)
        self.bias1b = nn.Parameter(torch.zeros(1, **dd))
        self.bias2a = nn.Parameter(torch.zeros(1, **dd))
        self.conv2 = conv(**second)
        self.bias2b = nn.Parameter(torch.zeros(1, **dd))
        self.conv3 = conv(**third[0]) if third else None
        if third:
            self.bias3a = nn.Parameter(torch.zeros(1, **dd))
            self.bias3b = nn.Parameter(torch.zeros(1, **dd))
        self.scale = nn.Parameter(torch.ones(1, **dd))
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x + self.bias1a.to(x.dtype))
        # The scalars go into the convolutions' weights and biases: sums and products would be kept for backward.
        s = self.scale if self.attn is None else None
        f = self.conv1(x, pre=self.bias1a, post=self.bias1b).relu_()
        if self.conv3 is None:
            b = self.bias2b
            f = self.conv2(f, s, self.bias2a, b if self.attn is None else None)
        else:
            b = self.bias3b
            f = self.conv2(f, pre=self.bias2a, post=self.bias2b).relu_()
            f = self.conv3(f, s, self.bias3a, b if self.attn is None else None)
        if self.attn is not None:
            f = 2 * self.scale * self.attn(f) + b
        return (h + self.drop_path(f)).relu_()

    def fuse(self) -> PostBlock:
        """The block at inference: s and the biases in the convolutions, a bias before padding as what is padded."""
        plain, third, b = reparameterize_model(self), None, self.bias2b
        conv1 = biased(plain.conv1, self.bias1a, self.bias1b)
        conv2 = biased(plain.conv2, self.bias2a, None if plain.conv3 is None else b)
        if plain.conv3 is not None:
            third, b = biased(plain.conv3, self.bias3a), self.bias3b
        h = plain.downsample
        if h is not None:
            h = biased(projection(h, conv1), self.bias1a)
        gain = self.scale if self.attn is None else 2 * self.scale
        return PostBlock((conv1, conv2, third), h, plain.attn, gain=gain, shift=b)


class FixupResNet(ResNet):
    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return nn.Conv2d(**shape, bias=False, **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return FixupBlock(site, **kwargs)

    def make_stem(self, plan: Layout, in_chans: int, **dd: Any) -> nn.Sequential:
        return biased_stem(super().make_stem(plan, in_chans, **dd), 1, **dd)

    def make_final(self, chs: int, **dd: Any) -> nn.Module:
        return Bias(1, **dd)

    def init_weights(self) -> None:
        blocks = [module for module in self.modules() if isinstance(module, FixupBlock)]
        for block in blocks:
            *convs, last = [conv for conv in (block.conv1, block.conv2, block.conv3) if conv is not None]
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
        """Scalars and biases, the classifier's too, learn at a tenth of the rate."""
        return {r'bias|scale': 0.1}

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """The official code's weights, of ImageNet or CIFAR, under our names."""
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
