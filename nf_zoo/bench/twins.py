"""The same network with another normalization: stem, widths, depths, activation, attention and shortcuts are equal.

A twin has plain convolutions. Batch or group normalization follows each of them or, in pre-activation networks, comes
before each activation. Without a normalization the twin is the floor, whose convolutions have biases. It computes in
place where it may, as timm's networks do.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import SEModule
from torch import Tensor, nn

from ..net.layout import Layout, Site, conv_shape
from ..net.network import ResNet
from ..net.parts import GammaAct, PadShortcut, SqueezeExcite, avg_pool
from ..net.registry import variant

Norm = Callable[[int], nn.Module]


def no_norm(channels: int) -> nn.Module:
    """The normalization of the floor: none."""
    return nn.Identity()


def group_norm(channels: int) -> nn.Module:
    """Group normalization in 32 groups (Wu, He, ECCV 2018), or in as many powers of two as the channels allow."""
    return nn.GroupNorm(next(n for n in (32, 16, 8, 4, 2, 1) if channels % n == 0), channels)


def twin(name: str, model: ResNet, norm: Norm, **kwargs: Any) -> ResNet:
    """The twin of ``model`` with the normalization ``norm``.

    Args:
        name: The name of ``model`` in the registry.
        model: The network, which is read and not changed.
        norm: Makes the normalization of so many channels.
        **kwargs: Keyword arguments that ``model`` was made with: num_classes, in_chans, depths, width.
    """
    row = variant(name)
    stages: Any = model.stages
    blocks = [block for stage in stages for block in stage]
    net = _PreTwin if model.preact else _Twin
    head = not isinstance(model.final_conv, nn.Identity)

    def block(site: Site, attn_layer: str | None = None, **dd: Any) -> nn.Module:
        return _Block(site, blocks[site.index], norm, model.preact, head)

    keywords = {'layout': row['layout'], 'depths': row['depths'], 'num_classes': model.num_classes, **kwargs}
    return net(norm=norm, act=_activation(blocks[0].act), block=block, **keywords)


def _activation(act: nn.Module) -> Callable[[], nn.Module]:
    """Makes the activation without its constant factor. ReLU works in place: what it overwrites isn't kept."""
    plain = act.act if isinstance(act, GammaAct) else act
    return partial(nn.ReLU, inplace=True) if isinstance(plain, nn.ReLU) else type(plain)


class _Block(nn.Module):
    """a(h(x) + F(x)) or, in pre-activation networks, h + F(z) with z = a(norm(x)) and h of x, or a convolution of z."""

    def __init__(self, site: Site, like: Any, norm: Norm, preact: bool, attention_inside: bool):
        super().__init__()
        conv = partial(nn.Conv2d, bias=norm is no_norm)
        convs = [conv(**shape) for shape in site.convs]
        act = _activation(like.act)
        se = next((m for m in like.modules() if isinstance(m, SqueezeExcite)), None)
        attn = None if se is None else SEModule(se.fc1.in_channels, rd_channels=se.fc1.out_channels, act_layer=nn.ReLU)
        self.preact = preact
        self.norm = norm(site.in_chs) if preact else nn.Identity()
        # The block's input is needed again if it is the shortcut, so the first activation mustn't overwrite it.
        shared = preact and isinstance(self.norm, nn.Identity)
        self.act = nn.ReLU() if shared and isinstance(act(), nn.ReLU) else act()
        parts: list[nn.Module] = []
        for number, module in enumerate(convs):
            last = number == len(convs) - 1
            parts.append(module)
            if not (preact and last):
                parts.append(norm(module.out_channels))
            if attn is not None and (last or attention_inside and number == len(convs) - 2):
                parts.append(attn)
                attn = None
            if not last:
                parts.append(act())
        self.branch = nn.Sequential(*(part for part in parts if not isinstance(part, nn.Identity)))
        self.downsample = _shortcut(site, like.downsample, conv, no_norm if preact else norm)
        self.last = nn.Identity() if preact else act()

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.norm(x)) if self.preact else x
        f = self.branch(z)
        h = x if self.downsample is None else self.downsample(z if self.preact else x)
        f += h
        return self.last(f)


def _shortcut(site: Site, like: nn.Module | None, conv: Callable[..., nn.Module], norm: Norm) -> nn.Module | None:
    if like is None or isinstance(like, PadShortcut):
        return None if like is None else PadShortcut(site)
    pooled = isinstance(like, nn.Sequential)
    stride = 1 if pooled else site.stride
    parts = [conv(**conv_shape(site.in_chs, site.out_chs, 1, stride)), norm(site.out_chs)]
    if pooled:
        parts.insert(0, avg_pool(site))
    return nn.Sequential(*(part for part in parts if not isinstance(part, nn.Identity)))


class _Twin(ResNet):
    """Post-activation."""

    def __init__(self, *, norm: Norm, **kwargs: Any):
        self.make_norm = norm  # the constructor below makes the stem
        super().__init__(conv=partial(nn.Conv2d, bias=norm is no_norm), **kwargs)

    def init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def make_stem(
        self, plan: Layout, in_chans: int, conv: Callable[..., nn.Module], act: Callable[[], nn.Module], **dd: Any
    ) -> nn.Sequential:
        first, *rest = super().make_stem(plan, in_chans, conv, act).named_children()
        return nn.Sequential(OrderedDict([first, ('norm', self.make_norm(plan.stem_chs)), *rest]))


class _PreTwin(_Twin):
    """Pre-activation."""

    preact = True
    make_stem = ResNet.make_stem

    def make_final(self, chs: int, act: Callable[[], nn.Module], **dd: Any) -> nn.Module:
        return nn.Sequential(self.make_norm(chs), act())
