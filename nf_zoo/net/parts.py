"""Parts of residual networks that several methods share: shortcuts, scalars, squeeze-and-excite, stochastic depth."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, DropPath, SEModule, get_act_layer
from torch import Tensor, nn

from ..errors import UserError, nearest
from ..layers.std_conv import GAMMA
from .layout import Site, conv_shape


class PadShortcut(nn.Module):
    """The parameter-free shortcut of He et al. (2016), section 4.2: every ``stride``-th pixel, the new channels zero.

    ``gain`` is a constant factor of the output.
    """

    def __init__(self, site: Site, gain: float = 1.0):
        super().__init__()
        self.stride = site.stride
        self.new_chs = site.out_chs - site.in_chs
        self.gain = gain

    def forward(self, x: Tensor, pre: Tensor | None = None) -> Tensor:
        """``pre``: a scalar (1,) that is added to x first."""
        x = x[:, :, :: self.stride, :: self.stride]
        if pre is not None:
            x = x + pre.to(x.dtype)
        if self.gain != 1.0:
            x = self.gain * x
        return F.pad(x, (0, 0, 0, 0, 0, self.new_chs)) if self.new_chs else x


class Bias(nn.Module):
    """x + b for features x (N, C, H, W). ``channels`` is the size of b: 1, or C for one bias per channel."""

    def __init__(self, channels: int = 1, **dd: Any):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, **dd))

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the features have another dtype than the parameters, and must keep it.
        return x + self.bias.to(x.dtype).view(-1, 1, 1)


def biased_stem(stem: nn.Sequential, channels: int, **dd: Any) -> nn.Sequential:
    """``stem`` with a :class:`Bias` after its convolution."""
    conv, *rest = stem.named_children()
    return nn.Sequential(OrderedDict([conv, ('bias', Bias(channels, **dd)), *rest]))


def avg_pool(site: Site) -> nn.Module:
    """The average pooling of a transition block's shortcut. Its output has the size of a strided convolution's."""
    if site.stride > 1:
        return nn.AvgPool2d(site.stride, site.stride, ceil_mode=True, count_include_pad=False)
    if site.dilation[1] > 1:
        return AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
    return nn.Identity()


def pooled_projection(site: Site, conv: Callable[..., nn.Module]) -> nn.Sequential:
    """The shortcut of ResNet-D in a transition block: average pooling, then a 1x1 convolution made by ``conv``."""
    return nn.Sequential(OrderedDict(pool=avg_pool(site), conv=conv(**conv_shape(site.in_chs, site.out_chs, 1))))


def strided_projection(site: Site, conv: Callable[..., nn.Module]) -> nn.Module:
    """The shortcut of ResNet v1.5 in a transition block: a strided 1x1 convolution made by ``conv``."""
    return conv(**conv_shape(site.in_chs, site.out_chs, 1, site.stride))


def shortcut(site: Site, projection: Callable[..., nn.Module], conv: Callable[..., nn.Module]) -> nn.Module | None:
    """The block's shortcut h.

    None stands for the identity. A transition block has ``projection(site, conv)`` or, in the layouts of He et al. for
    CIFAR, a :class:`PadShortcut`.
    """
    if not site.transition:
        return None
    return PadShortcut(site) if site.padded else projection(site, conv)


class _TwiceSigmoid(nn.Module):
    """2 sigmoid(x), whose mean is 1 at initialisation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.sigmoid()


class SqueezeExcite(SEModule):
    """Squeeze-and-excite times 2: x (N, C, H, W) becomes 2 sigmoid(W2 a(W1 mean(x))) x.

    Hu, Shen, Sun: "Squeeze-and-excitation networks", CVPR 2018. The factor is that of Brock, De, Smith (2021): a
    sigmoid's mean is a half at initialisation, so without the factor the signal would halve in every block.

    Args:
        channels: C.
        hidden: Outputs of W1.
        act: Makes the activation a.
    """

    def __init__(self, channels: int, hidden: int, act: Callable[[], nn.Module] = nn.ReLU, **dd: Any):
        super().__init__(channels, rd_channels=hidden, gate_layer=_TwiceSigmoid, **dd)
        # timm's activation works in place, which full backward hooks of fc1 refuse:
        # https://github.com/pytorch/pytorch/issues/61519
        self.act = act()


def squeeze_excite(
    layer: str | None, channels: int, hidden: int | None = None, act: Callable[[], nn.Module] = nn.ReLU, **dd: Any
) -> nn.Module | None:
    """The attention that the keyword ``attn_layer`` names: 'se' (:class:`SqueezeExcite`) or None.

    ``hidden`` is a quarter of the channels by default.

    Raises:
        UserError: another name.
    """
    if layer is None:
        return None
    if layer != 'se':
        raise UserError(
            f"attn_layer='{layer}': only 'se' (squeeze-and-excite) is built here{nearest(str(layer), ['se'])}"
        )
    return SqueezeExcite(channels, hidden or max(1, channels // 4), act, **dd)


class GammaAct(nn.Module):
    """gamma a(x), with variance 1 for x ~ N(0, 1) (Brock, De, Smith 2021, section 4.3).

    Args:
        name: The activation a: 'relu', 'silu', 'gelu' or 'identity'.
        gamma: The factor; None for the activation's own.

    Raises:
        UserError: another name.
    """

    def __init__(self, name: str, gamma: float | None = None):
        super().__init__()
        if name not in GAMMA:
            raise UserError(f"act_layer='{name}': use one of {', '.join(GAMMA)}{nearest(str(name), GAMMA)}")
        self.act = get_act_layer(name)()
        self.is_relu = name == 'relu'
        self.gamma = GAMMA[name] if gamma is None else float(gamma)

    def forward(self, x: Tensor, beta: float = 1.0) -> Tensor:
        """beta gamma a(x)."""
        factor = beta * self.gamma
        # Autograd keeps the output of ReLU, and that of a product for the convolution behind it: here they are one.
        return self.act(factor * x) if self.is_relu and factor > 0 else factor * self.act(x)


def drop_path(site: Site) -> nn.Module:
    """Stochastic depth that never divides by the keep rate (Brock, De, Smith 2021, appendix B.2)."""
    return DropPath(site.drop_path, scale_by_keep=False) if site.drop_path else nn.Identity()


def late_dropout(site: Site, rate: float) -> nn.Module | None:
    """Dropout2d with ``rate`` in stages 3 and 4; None in the others and for rate 0."""
    return nn.Dropout2d(rate) if rate and site.stage >= 2 else None


def check_rates(**rates: float) -> None:
    """Raise UserError unless every rate is from 0 to below 1."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f'{name}={rate!r}: give a rate from 0 to below 1')
