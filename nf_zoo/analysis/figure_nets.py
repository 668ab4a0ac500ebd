"""The networks of the papers' figures that no name of the zoo stands for, at any width.

Batch normalization in two orders and none (timm's ResNetV2), ResNet v1 (timm's ResNet), an NF-ResNet with another
alpha or with He's weights, and the classical ResNet with which Civitelli et al. compare theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import create_conv2d
from timm.models.resnet import Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from ..layers.affine_conv import AffineConv2d
from ..layers.std_conv import WSConv2d
from ..layers.weight_norm import as_class

DEEP = (50, 50, 50, 50)  # ResNet-600
STAGES = {'18': (2, 2, 2, 2), '50': (3, 4, 6, 3), '101': (3, 4, 23, 3)}


@dataclass(frozen=True)
class Size:
    """How large a figure's networks and images are. ``width`` is a factor of all widths."""

    width: float = 0.25
    pixels: int = 192
    batch: int = 2
    seed: int = 0

    def channels(self, *widths: int) -> tuple[int, ...]:
        """The widths times the factor, at least 8 channels each."""
        return tuple(max(8, int(width * self.width)) for width in widths)


# ---- initialisation


def he_(model: nn.Module, mode: str = 'fan_in', gain: float = 2.0, standardised: bool = False) -> nn.Module:
    """Draw every convolution from N(0, gain / fan), in place.

    ``standardised``: each layer's weights get exactly that mean and variance (Civitelli et al., section 4).
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.weight[0].numel() if mode == 'fan_in' else module.weight[:, 0].numel()
                nn.init.normal_(module.weight)
                if standardised:
                    deviation, mean = torch.std_mean(module.weight, correction=0)
                    module.weight.sub_(mean).div_(deviation)
                module.weight.mul_((gain / fan) ** 0.5)
    return model


# ---- networks


def bn_relu(chs: int, act: Callable[..., nn.Module] = nn.ReLU, **dd: Any) -> nn.Module:
    """Batch normalization, then the activation."""
    return nn.Sequential(nn.BatchNorm2d(chs, **dd), act())


def relu_bn(chs: int, act: Callable[..., nn.Module] = nn.ReLU, **dd: Any) -> nn.Module:
    """The activation, then batch normalization."""
    return nn.Sequential(act(), nn.BatchNorm2d(chs, **dd))


def relu(chs: int, **dd: Any) -> nn.Module:
    """The activation alone, with the signature of the two above."""
    return nn.ReLU()


def preact_resnet(size: Size, depths: Sequence[int], norm: Callable[..., nn.Module], gain: float = 2.0) -> nn.Module:
    """timm's ResNetV2 with plain convolutions of variance gain / fan-in; ``norm`` gives what precedes each of them."""
    model = ResNetV2(
        tuple(depths),
        channels=size.channels(256, 512, 1024, 2048),
        stem_chs=size.channels(64)[0],
        conv_layer=create_conv2d,
        norm_layer=_as_function(norm),
    )
    return he_(model, gain=gain)


def _as_function(norm: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """timm takes a plain function as what makes a normalisation with its activation."""

    def layer(chs: int, **kwargs: Any) -> nn.Module:
        return norm(chs, **{key: value for key, value in kwargs.items() if key in ('device', 'dtype')})

    return layer


def nf_resnet(size: Size, depths: Sequence[int] = DEEP, alpha: float = 1.0, **kwargs: Any) -> nn.Module:
    """The zoo's NF-ResNet in the paper's form, with another alpha; its branches are woken when it is measured."""
    model: Any = timm.create_model('dm_nf_resnet50', depths=depths, width=size.width, **kwargs)
    since = 0
    for stage in model.stages:
        for n, block in enumerate(stage):
            block.alpha, block.beta = alpha, (1 + since * alpha**2) ** -0.5
            since = 1 if n == 0 and stage is not model.stages[0] else since + 1
    return model


def he_nf_resnet(size: Size, depths: Sequence[int] = DEEP) -> nn.Module:
    """An NF-ResNet with plain ReLU and He's weights instead of scaled weight standardisation."""
    model = nf_resnet(size, depths, gamma=1.0)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, WSConv2d):
                setattr(module, name, as_class(child, AffineConv2d, weight=child.weight, bias=child.bias))
    return he_(model)


def without_pooling(model: Any) -> nn.Module:
    """The stem's max pooling replaced by taking every second pixel, which keeps the mean at 0."""
    model.stem.pool = nn.MaxPool2d(1, stride=2)
    return model


def postact_resnet(size: Size, depths: Sequence[int]) -> nn.Module:
    """timm's ResNet (v1): batch normalization behind each convolution, ReLU behind the sum."""
    return ResNet(Bottleneck, tuple(depths), channels=size.channels(64, 128, 256, 512), zero_init_last=False)


def classical(size: Size, layers: str, mode: str, normalised: bool) -> nn.Module:
    """Civitelli et al.'s classical ResNet for 32 px, c = 1 with identity shortcuts, with or without BN."""
    if normalised:
        chs, stem = (64, 128, 256, 512) if layers == '18' else (256, 512, 1024, 2048), size.channels(64)[0]
        model: Any = ResNetV2(
            STAGES[layers],
            channels=size.channels(*chs),
            stem_chs=stem,
            basic=layers == '18',
            bottle_ratio=1.0 if layers == '18' else 0.25,
            conv_layer=create_conv2d,
            norm_layer=_as_function(bn_relu),
        )
        model.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False))
        return he_(model, mode, standardised=True)
    model = timm.create_model(f'idshort_resnet{layers}_cifar', width=size.width)
    for stage in model.stages:
        for block in stage:
            block.c = 1.0
    return he_(model, mode, standardised=True)


def halve_attention(model: nn.Module) -> None:
    """Take the factor 2 away from every squeeze-and-excite module, in place."""
    for name, module in model.named_modules():
        if name.rpartition('.')[2].startswith('attn'):
            module.register_forward_hook(lambda _, args, y: y / 2)
