"""Residual blocks of plain convolutions: the form that folding gives to the blocks of all methods."""

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from ..layers.affine_conv import ShiftedReLU, add_bias, bias_and_conv
from ..layers.input_norm import InputNormConv2d, Standardize
from ..layers.std_conv import plain_conv
from ..net.branch import ResidualBlock
from .rules import plain_act, plain_attention, projection, scale_input, scale_output, squeeze_conv, then_affine

Convs = tuple[nn.Module, nn.Module, nn.Module | None]
Block = TypeVar('Block', bound='PlainBlock')


class PlainBlock(nn.Module):
    """``skip`` h(x) + ``gain`` ``scalar`` attn(F(x)) + ``shift``, with these constants in the convolutions if possible.

    Args:
        convs: The two or three convolutions of F, which has activations between them. The block keeps and changes them.
            Each may be a sequence with a bias before it, or with squeeze-and-excite after it.
        shortcut: h; None for the identity. A parameter-free one becomes a strided 1x1 convolution.
        attn: Attention after the last convolution; None or an ``nn.Identity`` for no attention.
        skip: Factor of h: a constant, or a learned scalar (1,).
        gain: Constant factor of the branch.
        scalar: The branch's scalar (1,), a parameter if it is learned; None for no scalar.
        shift: A learned scalar (1,); None for no shift.
        act: The activation, ReLU by default. If it has a constant factor gamma, that goes into the convolutions.
        beta: Constant factor of the branch's input, and of the shortcut's where it isn't the identity.
    """

    def __init__(
        self,
        convs: Convs,
        shortcut: nn.Module | None = None,
        attn: nn.Module | None = None,
        skip: float | Tensor = 1.0,
        gain: float = 1.0,
        scalar: Tensor | None = None,
        shift: Tensor | None = None,
        act: nn.Module | None = None,
        beta: float = 1.0,
    ):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = convs
        self.downsample = None if shortcut is None else projection(shortcut, self.conv1)
        self.attn, twice = plain_attention(attn or nn.Identity())
        self.act, gamma = plain_act(act or nn.ReLU())
        self.is_relu, self.is_silu = isinstance(self.act, nn.ReLU), isinstance(self.act, nn.SiLU)
        self.skip: nn.Parameter | None = None
        self.gain: nn.Parameter | None = None
        self.shift: nn.Parameter | None = None
        learned = isinstance(scalar, nn.Parameter)
        factor: float | Tensor = gain if scalar is None else gain * (scalar if learned else scalar.item())
        factor = twice * factor
        # A learned scalar may be 0, and the squeeze must not be divided by that.
        if self.attn is not None and (learned or squeeze_conv(self.attn) is None):
            self.gain, factor = self._parameter(factor), 1.0
        with torch.no_grad():
            for conv in (self.conv1, self.downsample):
                if conv is not None:
                    scale_input(conv, gamma * beta)
            for conv in (self.conv2, self.conv3):
                if conv is not None:
                    scale_input(conv, gamma)
            self._scale_branch(factor)
            if self.downsample is not None:
                scale_output(self.downsample, skip)
            elif isinstance(skip, Tensor) or skip != 1.0:
                self.skip = self._parameter(skip)
            if shift is not None and self.downsample is not None:
                add_bias(self.downsample, shift)
            elif shift is not None and self.attn is None:
                add_bias(self.last(), shift)
            elif shift is not None:
                self.shift = self._parameter(shift)
            self.between: ShiftedReLU | None = None
            parts = bias_and_conv(self.conv2)  # no bias is before the third convolution, since that pads nothing
            if parts is not None and self.is_relu:  # relu(z) + b = max(z + b, b)
                bias, self.conv2 = parts
                add_bias(self.conv1, bias)
                self.between = ShiftedReLU(bias)
        self.train(self.conv1.training)

    @classmethod
    def of(cls: type[Block], block: ResidualBlock, **constants: Any) -> Block:
        """The plain block of a copy of ``block``. ``constants``: as of the constructor."""
        plain: Any = reparameterize_model(block)
        convs = plain.conv1, plain.conv2, plain.conv3
        return cls(convs, plain.downsample, plain.attn, act=plain.act, **constants)

    def _parameter(self, value: float | Tensor) -> nn.Parameter:
        like = next(self.conv1.parameters())
        return nn.Parameter(torch.as_tensor(value, dtype=like.dtype, device=like.device).detach().clone())

    def convs(self) -> list[Any]:
        """The convolutions of F."""
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
        """Divide the output by ``scale``, and return the number by which the input must then be divided.

        That number is chosen so that an identity shortcut needs no factor. It is 1 if the input is ``fixed``, if the
        factor isn't positive, or if the number would leave the range of the weights' dtype. ReLU passes a positive
        factor on: relu(c x) = c relu(x).
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
        """Take up a convolution of each channel that follows the block, if possible. Returns whether it was."""
        if self.downsample is None or self.attn is not None:
            return False
        then_affine(self.downsample, affine)
        scale_output(self.last(), affine.weight)
        return True

    def overwrites(self) -> bool:
        """Whether the block computes in place: it does if no gradient is taken and no hook could keep a tensor.

        Out of place, a folded EUNNet-50 or NF-ResNet-50 takes 3 to 12 % more time.
        """
        if not torch.jit.is_scripting():
            if self.is_watched():
                return False
        return not torch.is_grad_enabled()

    @torch.jit.unused
    def is_watched(self) -> bool:
        """Whether a forward hook sees a tensor that the block could overwrite."""
        parts = [self.act, self.attn, self.between, *self.convs()]
        parts += [part[-1] for part in parts if isinstance(part, nn.Sequential)]
        hooked = any(part is not None and (part._forward_hooks or part._forward_pre_hooks) for part in parts)
        return hooked or bool(nn.modules.module._global_forward_hooks)

    def activate(self, x: Tensor, overwrite: bool) -> Tensor:
        """a(x), in the memory of x if ``overwrite`` and if a is ReLU or SiLU."""
        if overwrite and self.is_relu:
            return F.relu(x, inplace=True)
        if overwrite and self.is_silu:
            return F.silu(x, inplace=True)
        return self.act(x)

    def branch(self, x: Tensor, overwrite: bool) -> Tensor:
        """F(x) with attention, gain and shift."""
        x = self.conv1(x)
        if self.between is not None:
            x = self.between(x, overwrite)
        else:
            x = self.activate(x, overwrite)
        x = self.conv2(x)
        if self.conv3 is not None:
            x = self.conv3(self.activate(x, overwrite))
        return self.scaled(x)

    def scaled(self, x: Tensor) -> Tensor:
        """Attention, gain and shift of the output ``x`` of the last convolution."""
        if self.attn is not None:
            x = self.attn(x)
        if self.gain is not None:
            x = self.gain * x
        if self.shift is not None:
            x = x + self.shift
        return x

    def merge(self, h: Tensor, f: Tensor, overwrite: bool) -> Tensor:
        """The sum of shortcut and branch, in the memory of ``f`` if ``overwrite``."""
        if self.skip is not None:
            h = self.skip * h
        return f.add_(h) if overwrite else f + h


class PreBlock(PlainBlock):
    """x' = h + F(z), z = a(x). h is x, or a convolution of z. ``affine``: a convolution of each channel before a."""

    def __init__(self, *args: Any, affine: nn.Conv2d | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.affine = affine

    def forward(self, x: Tensor) -> Tensor:
        overwrite = self.overwrites()
        z = self.act(x) if self.affine is None else self.act(self.affine(x))
        h = x if self.downsample is None else self.downsample(z)
        return self.merge(h, self.branch(z, overwrite), overwrite)


class PostBlock(PlainBlock):
    """x' = relu(h(z) + F(z)). z is x, normalised here if branch and shortcut would both normalise it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.norm: nn.Module = nn.Identity()
        first, shortcut = self.conv1, self.downsample
        if isinstance(first, InputNormConv2d) and isinstance(shortcut, nn.Sequential):
            pool, conv = shortcut
            if isinstance(pool, nn.Identity) and isinstance(conv, nn.Conv2d):
                self.norm = Standardize(first.norm, first.eps).train(first.training)
                self.conv1 = plain_conv(first, first.weight, first.bias)
                shortcut[1] = plain_conv(conv, conv.weight, conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        overwrite = self.overwrites()
        z = self.norm(x)
        h = x if self.downsample is None else self.downsample(z)
        return self.activate(self.merge(h, self.branch(z, overwrite), overwrite), overwrite)
