r"""``convert(model, to='eunnet')``: a trained ResNet as an EUNNet, fitted to the outputs of the original.

An EUNConv normalises its input with the statistics of each image, :math:`y = W' (x - \mu) / \sigma + b'`. Batch
normalization has taken those of a data set, so no W' and b' give the same function. They give nearly the same for
images with statistics near to the means :math:`\bar\mu, \bar\sigma`: :math:`W' = \bar\sigma W` and
:math:`b' = b + \bar\mu \sum W`. Then, from the first convolution to the last, each output channel gets a gain and an
offset that fit it to the original's by least squares, on the images that are given.

EUNNet multiplies its trunk by :math:`\alpha_l < 1` in every block. A convolution that normalises its input does not
notice. The branch has to follow: its scalar s is the product of all :math:`\alpha` so far, divided by :math:`\beta`.
The last product goes into the classifier.
"""

import re
from copy import deepcopy
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..layers.input_norm import InputNormConv2d

PIXELS = 64  # of each image that the fit looks at, at most
DEPTHS: dict[tuple[int, ...], int] = {(3, 3, 3): 20, (9, 9, 9): 56, (18, 18, 18): 110}


class Calibration(NamedTuple):
    """What a calibrated conversion did.

    Attributes:
        layers: Number of convolutions that became EUNConvs.
        difference: Root mean square of the differences of the outputs on the given images, as a share of the root
            mean square of the original's outputs.
    """

    layers: int
    difference: float


def to_eunnet(model: nn.Module, plain: nn.Module, images: Tensor) -> nn.Module:
    """``model`` as an EUNNet that is fitted on ``images``; ``plain`` is ``model`` with plain convolutions."""
    with torch.no_grad():
        network, names = _eunnet_of(model, plain)
        _fit(network.eval(), names, plain.eval(), images)
        before, after = plain(images).double(), network(images).double()
        difference = ((after - before).square().mean() / before.square().mean()).sqrt().item()
    network.calibration = Calibration(len(names), difference)  # type: ignore[assignment]
    return network


def _eunnet_of(model: Any, plain: Any) -> tuple[nn.Module, list[str]]:
    """An EUNNet with the weights of ``plain``, not yet fitted, and the names of its convolutions.

    A ResNet of the CIFAR layout becomes the network ``eunnet*_cifar``. In any other network the convolutions become
    EUNConvs where they stand.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if re.fullmatch(r'(bn|wn)_resnet\d+_cifar', cfg.get('architecture') or ''):
        if all(block.attn is None for stage in plain.stages for block in stage):
            return _eunnet_cifar(model, plain)
    network = deepcopy(plain)
    names = [name for name, m in network.named_modules() if type(m) is nn.Conv2d and m.groups == 1]
    for name in names:
        network.set_submodule(name, _eun_conv(network.get_submodule(name)))
    return network, names


def _eun_conv(conv: Any) -> InputNormConv2d:
    """An EUNConv of the geometry, the weight and the bias of ``conv``."""
    shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation
    new = InputNormConv2d(*shape, device=conv.weight.device, dtype=conv.weight.dtype)
    _copy(conv, new)
    return new


def _copy(conv: Any, new: Any) -> None:
    new.weight.copy_(conv.weight)
    nn.init.zeros_(new.bias)
    if conv.bias is not None:
        new.bias.copy_(conv.bias)


def _eunnet_cifar(model: Any, plain: Any) -> tuple[nn.Module, list[str]]:
    depths = tuple(len(stage) for stage in model.stages)
    name = f'eunnet{DEPTHS.get(depths, 20)}_cifar'
    like = next(model.parameters())
    sizes = dict(depths=depths, num_classes=model.num_classes, in_chans=model.in_chans)
    network: Any = timm.create_model(name, **sizes, device=like.device, dtype=like.dtype)
    names = [name for name, m in network.named_modules() if isinstance(m, InputNormConv2d)]
    for name in names:
        _copy(plain.get_submodule(name), network.get_submodule(name))
    trunk = 1.0
    for block in (block for stage in network.stages for block in stage):
        trunk *= block.alpha
        nn.init.constant_(block.scale, trunk / block.beta)
    network.head.load_state_dict(plain.head.state_dict())
    network.head.fc.weight.div_(trunk)
    return network, names


def _fit(network: nn.Module, names: list[str], plain: nn.Module, images: Tensor) -> None:
    """Fit the EUNConvs ``names`` of ``network`` to the convolutions of these names in ``plain``, in place."""
    targets: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(conv: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            targets[name] = _sampled(output)

        def prepare(conv: Any, args: Any) -> None:
            var, mean = torch.var_mean(args[0], dim=(1, 2, 3), unbiased=False)
            conv.bias.add_(mean.mean() * conv.weight.sum((1, 2, 3)))
            conv.weight.mul_((var + conv.eps).sqrt().mean())

        def adjust(conv: Any, args: Any, output: Tensor, name: str = name) -> Tensor:
            factor = args[1] if len(args) > 1 and args[1] is not None else 1.0
            gain, offset = _least_squares(_sampled(output) / factor, targets.pop(name))
            gain, offset = gain.to(output.dtype), offset.to(output.dtype)
            conv.weight.mul_(gain.view(-1, 1, 1, 1))
            conv.bias.mul_(gain).add_(offset)
            return output * gain.view(-1, 1, 1) + factor * offset.view(-1, 1, 1)

        handles.append(plain.get_submodule(name).register_forward_hook(keep))
        handles.append(network.get_submodule(name).register_forward_pre_hook(prepare))
        handles.append(network.get_submodule(name).register_forward_hook(adjust))
    try:
        plain(images)
        network(images)
    finally:
        for handle in handles:
            handle.remove()


def _sampled(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (C, N P): some of the pixels, the same in features of one size."""
    pixels = features.flatten(2)
    if pixels.shape[2] > PIXELS:
        generator = torch.Generator().manual_seed(0)
        pixels = pixels[:, :, torch.randperm(pixels.shape[2], generator=generator)[:PIXELS].to(pixels.device)]
    return pixels.transpose(0, 1).flatten(1).double()


def _least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset of each row with the least (gain x + offset - y)^2; gain 1 for a row of one value."""
    mean_x, mean_y = x.mean(1), y.mean(1)
    var = x.var(1, unbiased=False)
    cov = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(1)
    gain = torch.where(var > 0, cov / var, torch.ones_like(var))
    return gain, mean_y - gain * mean_x
