"""The branch F of a residual block, and its scalar, in the memory of a branch without a scalar."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .layout import Site
from .parts import drop_path, squeeze_excite


class ResidualBlock(nn.Module):
    """A residual block without its equation: the parts of F and the order in which they run.

    F is two or three convolutions with the activation between them. Attention and stochastic depth follow. A method's
    block has its own shortcut, scalars and ``forward``.
    """

    def add_branch(
        self,
        site: Site,
        conv: Callable[..., nn.Module],
        first: Callable[..., nn.Module] | None = None,
        act: Callable[[], nn.Module] = nn.ReLU,
        drop: nn.Module | None = None,
        attn_layer: str | None = None,
        **dd: Any,
    ) -> None:
        """Make the parts of F.

        Args:
            site: The block's place.
            conv: Makes a convolution from the keyword arguments of ``nn.Conv2d``.
            first: Makes the first convolution, if not ``conv``.
            act: Makes the activation.
            drop: Dropout before every activation; None for no dropout.
            attn_layer: Attention after the last convolution, as of :func:`~nf_zoo.net.parts.squeeze_excite`.
        """
        shapes = site.convs
        self.act = act()
        self.conv1 = (first or conv)(**shapes[0])
        self.conv2 = conv(**shapes[1])
        self.conv3: nn.Module | None = conv(**shapes[2]) if site.bottleneck else None
        self.drop = nn.Identity() if drop is None else drop
        attn = squeeze_excite(attn_layer, site.out_chs, **dd)
        self.scalar_in_conv = attn is None
        self.attn = nn.Identity() if attn is None else attn
        self.drop_path = drop_path(site)

    def convs(self) -> list[Any]:
        """The convolutions of F."""
        return [conv for conv in (self.conv1, self.conv2, self.conv3) if conv is not None]

    def convolutions(self, x: Tensor) -> Tensor:
        """F(x) without attention and stochastic depth."""
        f = self.conv2(self.act(self.drop(self.conv1(x))))
        if self.conv3 is not None:
            f = self.conv3(self.act(self.drop(f)))
        return f

    def branch(self, x: Tensor) -> Tensor:
        """F(x)."""
        return self.drop_path(self.attn(self.convolutions(x)))

    def scaled_branch(self, x: Tensor, s: Tensor) -> Tensor:
        """s F(x), with dropout after the last convolution too.

        The last convolution takes the scalar s (1,) up, as :class:`~nf_zoo.layers.affine_conv.FactorConv2d` does in its
        weight and bias. Autograd would save F(x) for the product s F(x).
        """
        f = self.act(self.drop(self.conv1(x)))
        if self.conv3 is None:
            f = self.conv2(f, self.in_conv(s))
        else:
            f = self.conv3(self.act(self.drop(self.conv2(f))), self.in_conv(s))
        return self.finish(f, s)

    def in_conv(self, s: Tensor) -> Tensor | None:
        """``s`` if the last convolution may take it up. It may not where attention follows, which would see it."""
        return s if self.scalar_in_conv else None

    def finish(self, f: Tensor, s: Tensor, b: Tensor | None = None) -> Tensor:
        """s F(x) + b from the output ``f`` of the last convolution, which was given :meth:`in_conv` of s and b."""
        f = self.attn(self.drop(f))
        if not self.scalar_in_conv:
            f = s * f
            if b is not None:
                f = f + b
        return self.drop_path(f)


def add_scalar(block: nn.Module, name: str, start: float, learned: bool = True, **dd: Any) -> None:
    """Give ``block`` the scalar ``name`` (1,): a parameter, or the constant 1 that is no part of the state_dict."""
    if learned:
        block.register_parameter(name, nn.Parameter(torch.full((1,), start, **dd)))
    else:
        block.register_buffer(name, torch.ones(1, **dd), persistent=False)
