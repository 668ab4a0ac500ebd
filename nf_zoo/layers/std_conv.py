"""Convolutions that normalise their weight instead of their output.

Each is an ``nn.Conv2d`` that stores an ordinary weight and bias. ``fuse()`` gives the plain convolution that computes
the same. timm's ``reparameterize_model`` calls it by that name.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, nearest

# Var(gamma a(x)) = 1 for x ~ N(0, 1): Brock, De, Smith (2021), section 4.3. These are the values of the released code,
# which estimates them from samples; `gamma` integrates, and gives 1.712859 and 1.787187.
GAMMA = {
    'relu': 1.7139588594436646,
    'silu': 1.7881293296813965,
    'gelu': 1.7015043497085571,
    'identity': 1.0,
}


def gamma(activation: str | Callable[[Tensor], Tensor]) -> float:
    r"""The constant by which an activation keeps unit variance: :math:`\gamma = 1 / \sqrt{\mathrm{Var}(a(x))}`.

    x ~ N(0, 1). Brock, De, Smith (2021), section 4.3. The integral is taken numerically in float64, with an error
    below 1e-12 for an activation that is smooth between multiples of 1/8.

    Args:
        activation: Elementwise: a function or module, as ``torch.nn.functional.mish`` or ``nn.PReLU()``, or timm's
            name of one, as ``'gelu'``.

    Raises:
        UserError: unknown name, a function that isn't elementwise, or a variance that is 0 or not finite.
    """
    from numpy.polynomial.legendre import leggauss
    from timm.layers.create_act import _ACT_FN_DEFAULT

    named = {'identity': nn.Identity(), **_ACT_FN_DEFAULT}
    if isinstance(activation, str) and activation not in named:
        raise UserError(f"no activation '{activation}': use one of {', '.join(named)}{nearest(activation, named)}")
    act = named[activation] if isinstance(activation, str) else activation
    if isinstance(act, nn.Module):
        act = deepcopy(act).double()
    nodes, weights = (torch.from_numpy(values) for values in leggauss(16))
    starts = torch.arange(-16, 16, 1 / 8, dtype=torch.float64)
    x = (starts[:, None] + (nodes + 1) / 16).flatten()
    density = weights.repeat(len(starts)) / 16 * torch.exp(-x.square() / 2) / (2 * math.pi) ** 0.5
    with torch.no_grad():
        y = act(x.clone())
    if not isinstance(y, Tensor) or y.shape != x.shape:
        raise UserError('gamma needs an elementwise activation: one number in, one number out')
    mean = (density * y).sum()
    variance = (density * (y - mean).square()).sum().item()
    if not 0 < variance < math.inf:
        raise UserError(f'the variance of this activation is {variance}: gamma would not be a finite number')
    return variance**-0.5


class WeightConv2d(nn.Conv2d):
    """A convolution whose weight W' = ``effective_weight()`` is a function of the stored weight."""

    def effective_weight(self) -> Tensor:
        """The weight that the convolution applies, (out, in / groups, kh, kw) as the stored one."""
        raise NotImplementedError

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``factor``: a scalar that multiplies the output."""
        weight, bias = scaled(factor, self.effective_weight(), self.bias)
        return self._conv_forward(x, weight, bias)

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The plain convolution that computes the same."""
        return plain_conv(self, self.effective_weight(), self.bias)


def plain_conv(like: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """An ``nn.Conv2d`` of ``like``'s geometry, device, dtype and mode, with copies of ``weight`` and ``bias``."""
    conv = nn.Conv2d(
        like.in_channels,
        like.out_channels,
        like.kernel_size,  # type: ignore[arg-type]
        stride=like.stride,  # type: ignore[arg-type]
        padding=like.padding,  # type: ignore[arg-type]
        dilation=like.dilation,  # type: ignore[arg-type]
        groups=like.groups,
        padding_mode=like.padding_mode,
        bias=bias is not None,
        device='meta',
    )
    conv.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv.train(like.training)


def scaled(factor: Tensor | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias times ``factor``; as they are without one."""
    if factor is not None:
        weight = factor * weight
        bias = factor * bias if bias is not None else None
    return weight, bias


def standardized(weight: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """``weight`` (out, ...) with mean 0 and variance gain^2 in each output channel. ``gain``: (out,), or None for 1."""
    # Batch normalisation of the rows as channels computes the same in one fused kernel.
    rows = weight.reshape(1, weight.shape[0], -1)
    return F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=eps).view_as(weight)


class ScaledStdConv2d(WeightConv2d):
    r"""Scaled weight standardisation: :math:`W' = g \gamma (W - \mu) / \sqrt{N (\sigma^2 + \epsilon)}`.

    :math:`\mu` and :math:`\sigma^2` (biased) are those of each output channel, N is the fan-in, g a learned gain per
    output channel. Brock, De, Smith (2021), section 4.3, in timm's form: the activation's constant gamma and a block's
    beta are factors of the weight, where they cost nothing.

    Args:
        gamma: Constant factor of the weight.
        gain_init: Initial value of every gain; 0 makes the convolution's output start as its bias.
        eps: Added to the variance.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, gain_init: float = 1.0, eps: float = 1e-5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scale = gamma * self.weight[0].numel() ** -0.5
        self.eps = eps
        self.gain = nn.Parameter(torch.full_like(self.weight[:, :1, :1, :1], gain_init))

    def effective_weight(self) -> Tensor:
        return standardized(self.weight, (self.gain * self.scale).view(-1), self.eps)


def filter_norm(weight: Tensor) -> Tensor:
    """|v| of each output channel (out, 1, ...) of a weight v (out, ...); 1 where v is zero, so that v / |v| is too."""
    norm = torch.linalg.vector_norm(weight.flatten(1), dim=1).view([-1] + [1] * (weight.dim() - 1))
    return torch.where(norm == 0, torch.ones_like(norm), norm)


def without_batch_norm(
    norm: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    r"""Gain and bias with which a weight-normalised layer computes what a layer and its batch normalization compute.

    .. math:: \gamma\, \frac{v * x + b - \mu}{\sigma} + \beta = \frac{g\, v}{|v|} * x + b', \qquad
              g = \frac{|v|\, \gamma}{\sigma}, \quad b' = \beta + \frac{\gamma\, (b - \mu)}{\sigma}, \quad
              \sigma = \sqrt{\mathrm{var} + \epsilon}

    Args:
        norm: |v| of the layer's output channels (out,).
        bias: The layer's bias b (out,), or None.
        mean: Running mean of the batch normalization (out,).
        var: Its running variance (out,).
        gamma: Its weight (out,), or None for 1.
        beta: Its bias (out,), or None for 0.
        eps: What it adds to the variance.

    Returns:
        g and b', both (out,).
    """
    factor = torch.rsqrt(var + eps)
    if gamma is not None:
        factor = factor * gamma
    shift = -mean if bias is None else bias - mean
    return norm * factor, shift * factor if beta is None else beta + shift * factor


class WeightNormConv2d(WeightConv2d):
    """Weight normalisation: W' = g v / |v|, with |v| the norm of an output channel's weights. Salimans, Kingma (2016).

    ``weight`` is v; ``gain`` is g, (out, 1, 1, 1). g starts as |v|, so that W' = v. Where v = 0, W' = g v: zero, with
    the finite gradient g.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(self.norm().detach())

    def norm(self) -> Tensor:
        """|v| (out, 1, 1, 1), and 1 where v is zero."""
        return filter_norm(self.weight)

    def effective_weight(self) -> Tensor:
        return self.weight * (self.gain / self.norm())


class WSConv2d(WeightConv2d):
    r"""Scaled weight standardisation as released: :math:`W' = g (W - \mu) / \sqrt{\max(N \sigma^2, \epsilon)}`.

    It differs from :class:`ScaledStdConv2d` in two points: no gamma, and the variance of a constant weight is clamped.
    """

    def __init__(self, *args: Any, eps: float = 1e-4, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones_like(self.weight[:, :1, :1, :1]))

    def effective_weight(self) -> Tensor:
        # torch.var_mean takes several times as long.
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        squares = centred.square().sum((1, 2, 3), keepdim=True)  # N sigma^2
        return centred * (self.gain * torch.rsqrt(squares.clamp(min=self.eps)))
