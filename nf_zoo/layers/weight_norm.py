"""Weight normalization for every kind of layer, and the affine layer: what batch normalization is converted to.

A weight-normalised layer is the layer of torch or timm that it is derived from, with the weight g v / |v|: ``weight``
is v, ``gain`` is g, one for each output channel. ``fuse()`` gives the plain layer back. The two-dimensional convolution
is :class:`nf_zoo.layers.std_conv.WeightNormConv2d`.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor, nn

from .std_conv import WeightNormConv2d, filter_norm


def as_class(layer: nn.Module, kind: type[nn.Module], **parameters: Tensor | None) -> Any:
    """A module of class ``kind`` with the geometry, hooks and mode of ``layer``, and with these parameters."""
    module = kind.__new__(kind)
    own = {key: p if p is None or isinstance(p, nn.Parameter) else nn.Parameter(p) for key, p in parameters.items()}
    module.__dict__ = layer.__dict__ | {'_parameters': own}
    return module


def by_output(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight (in, out / groups, ...) as (out, in / groups, pixels of the kernel)."""
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return parts.transpose(1, 2).flatten(0, 1)


class WeightNorm(nn.Module):
    """What the weight-normalised layers share. ``plain`` is the class of the layer without weight normalization."""

    plain: ClassVar[type[nn.Module]]
    gain: nn.Parameter
    if TYPE_CHECKING:  # TorchScript would take these for the attributes' types
        weight: Any
        bias: Any

    def effective_weight(self) -> Tensor:
        """g v / |v|, of v's shape."""
        return self.weight * (self.gain / filter_norm(self.weight))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """The plain layer with this weight and bias."""
        return as_class(self, self.plain, weight=self.effective_weight(), bias=self.bias)


class WeightNormTransposed(WeightNorm):
    """The same for transposed convolutions, whose weight is (in, out / groups, ...)."""

    if TYPE_CHECKING:
        stride: Any
        padding: Any
        kernel_size: Any
        dilation: Any
        groups: Any

    def effective_weight(self) -> Tensor:
        """g v / |v|, of v's shape."""
        rows = by_output(self.weight, self.groups)
        rows = rows * (self.gain / filter_norm(rows))
        parts = rows.view(self.groups, self.weight.shape[1], -1, rows.shape[2])
        return parts.transpose(1, 2).reshape(self.weight.shape)


class WeightNormLinear(WeightNorm, nn.Linear):
    """A weight-normalised ``nn.Linear``."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)


class WeightNormConv1d(WeightNorm, nn.Conv1d):
    """A weight-normalised ``nn.Conv1d``."""

    plain = nn.Conv1d

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)


class WeightNormConv3d(WeightNorm, nn.Conv3d):
    """A weight-normalised ``nn.Conv3d``."""

    plain = nn.Conv3d

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)


class WeightNormConv2dSame(WeightNorm, Conv2dSame):
    """A weight-normalised convolution of timm's with TensorFlow's SAME padding."""

    plain = Conv2dSame

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        return conv2d_same(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class WeightNormConvTranspose1d(WeightNormTransposed, nn.ConvTranspose1d):
    """A weight-normalised ``nn.ConvTranspose1d``."""

    plain = nn.ConvTranspose1d

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 1, self.dilation)
        weight = self.effective_weight()
        return F.conv_transpose1d(x, weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)


class WeightNormConvTranspose2d(WeightNormTransposed, nn.ConvTranspose2d):
    """A weight-normalised ``nn.ConvTranspose2d``."""

    plain = nn.ConvTranspose2d

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)
        weight = self.effective_weight()
        return F.conv_transpose2d(x, weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)


class WeightNormConvTranspose3d(WeightNormTransposed, nn.ConvTranspose3d):
    """A weight-normalised ``nn.ConvTranspose3d``."""

    plain = nn.ConvTranspose3d

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 3, self.dilation)
        weight = self.effective_weight()
        return F.conv_transpose3d(x, weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)


WEIGHT_NORM: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: WeightNormConv2d,
    **{
        kind.plain: kind
        for kind in (
            WeightNormLinear,
            WeightNormConv1d,
            WeightNormConv3d,
            WeightNormConv2dSame,
            WeightNormConvTranspose1d,
            WeightNormConvTranspose2d,
            WeightNormConvTranspose3d,
        )
    },
}


class Affine(nn.Module):
    """w x + b with one w and one b for each channel, of features (N, C, ...)."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = [-1] + [1] * (x.dim() - 2)
        # Under autocast the features have another dtype than the parameters, and keep it.
        return torch.addcmul(self.bias.to(x.dtype).view(shape), x, self.weight.to(x.dtype).view(shape))
