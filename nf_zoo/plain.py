"""Plain residual blocks: what folding leaves of a method's, and how constant factors move from part to part of them."""

import torch
from torch import Tensor, nn

from .convs import InputNormConv2d, plain_conv, standardize
from .net import PadShortcut


class Standardize(nn.Module):
    """The normalisation of an ``InputNormConv2d`` by itself, for a tensor that two convolutions use."""

    def __init__(self, norm: str, eps: float):
        super().__init__()
        self.norm = norm
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return standardize(x, self.norm, self.eps)

    def extra_repr(self) -> str:
        return f'norm={self.norm}'


def scale_output(module: nn.Module, factor: float | Tensor) -> None:
    """Let ``module``, a convolution or a sequence that ends with one, give ``factor`` times what it gave."""
    conv = module[-1] if isinstance(module, nn.Sequential) else module
    assert isinstance(conv, nn.Conv2d)
    conv.weight.mul_(factor)
    if conv.bias is not None:
        conv.bias.mul_(factor)


def scale_input(module: nn.Module, factor: float | Tensor) -> None:
    """Let ``module``, a convolution or a normalisation, give for x what it gave for ``factor`` x (positive)."""
    if isinstance(module, Standardize | InputNormConv2d):
        # (c x - c mean) / sqrt(c^2 var + eps). What is divided by its norm ('l2') has no eps and no scale.
        module.eps /= float(factor) ** 2
    else:
        assert isinstance(module, nn.Conv2d)
        module.weight.mul_(factor)


class PlainBlock(nn.Module):
    """``skip`` h(x) + ``gain`` attn(F(x)) of plain convolutions that have taken up these factors as far as possible.

    Args:
        convs: The two or three convolutions of F, ReLU between them; the block keeps and changes them.
        shortcut: h; None for the identity. The parameter-free one becomes a strided 1x1 convolution.
        attn: Squeeze-and-excite behind the last convolution, or None.
        skip: Constant.
        gain: Constant, or a learned scalar as a tensor.
    """

    def __init__(
        self,
        convs: tuple[nn.Module, nn.Module, nn.Module | None],
        shortcut: nn.Module | None = None,
        attn: nn.Module | None = None,
        skip: float = 1.0,
        gain: float | Tensor = 1.0,
    ):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = convs
        if isinstance(shortcut, PadShortcut):
            shortcut = _projection(shortcut, self.conv1)
        self.downsample = shortcut
        self.attn = attn
        self.skip = skip
        # A learned scalar may be 0, and the squeeze must not be divided by that.
        self.gain = nn.Parameter(gain.clone()) if attn is not None and isinstance(gain, Tensor) else None
        with torch.no_grad():
            if self.gain is None:
                self._scale_branch(gain)
            if shortcut is not None:
                scale_output(shortcut, skip)
                self.skip = 1.0
        self.train(self.conv1.training)

    def _scale_branch(self, factor: float | Tensor) -> None:
        if self.gain is not None:
            self.gain.mul_(factor)
            return
        scale_output(self.conv2 if self.conv3 is None else self.conv3, factor)
        if self.attn is not None:
            scale_input(self.attn.get_submodule('fc1'), 1 / factor)

    @torch.no_grad()
    def absorb(self, scale: float, fixed: bool = False) -> float:
        """Divide the output by ``scale`` and return by what the input then has to be divided.

        The input's divisor is chosen so that the identity has no factor, unless it is ``fixed`` to 1. ReLU is in the
        way of neither: relu(c x) = c relu(x).
        """
        self._scale_branch(1 / scale)
        if self.downsample is not None:
            scale_output(self.downsample, 1 / scale)
            return 1.0
        if fixed or self.skip <= 0:
            self.skip /= scale
            return 1.0
        before, self.skip = scale / self.skip, 1.0
        scale_input(self.conv1, before)
        return before

    def branch(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu_())
        if self.conv3 is not None:
            x = self.conv3(x.relu_())
        if self.attn is not None:
            x = self.attn(x)
        if self.gain is not None:
            x = self.gain * x
        return x


class PreBlock(PlainBlock):
    """x' = h + F(z), z = relu(x); h is x itself or taps z."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.relu()
        h = x if self.downsample is None else self.downsample(z)
        return self.branch(z).add_(h, alpha=self.skip)


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
        return self.branch(z).add_(h, alpha=self.skip).relu_()


def _projection(shortcut: PadShortcut, conv: nn.Module) -> nn.Conv2d:
    """The zero-padding shortcut beside ``conv`` as a strided 1x1 convolution, which can take up factors."""
    assert isinstance(conv, nn.Conv2d)
    chs, like = conv.in_channels, conv.weight
    dd = dict(device=like.device, dtype=like.dtype)
    plain = nn.utils.skip_init(nn.Conv2d, chs, chs + shortcut.new_chs, 1, stride=shortcut.stride, bias=False, **dd)
    nn.init.dirac_(plain.weight)
    return plain
