r"""EUNConv, a convolution that normalises its input, in the memory of a plain convolution.

Nguyen et al. (2023), equation 8: :math:`y = W (x - \mu) / \sqrt{\sigma^2 + \epsilon} + b`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, nearest
from .recomputed import Before, is_transformed, recomputed_conv

NORMS = ('sample', 'tensor', 'l2')


def standardize_images(x: Tensor, eps: float, factor: Tensor | None = None) -> Tensor:
    """Normalise each image of (N, C, H, W) to mean 0 and variance 1, then multiply by the scalar ``factor`` (1,)."""
    as_channels = x.is_cuda and x.numel() > len(x)  # batch normalization refuses no number, and a single one
    if not torch.jit.is_scripting():
        as_channels = as_channels and not is_transformed()  # vmap can't tell the memory format
    if as_channels:
        return _as_channels(x, eps, factor)
    return F.group_norm(x, 1, _each(factor, x.shape[1]), None, eps)


torch.fx.wrap('standardize_images')  # a tracer can't tell where its tensors are


def _each(factor: Tensor | None, count: int) -> Tensor | None:
    """A scalar as the weight (count,) of a normalisation, which multiplies by it at no cost."""
    return None if factor is None else factor.expand(count).contiguous()


def _as_channels(x: Tensor, eps: float, factor: Tensor | None) -> Tensor:
    """The same by batch normalization, in which the images are the channels of one image.

    Its kernels for a GPU read the features once for both moments, and once more in backward. Those of group
    normalization copy features in channels_last, and under autocast they compute in float32.
    """
    n, c, h, w = x.shape
    last = x.is_contiguous(memory_format=torch.channels_last)
    rows = (x.permute(0, 2, 3, 1) if last else x).reshape(1, n, c * h * w)
    y = F.batch_norm(rows, None, None, _each(factor, n), training=True, momentum=0.0, eps=eps)
    return y.view(n, h, w, c).permute(0, 3, 1, 2) if last else y.view(n, c, h, w)


def standardize(x: Tensor, norm: str, eps: float, factor: Tensor | None = None) -> Tensor:
    """Normalise features (N, C, H, W): per image ('sample'), over the whole batch ('tensor'), or per pixel ('l2').

    ``factor``: a scalar (1,) for the normalised features.
    """
    if norm == 'sample':
        return standardize_images(x, eps, factor)
    if norm == 'tensor':
        var, mean = torch.var_mean(x, unbiased=False)
        y = (x - mean) * torch.rsqrt(var + eps)
    else:
        y = F.normalize(x, p=2.0, dim=1)
    return y if factor is None else factor.to(y.dtype) * y


class Standardize(nn.Module):
    """The normalisation of an :class:`InputNormConv2d` alone, for a tensor that two convolutions read."""

    def __init__(self, norm: str, eps: float):
        super().__init__()
        self.norm = norm
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return standardize(x, self.norm, self.eps)

    def extra_repr(self) -> str:
        return f'norm={self.norm}'


def _standardized(norm: str, eps: float) -> Before:
    return lambda x, factor: standardize(x, norm, eps, factor)


def _refuse_single_images(x: Tensor, weight: Tensor) -> None:
    """Raises `UserError` under a vmap over images, such as gradients of each image. A vmap over weights is fine."""
    if torch.compiler.is_compiling() or not is_transformed():
        return
    if _is_batched(x) and not _is_batched(weight):
        raise UserError(
            "norm='tensor' takes its statistics over the whole batch, so an image has no output and no gradient of "
            "its own; use norm='sample' or norm='l2'"
        )


def _is_batched(tensor: Tensor) -> bool:
    """Whether a vmap runs over ``tensor``."""
    wrapped = torch._C._functorch
    while wrapped.is_functorch_wrapped_tensor(tensor):
        if wrapped.is_batchedtensor(tensor):
            return True
        tensor = wrapped.get_unwrapped(tensor)
    return False


def input_norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    factor: Tensor | None,
    norm: str,
    eps: float,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """conv2d(standardize(x, norm, eps, factor), weight, bias, ...), with the memory of the convolution alone."""
    if not torch.jit.is_scripting():
        if norm == 'tensor':
            _refuse_single_images(x, weight)
        conv = (stride, padding, dilation, groups)
        return recomputed_conv(_standardized(norm, eps), x, factor, weight, bias, conv)
    return F.conv2d(standardize(x, norm, eps, factor), weight, bias, stride, padding, dilation, groups)


torch.fx.wrap('input_norm_conv')  # fx can't look into an autograd.Function


class InputNormConv2d(nn.Conv2d):
    r"""EUNConv: :math:`y = W (x - \mu) / \sqrt{\sigma^2 + \epsilon} + b`. Nguyen et al. (2023), equation 8.

    Args:
        norm: What :math:`\mu, \sigma` are taken over. 'sample': C, H, W of each image. 'tensor': the whole batch, as
            the official code does, so that an image's output depends on its neighbours. 'l2': the paper's appendix,
            unit L2 norm over the channels of each pixel, no mean.
        eps: Added to the variance ('sample', 'tensor').

    Raises:
        UserError: unknown ``norm``; a vmap over images with ``norm='tensor'``.
    """

    def __init__(self, *args: Any, norm: str = 'sample', eps: float = 1e-5, **kwargs: Any):
        if norm not in NORMS:
            raise UserError(f"norm='{norm}': use one of {', '.join(NORMS)}{nearest(str(norm), NORMS)}")
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.eps = eps

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``factor``: a scalar (1,) that multiplies the output. The normalised input and the bias take it up."""
        bias = self.bias
        if factor is not None and bias is not None:
            bias = factor * bias
        conv = (self.stride, self.padding, self.dilation, self.groups)
        return input_norm_conv(x, self.weight, bias, factor, self.norm, self.eps, *conv)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, norm={self.norm}'
