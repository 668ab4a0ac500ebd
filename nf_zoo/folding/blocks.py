"""Plain residual blocks: what folding leaves of a method's, and how constants move from part to part of them."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import EcaModule, EffectiveSEModule, SEModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..layers.affine_conv import Fill, Scale, Shift, add_bias
from ..layers.input_norm import InputNormConv2d, Standardize
from ..layers.std_conv import plain_conv
from ..net.network import PadShortcut

Act = Callable[..., nn.Module]
Convs = tuple[nn.Module, nn.Module, nn.Module | None]


# ---- moving constants


def squeeze_conv(module: nn.Module) -> nn.Module | None:
    """The first layer of squeeze-and-excite or its like, which sees the input's mean; None for other modules."""
    if isinstance(module, SEModule):
        return module.fc1
    if isinstance(module, EffectiveSEModule):
        return module.fc
    return module.get_submodule('conv') if type(module) is EcaModule else None


def scale_output(module: nn.Module, factor: float | Tensor) -> None:
    """Let ``module`` give ``factor`` times what it gave: a scalar or, for convolutions, one (out, 1, 1, 1) per channel.

    ``module``: a convolution, or a sequence that ends with one or with squeeze-and-excite (``factor`` not 0 then).
    """
    if isinstance(module, nn.Sequential):
        squeeze = squeeze_conv(module[-1])
        scale_output(module[-1] if squeeze is None else module[:-1], factor)
        if squeeze is not None:
            scale_input(squeeze, 1 / factor)
    elif isinstance(module, Scale):
        module.gain.mul_(factor)
    else:
        assert isinstance(module, nn.Conv2d)
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor.flatten() if isinstance(factor, Tensor) else factor)


def scale_input(module: nn.Module, factor: float | Tensor) -> None:
    """Let ``module`` give for x what it gave for ``factor`` x (positive).

    ``module``: a convolution, a normalisation, or a sequence with one behind pooling, padding and biases.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            if isinstance(part, Shift):
                part.bias.div_(factor)
            elif isinstance(part, Fill):
                part.value /= float(factor)
            elif isinstance(part, nn.Conv2d):
                return scale_input(part, factor)
    elif isinstance(module, Standardize | InputNormConv2d):
        # (c x - c mean) / sqrt(c^2 var + eps). What is divided by its norm ('l2') has no eps and no scale.
        module.eps /= float(factor) ** 2
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        module.weight.mul_(factor)


def attended(conv: nn.Module, attn: nn.Module | None, gain: float) -> nn.Module:
    """``gain`` attn(conv(x)), the gain (not 0) in the convolution where that can be; conv(x) if there is no attn."""
    if attn is None:
        return conv
    sequence = nn.Sequential(OrderedDict(conv=conv, attn=attn)).train(conv.training)
    if squeeze_conv(attn) is None:
        sequence.append(Scale(next(conv.parameters()).new_tensor(gain)))
    else:
        with torch.no_grad():
            scale_output(sequence, gain)
    return sequence


def projection(shortcut: nn.Module, conv: nn.Module) -> nn.Module:
    """A transition block's shortcut beside ``conv``; the zero-padding one as a strided 1x1 convolution."""
    if not isinstance(shortcut, PadShortcut):
        return shortcut
    conv = conv[-1] if isinstance(conv, nn.Sequential) else conv
    assert isinstance(conv, nn.Conv2d)
    chs, like = conv.in_channels, conv.weight
    dd = dict(device=like.device, dtype=like.dtype)
    plain = nn.utils.skip_init(nn.Conv2d, chs, chs + shortcut.new_chs, 1, stride=shortcut.stride, bias=False, **dd)
    nn.init.dirac_(plain.weight)
    return plain


def normed(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """norm(conv(x)), with the running statistics."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias)
    return plain_conv(conv, weight, bias)


def affine(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """``norm`` by itself as a convolution of each channel."""
    chs, like = norm.num_features, norm.weight
    dd = dict(device=like.device, dtype=like.dtype)
    conv = nn.utils.skip_init(nn.Conv2d, chs, chs, 1, groups=chs, bias=False, **dd).train(norm.training)
    nn.init.ones_(conv.weight)
    return normed(conv, norm)


def then_affine(module: nn.Module, affine: nn.Conv2d) -> None:
    """Let ``module``, as of :func:`scale_output`, give affine(module(x)); ``affine`` as of :func:`affine`."""
    scale_output(module, affine.weight)
    if affine.bias is not None:
        add_bias(module, affine.bias)


# ---- blocks


class PlainBlock(nn.Module):
    """``skip`` h(x) + ``gain`` attn(F(x)) + ``shift`` of plain convolutions that have taken up what they can of these.

    Args:
        convs: The two or three convolutions of F, activations between them; the block keeps and changes them. Each may
            be a sequence: with a bias or padding before it, or squeeze-and-excite behind it.
        shortcut: h; None for the identity. The parameter-free one becomes a strided 1x1 convolution.
        attn: Attention behind the last convolution, or None.
        skip: Factor of h; a constant, or a learned scalar as a tensor.
        gain: Factor of the branch, likewise.
        shift: A learned scalar, or None.
        act: Class of the activation.
        gamma: Constant factor of every activation.
        beta: Another one of the branch's input, and of the shortcut's where it isn't the identity.
    """

    def __init__(
        self,
        convs: Convs,
        shortcut: nn.Module | None = None,
        attn: nn.Module | None = None,
        skip: float | Tensor = 1.0,
        gain: float | Tensor = 1.0,
        shift: Tensor | None = None,
        act: Act = nn.ReLU,
        gamma: float = 1.0,
        beta: float = 1.0,
    ):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = convs
        self.downsample = None if shortcut is None else projection(shortcut, self.conv1)
        self.attn = attn
        self.act = act()
        self.act_ = act(inplace=True)
        self.skip: nn.Parameter | None = None
        self.gain: nn.Parameter | None = None
        self.shift: nn.Parameter | None = None
        # A learned scalar may be 0, and the squeeze must not be divided by that.
        if attn is not None and (isinstance(gain, Tensor) or squeeze_conv(attn) is None):
            self.gain, gain = self._parameter(gain), 1.0
        with torch.no_grad():
            for conv in (self.conv1, self.downsample):
                if conv is not None:
                    scale_input(conv, gamma * beta)
            for conv in (self.conv2, self.conv3):
                if conv is not None:
                    scale_input(conv, gamma)
            self._scale_branch(gain)
            if self.downsample is not None:
                scale_output(self.downsample, skip)
            elif isinstance(skip, Tensor) or skip != 1.0:
                self.skip = self._parameter(skip)
            if shift is not None and self.downsample is not None:
                add_bias(self.downsample, shift)
            elif shift is not None and attn is None:
                add_bias(self.last(), shift)
            elif shift is not None:
                self.shift = self._parameter(shift)
        self.train(self.conv1.training)

    def _parameter(self, value: float | Tensor) -> nn.Parameter:
        like = next(self.conv1.parameters())
        return nn.Parameter(torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().clone())

    def convs(self) -> list[Any]:
        """Those of F."""
        return [conv for conv in (self.conv1, self.conv2, self.conv3) if conv is not None]

    def last(self) -> nn.Module:
        """The last convolution of F."""
        return self.conv2 if self.conv3 is None else self.conv3

    def _scale_branch(self, factor: float | Tensor) -> None:
        if self.shift is not None:
            self.shift.mul_(factor)
        if self.gain is not None:
            self.gain.mul_(factor)
        elif self.attn is not None:
            scale_output(nn.Sequential(self.last(), self.attn), factor)
        else:
            scale_output(self.last(), factor)

    @torch.no_grad()
    def absorb(self, scale: float, fixed: bool = False) -> float:
        """Divide the output by ``scale`` and return by what the input then has to be divided.

        The input's divisor is chosen so that the identity has no factor, unless it is ``fixed`` to 1, or the factor
        isn't positive, or the divisor would leave the numbers that the weights' dtype can take with ease. ReLU is in
        the way of neither: relu(c x) = c relu(x) for c > 0.
        """
        self._scale_branch(1 / scale)
        if self.downsample is not None:
            scale_output(self.downsample, 1 / scale)
            return 1.0
        skip = 1.0 if self.skip is None else self.skip.item()
        limit = torch.finfo(next(self.conv1.parameters()).dtype).max ** 0.25
        before = scale / skip if skip > 0 else math.inf
        if fixed or not 1 / limit < before < limit:
            self.skip = self._parameter(skip / scale) if skip != scale else None
            return 1.0
        self.skip = None
        scale_input(self.conv1, before)
        return before

    @torch.no_grad()
    def absorb_affine(self, affine: nn.Conv2d) -> bool:
        """Take up a convolution of each channel behind the block, if the shortcut and the branch can; say whether."""
        if self.downsample is None or self.attn is not None:
            return False
        then_affine(self.downsample, affine)
        scale_output(self.last(), affine.weight)
        return True

    def branch(self, x: Tensor) -> Tensor:
        x = self.conv2(self.act_(self.conv1(x)))
        if self.conv3 is not None:
            x = self.conv3(self.act_(x))
        return self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        """F(x) of what its last convolution gave: attention, ``gain`` and ``shift``."""
        if self.attn is not None:
            x = self.attn(x)
        if self.gain is not None:
            x = self.gain * x
        if self.shift is not None:
            x = x + self.shift
        return x

    def skipped(self, h: Tensor) -> Tensor:
        if self.skip is not None:
            h = self.skip * h
        return h

    def merge(self, h: Tensor, f: Tensor) -> Tensor:
        return f.add_(self.skipped(h))


class PreBlock(PlainBlock):
    """x' = h + F(z), z = a(x); h is x itself or taps z. ``affine``: a convolution of each channel before a, or None."""

    def __init__(self, *args: object, affine: nn.Conv2d | None = None, **kwargs: object):
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.affine = affine

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x) if self.affine is None else self.act_(self.affine(x))
        h = x if self.downsample is None else self.downsample(z)
        return self.merge(h, self.branch(z))


class PostBlock(PlainBlock):
    """x' = relu(h(z) + F(z)), z = x, normalised here if both the branch and the shortcut would normalise it."""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.norm: nn.Module = nn.Identity()
        first, shortcut = self.conv1, self.downsample
        if isinstance(first, InputNormConv2d) and isinstance(shortcut, nn.Sequential):
            pool, conv = shortcut
            if isinstance(pool, nn.Identity) and isinstance(conv, nn.Conv2d):
                self.norm = Standardize(first.norm, first.eps).train(first.training)
                self.conv1 = plain_conv(first, first.weight, first.bias)
                shortcut[1] = plain_conv(conv, conv.weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        h = x if self.downsample is None else self.downsample(z)
        return self.act_(self.merge(h, self.branch(z)))
