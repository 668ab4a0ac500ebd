"""EUNConv, the convolution that normalises its input, in the memory and nearly the time of a plain one."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, nearest
from .affine_conv import FactorConv2d

NORMS = ('sample', 'tensor', 'l2')


def standardize(x: Tensor, norm: str, eps: float) -> Tensor:
    """Normalise features (N, C, H, W): per image ('sample'), over the whole batch ('tensor'), or per pixel ('l2')."""
    if norm == 'sample':
        return F.group_norm(x, 1, None, None, eps)
    if norm == 'tensor':
        var, mean = torch.var_mean(x, unbiased=False)
        return (x - mean) * torch.rsqrt(var + eps)
    return F.normalize(x, p=2.0, dim=1)


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


class _InputNormConv(torch.autograd.Function):
    """conv2d(standardize(x)) that keeps x alone for backward.

    Autograd would keep the normalised input too: as much memory again as the network without normalisation needs.
    Recomputing it is one cheap pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, norm: str, eps: float, conv: tuple[Any, ...]
    ) -> Tensor:
        ctx.commuted = norm == 'sample' and _commutes(x, weight, conv)
        ctx.args = norm, eps, conv, None if bias is None else bias.dtype
        if ctx.commuted:
            out, *statistics = _conv_then_norm(x, weight, bias, eps, conv)
            ctx.save_for_backward(x, weight, *statistics)
            return out
        y, *statistics = (standardize(x, norm, eps),) if norm == 'l2' else _group_norm(x, norm, eps)
        ctx.save_for_backward(x, weight, *statistics)
        return F.conv2d(y, weight, bias, *conv)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *statistics = ctx.saved_tensors
        norm, eps, (stride, padding, dilation, groups), bias_dtype = ctx.args
        needs = ctx.needs_input_grad[:3]
        if ctx.commuted:
            mean, rstd = statistics
            return *_conv_then_norm_backward(grad, x, weight, mean, rstd, ctx.args[2], needs), None, None, None
        if norm == 'l2':
            y = standardize(x, norm, eps)
        else:
            mean, rstd = (t.view(-1, 1, 1, 1) for t in statistics)
            y = torch.addcmul(-mean * rstd, x, rstd)
        # Under autocast the gradient has the convolution's dtype, the parameters have their own.
        grad_y, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            y.to(grad.dtype),
            weight.to(grad.dtype),
            [weight.shape[0]],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            list(needs),
        )
        grad_x = None
        if needs[0]:
            grad_y = grad_y.to(x.dtype)
            if norm == 'l2':
                grad_x = _unit_norm_backward(grad_y, x, y)
            else:
                grad_x = _group_norm_backward(grad_y, x, *statistics)
        if needs[1]:
            grad_weight = grad_weight.to(weight.dtype)
        if needs[2]:
            grad_bias = grad_bias.to(bias_dtype)
        return grad_x, grad_weight, grad_bias, None, None, None


# Group norm with one group is the standardisation of an image. Its kernels do not ask where a number stands in the
# image, so an image is given to them in the order of its memory. The fast kernel on CPUs divides the work by pixels,
# and only if they are many: there an image looks as if it had 64 channels. Other devices refuse channels_last features:
# there an image has one channel. A batch as one image is one group, hence one block of threads on a GPU: there it is
# reduced by var_mean, which takes all of them.


def _is_cpu(x: Tensor) -> bool:
    return x.device.type == 'cpu'


def _in_rows(x: Tensor, images: int) -> Tensor:
    """``x`` as so many images of few channels, in the order of its memory. One: the batch as an image."""
    pixels = x.permute(0, 2, 3, 1) if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
    numel = math.prod(x.shape[1:]) * (len(x) if images == 1 else 1)
    width = math.gcd(numel, 64) if _is_cpu(x) else 1
    return pixels.reshape(images, numel // width, 1, width).permute(0, 3, 1, 2)


def _from_rows(rows: Tensor, x: Tensor) -> Tensor:
    """What `_in_rows` made of ``x``, in the shape of ``x`` again."""
    pixels = rows.permute(0, 2, 3, 1)
    n, c, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        return pixels.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return pixels.reshape(n, c, h, w)


def _group_norm(x: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``standardize`` by 'sample' or 'tensor', mu and 1 / sigma, (N, 1) or (1, 1)."""
    if norm == 'tensor' and not _is_cpu(x):
        var, mean = torch.var_mean(x, unbiased=False)
        rstd = torch.rsqrt(var + eps)
        return (x - mean) * rstd, mean.view(1, 1), rstd.view(1, 1)
    rows = _in_rows(x, min(1, len(x)) if norm == 'tensor' else len(x))
    y, mean, rstd = torch.native_group_norm(rows, None, None, *_sizes(rows), eps)
    return _from_rows(y, x), mean, rstd


def _group_norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    if len(mean) < len(x) and not _is_cpu(x):
        y = (x - mean) * rstd
        return rstd * (grad - grad.mean() - y * (grad * y).mean())
    last = x.is_contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    rows, grad = _in_rows(x, len(mean)), _in_rows(grad, len(mean))
    mask = [True, False, False]
    backward = torch.ops.aten.native_group_norm_backward
    return _from_rows(backward(grad, rows, mean, rstd, None, *_sizes(rows), mask)[0], x)


def _sizes(rows: Tensor) -> tuple[int, int, int, int]:
    """N, C, pixels and groups, as group norm's kernel asks for them."""
    n, c, h, w = rows.shape
    return n, c, h * w, 1


def _unit_norm_backward(grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of y = x / |x|: what of that of y is orthogonal to y, by |x|, in 32 bits or more."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype).clamp_min(1e-12)
    along = torch.sum(grad * y, 1, keepdim=True, dtype=dtype)
    return torch.addcmul(grad.to(dtype), y.to(dtype), along, value=-1).div_(length).to(grad.dtype)


LARGE = 1 << 19  # numbers in a batch of images: more than a core's cache holds


def _is_exact(x: Tensor) -> bool:
    """Whether the mean may be taken off last: in 16 bits it would take the digits."""
    return x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)


def _commutes(x: Tensor, weight: Tensor, conv: tuple[Any, ...]) -> bool:
    """Whether to normalise a convolution's output for its input: nothing is padded, and the output is smaller."""
    return _is_pointwise(weight, conv[1], conv[3]) and weight.shape[0] < weight.shape[1] and _is_exact(x)


def _is_pointwise(weight: Tensor, padding: Any, groups: int) -> bool:
    return weight.shape[2:] == (1, 1) and tuple(padding) == (0, 0) and groups == 1


def _moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """mu and 1 / sigma of each image, (N,)."""
    mean = x.mean((1, 2, 3))
    square = torch.linalg.vector_norm(x, dim=(1, 2, 3)).square() / math.prod(x.shape[1:])
    # Rounding may leave less than the nothing that the variance of a blank image is.
    return mean, (square - mean.square()).clamp(min=0).add(eps).rsqrt()


def _is_watched() -> bool:
    """Whether something wants to see every operator."""
    transformed = torch._C._are_functorch_transforms_active()
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or transformed


def _conv_then_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, conv: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """W (x - mu) / sigma + b as W x / sigma + (b - mu / sigma W 1), mu and 1 / sigma (N, 1)."""
    mean, rstd = _moments(x, eps)
    out = F.conv2d(x, weight, None, *conv)
    shift = torch.outer(-mean * rstd, weight.sum((1, 2, 3)))
    if bias is not None:
        shift = shift + bias
    torch.addcmul(shift[:, :, None, None], out, rstd.view(-1, 1, 1, 1), out=out)
    return out, mean[:, None], rstd[:, None]


def _conv_then_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    conv: tuple[Any, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias without the normalised input, which is as large as x."""
    stride, padding, dilation, groups = conv
    grad_x = grad_weight = grad_bias = None

    def backward(grad: Tensor, *mask: bool) -> tuple[Tensor, ...]:
        options = (stride, padding, dilation, False, [0, 0], groups, [*mask, False])
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *options)

    if needs[0]:
        grad_x = _group_norm_backward(backward(grad, True, False)[0], x, mean, rstd)
    if needs[1] or needs[2]:
        by_image = grad.sum((2, 3))
        grad_bias = by_image.sum(0)
    if needs[1]:
        grad_weight = backward(grad * rstd[:, :, None, None], False, True)[1]
        grad_weight -= ((mean * rstd).T @ by_image).view(-1, 1, 1, 1)
    return grad_x, grad_weight, grad_bias if needs[2] else None


def input_norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    eps: float,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """conv2d(standardize(x, norm, eps), weight, bias, ...), with the memory of the convolution alone."""
    if not torch.jit.is_scripting():
        if not _is_watched():
            conv = (stride, padding, dilation, groups)
            if torch.is_grad_enabled():
                return _InputNormConv.apply(x, weight, bias, norm, eps, conv)
            if norm == 'sample' and x.numel() >= LARGE and _commutes(x, weight, conv):
                return _conv_then_norm(x, weight, bias, eps, conv)[0]
            if norm != 'l2':
                return F.conv2d(_group_norm(x, norm, eps)[0], weight, bias, *conv)
    return F.conv2d(standardize(x, norm, eps), weight, bias, stride, padding, dilation, groups)


torch.fx.wrap('input_norm_conv')  # fx can't look into an autograd.Function


class InputNormConv2d(FactorConv2d):
    r"""EUNConv: :math:`y = W (x - \mu) / \sqrt{\sigma^2 + \epsilon} + b`. Nguyen et al. (2023), equation 8.

    Args:
        norm: What :math:`\mu, \sigma` are taken over. 'sample': C, H, W of each image. 'tensor': the whole batch, as
            the official code does, so that an image's output depends on its neighbours. 'l2': the paper's appendix,
            unit L2 norm over the channels of each pixel, no mean.
        eps: Added to the variance ('sample', 'tensor').

    Raises:
        UserError: unknown ``norm``.
    """

    def __init__(self, *args: Any, norm: str = 'sample', eps: float = 1e-5, **kwargs: Any):
        if norm not in NORMS:
            raise UserError(f"norm='{norm}': use one of {', '.join(NORMS)}{nearest(str(norm), NORMS)}")
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.eps = eps

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``factor``: a scalar for weight and bias."""
        weight, bias = self.scaled(factor)
        conv = (self.stride, self.padding, self.dilation, self.groups)
        return input_norm_conv(x, weight, bias, self.norm, self.eps, *conv)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, norm={self.norm}'
