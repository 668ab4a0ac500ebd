r"""The controls: ResNets with batch normalization (BN) or group normalization, in the layouts of the methods without
it.

.. math:: x_l = \mathrm{relu}(h(x_{l-1}) + F_l(x_{l-1})) \qquad\qquad
          x_l = W z + F_l(z), \quad z = \mathrm{relu}(\mathrm{BN}(x_{l-1}))

``bn_resnet*_cifar``, on the left: He, Zhang, Ren, Sun: "Deep residual learning for image recognition", CVPR 2016,
arXiv:1512.03385, section 4.2. h is their parameter-free shortcut. BN follows each convolution.

``bn_preresnet*_cifar``, on the right: the control of Civitelli et al. (arXiv:2112.12299), the pre-activation block of
He et al., arXiv:1603.05027. A 1x1 convolution W is the shortcut in every block, because the parameters and operations
in Tables 1 and 2 come from such a network. (They don't count the parameters of BN.) Figure 2 shows the classical
network with identity shortcuts (:func:`nf_zoo.analysis.figure_nets.classical`). BN comes before each convolution of F
and, as in He et al., before the pooling.

``gn_resnet*_cifar``: the network on the left with group normalization in place of BN, after Wu, He: "Group
normalization", ECCV 2018, arXiv:1803.08494. A group has 8 channels. It is the usual choice where batches are small,
because the logits of an image don't depend on the other images of its batch. With BN they do in training.

Convolutions have no bias. Init: He fan-out normal, BN and group normalization the identity, classifier as in torch.
Squeeze-and-excite comes at the end of the branch. Both normalizations are called ``bn1`` and ``bn2``, as in timm's
own networks with group normalization.
"""

from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..folding.blocks import PostBlock, PreBlock
from ..folding.rules import affine, normed
from ..net.branch import ResidualBlock
from ..net.layout import Layout, Site, cifar, cifar_wide, cifar_wide_basic
from ..net.network import ResNet
from ..net.parts import drop_path, shortcut, squeeze_excite, strided_projection
from ..net.registry import CIFAR, register


def group_norm(channels: int, **dd: Any) -> nn.GroupNorm:
    """Group normalization in groups of 8 channels. ``channels`` is a multiple of 8."""
    return nn.GroupNorm(channels // 8, channels, **dd)


class NormBlock(ResidualBlock):
    """x' = relu(h(x) + F(x)), with a normalization after each of the two convolutions of F."""

    norm: Callable[..., nn.Module]

    def __init__(self, site: Site, attn_layer: str | None = None, **dd: Any):
        super().__init__()
        conv = partial(nn.Conv2d, bias=False, **dd)
        first, second = site.convs
        self.downsample = shortcut(site, strided_projection, conv)
        self.act = nn.ReLU()
        self.conv1 = conv(**first)
        self.bn1 = self.norm(site.mid_chs, **dd)
        self.conv2 = conv(**second)
        self.bn2 = self.norm(site.out_chs, **dd)
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd) or nn.Identity()
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.downsample is None else self.downsample(x)
        return (h + self.branch(x)).relu()

    def convolutions(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))


class GNBlock(NormBlock):
    """Group normalization after each convolution. It depends on the image, so folding leaves it."""

    norm = staticmethod(group_norm)


class BNBlock(NormBlock):
    """BN after each convolution."""

    norm = nn.BatchNorm2d

    def fuse(self) -> PostBlock:
        """The block at inference, with BN in the convolutions."""
        plain: Any = deepcopy(self)
        convs = normed(plain.conv1, plain.bn1), normed(plain.conv2, plain.bn2), None
        return PostBlock(convs, plain.downsample, plain.attn)


class BNPreBlock(ResidualBlock):
    """x' = W z + F(z), z = relu(BN(x)), with BN and ReLU between the convolutions of F."""

    def __init__(self, site: Site, attn_layer: str | None = None, **dd: Any):
        super().__init__()
        conv = partial(nn.Conv2d, bias=False, **dd)
        first, second, *third = site.convs
        self.downsample = strided_projection(site, conv)
        self.act = nn.ReLU()
        self.bn1 = nn.BatchNorm2d(site.in_chs, **dd)
        self.conv1 = conv(**first)
        self.bn2 = nn.BatchNorm2d(site.mid_chs, **dd)
        self.conv2 = conv(**second)
        self.bn3 = nn.BatchNorm2d(site.mid_chs, **dd) if third else None
        self.conv3 = conv(**third[0]) if third else None
        self.attn = squeeze_excite(attn_layer, site.out_chs, **dd) or nn.Identity()
        self.drop_path = drop_path(site)

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.bn1(x))
        return self.downsample(z) + self.branch(z)

    def convolutions(self, x: Tensor) -> Tensor:
        f = self.conv2(self.act(self.bn2(self.conv1(x))))
        if self.bn3 is not None and self.conv3 is not None:
            f = self.conv3(self.act(self.bn3(f)))
        return f

    def fuse(self) -> PreBlock:
        """The block at inference, with BN in the convolution before it. The first BN is a convolution of its own."""
        plain: Any = deepcopy(self)
        conv1, conv2, conv3 = normed(plain.conv1, plain.bn2), plain.conv2, plain.conv3
        if plain.bn3 is not None:
            conv2 = normed(conv2, plain.bn3)
        return PreBlock((conv1, conv2, conv3), plain.downsample, plain.attn, affine=affine(plain.bn1))


class BNResNet(ResNet):
    """ResNet with BN after each convolution. Arguments as of :class:`~nf_zoo.net.network.ResNet`."""

    block_type: type[NormBlock | BNPreBlock] = BNBlock
    norm: Callable[..., nn.Module] = nn.BatchNorm2d

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, conv=partial(nn.Conv2d, bias=False), block=self.block_type, **kwargs)

    def make_stem(
        self, plan: Layout, in_chans: int, conv: Callable[..., nn.Module], act: Callable[[], nn.Module], **dd: Any
    ) -> nn.Sequential:
        first, *rest = super().make_stem(plan, in_chans, conv, act).named_children()
        return nn.Sequential(OrderedDict([first, ('bn', self.norm(plan.stem_chs, **dd)), *rest]))

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')


class GNResNet(BNResNet):
    """The same network with group normalization."""

    block_type = GNBlock
    norm = staticmethod(group_norm)


class BNPreResNet(BNResNet):
    """Pre-activation ResNet with BN. Arguments as of :class:`~nf_zoo.net.network.ResNet`."""

    preact = True
    block_type = BNPreBlock
    make_stem = ResNet.make_stem

    def make_final(self, chs: int, act: Callable[[], nn.Module], **dd: Any) -> nn.Module:
        return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(chs, **dd), act=act()))


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
