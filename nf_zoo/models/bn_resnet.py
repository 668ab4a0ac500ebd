r"""The controls: ResNets with batch normalization (BN) in the layouts in which the methods without it are compared.

.. math:: x_l = \mathrm{relu}(h(x_{l-1}) + F_l(x_{l-1})) \qquad\qquad
          x_l = W z + F_l(z), \quad z = \mathrm{relu}(\mathrm{BN}(x_{l-1}))

``bn_resnet*_cifar``, on the left. He, Zhang, Ren, Sun: "Deep residual learning for image recognition", CVPR 2016,
arXiv:1512.03385, section 4.2, with h its parameter-free shortcut; BN after each convolution.

``bn_preresnet*_cifar``, on the right. The control of Civitelli et al. (arXiv:2112.12299): the pre-activation block of
He et al., arXiv:1603.05027, with a 1x1 convolution W as shortcut in every block, since this is what the parameters and
operations in Tables 1 and 2 come from (BN's own parameters are not counted there); BN before each convolution of F and,
as in He et al., before the pooling.

``gn_resnet*_cifar``: the network on the left with group normalization in place of BN, after Wu, He: "Group
normalization", ECCV 2018, arXiv:1803.08494. A group has 8 channels. This is what users take when a batch is small. An
image's logits do not depend on its batch here.

Convolutions without bias. Init: He fan-out normal, BN and group normalization the identity, classifier as in torch.
Squeeze-and-excite stands at the branch's end. With BN an image's logits depend on its batch in training mode. The
normalisations are called ``bn1``, ``bn2`` in both, as in timm's own networks with group normalization.
"""

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..folding.blocks import PostBlock, PreBlock, affine, normed
from ..net.layout import Layout, Site, cifar, cifar_wide, cifar_wide_basic, conv_shape
from ..net.network import PadShortcut, ResNet, drop_path, squeeze_excite
from ..net.registry import CIFAR, register


def group_norm(channels: int, **dd: Any) -> nn.GroupNorm:
    """Group normalization in groups of 8 channels; ``channels`` is a multiple of 8."""
    return nn.GroupNorm(channels // 8, channels, **dd)


class NormBlock(nn.Module):
    """x' = relu(h(x) + F(x)), F two convolutions with a normalisation ``norm`` after each."""

    norm: Callable[..., nn.Module]

    def __init__(
        self,
        site: Site,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        first, second = site.convs
        self.downsample = PadShortcut(site) if site.transition else None
        self.conv1 = nn.Conv2d(**first, bias=False, **dd)
        self.bn1 = self.norm(site.mid_chs, **dd)
        self.conv2 = nn.Conv2d(**second, bias=False, **dd)
        self.bn2 = self.norm(site.out_chs, **dd)
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        f = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        if self.attn is not None:
            f = 2 * self.attn(f)
        return (h + self.drop_path(f)).relu_()


class GNBlock(NormBlock):
    """Group normalization after each convolution. It depends on the image, so folding leaves it."""

    norm = staticmethod(group_norm)


class BNBlock(NormBlock):
    """BN after each convolution."""

    norm = nn.BatchNorm2d

    def fuse(self) -> PostBlock:
        """The block at inference: BN in the convolutions."""
        plain = deepcopy(self)
        assert isinstance(plain.bn1, nn.BatchNorm2d) and isinstance(plain.bn2, nn.BatchNorm2d)
        convs = normed(plain.conv1, plain.bn1), normed(plain.conv2, plain.bn2), None
        return PostBlock(convs, plain.downsample, plain.attn, gain=1.0 if self.attn is None else 2.0)


class BNPreBlock(nn.Module):
    """x' = W z + F(z), z = relu(BN(x)), F two or three convolutions with BN and ReLU between."""

    def __init__(
        self,
        site: Site,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        conv = partial(nn.Conv2d, bias=False, **dd)
        first, second, *third = site.convs
        self.downsample = conv(**conv_shape(site.in_chs, site.out_chs, 1, site.stride))
        self.bn1 = nn.BatchNorm2d(site.in_chs, **dd)
        self.conv1 = conv(**first)
        self.bn2 = nn.BatchNorm2d(site.mid_chs, **dd)
        self.conv2 = conv(**second)
        self.bn3 = nn.BatchNorm2d(site.mid_chs, **dd) if third else None
        self.conv3 = conv(**third[0]) if third else None
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        z = self.bn1(x).relu_()
        f = self.conv2(self.bn2(self.conv1(z)).relu_())
        if self.bn3 is not None and self.conv3 is not None:
            f = self.conv3(self.bn3(f).relu_())
        if self.attn is not None:
            f = 2 * self.attn(f)
        return self.downsample(z) + self.drop_path(f)

    def fuse(self) -> PreBlock:
        """The block at inference: BN in the convolutions before it, the first as one of its own."""
        plain = deepcopy(self)
        conv1, conv2, conv3 = normed(plain.conv1, plain.bn2), plain.conv2, plain.conv3
        if plain.bn3 is not None:
            conv2 = normed(conv2, plain.bn3)
        gain = 1.0 if self.attn is None else 2.0
        return PreBlock((conv1, conv2, conv3), plain.downsample, plain.attn, gain=gain, affine=affine(plain.bn1))


class BNResNet(ResNet):
    block_type: type[NormBlock] = BNBlock

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        return nn.Conv2d(**shape, bias=False, **dd)

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return self.block_type(site, **kwargs)

    def make_stem(self, plan: Layout, in_chans: int, **dd: Any) -> nn.Sequential:
        conv, *rest = super().make_stem(plan, in_chans, **dd).named_children()
        return nn.Sequential(OrderedDict([conv, ('bn', self.block_type.norm(plan.stem_chs, **dd)), *rest]))

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')


class GNResNet(BNResNet):
    block_type = GNBlock


class BNPreResNet(BNResNet):
    preact = True
    make_stem = ResNet.make_stem

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        return BNPreBlock(site, **kwargs)

    def make_final(self, chs: int, **dd: Any) -> nn.Module:
        return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(chs, **dd), act=nn.ReLU()))


for _net, _family in ((BNResNet, 'bn_resnet'), (GNResNet, 'gn_resnet')):
    register(
        _net,
        {
            f'{_family}20_cifar': dict(layout=cifar, depths=(3, 3, 3)),
            f'{_family}56_cifar': dict(layout=cifar, depths=(9, 9, 9)),
            f'{_family}110_cifar': dict(layout=cifar, depths=(18, 18, 18)),
        },
        CIFAR,
    )
register(
    BNPreResNet,
    {
        'bn_preresnet18_cifar': dict(layout=cifar_wide_basic, depths=(2, 2, 2, 2)),
        'bn_preresnet50_cifar': dict(layout=cifar_wide, depths=(3, 4, 6, 3)),
        'bn_preresnet101_cifar': dict(layout=cifar_wide, depths=(3, 4, 23, 3)),
    },
    dict(CIFAR, pool_size=(4, 4)),
)
