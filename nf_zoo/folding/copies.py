"""The copy of a network that folding works on: with plain weights, and with nothing that folding doesn't know."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models import FeatureDictNet
from timm.models.nfnet import NormFreeBlock, NormFreeNet
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import UserError
from ..layers.affine_conv import AffineConv2d, PreBiasConv2d, ReluConv2d
from ..layers.input_norm import InputNormConv2d
from ..layers.std_conv import WeightConv2d
from ..net.branch import ResidualBlock
from ..net.network import ResNet
from .blocks import PlainBlock

_CONVS = (
    *(nn.Conv2d, WeightConv2d, AffineConv2d, PreBiasConv2d, InputNormConv2d, Conv2dSame),
    *(StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame),
    ReluConv2d,  # its ReLU is the first one of the plain block
)
_FORWARDS = {kind.forward for kind in _CONVS}
_CONV_NAMES = ('conv1', 'conv2', 'conv2b', 'conv3', 'downsample.conv')


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in eval mode whose weights are plain parameters.

    A weight that torch computes is made plain: every parametrization, and the pruning, spectral and weight
    normalization of ``torch.nn.utils``. Activations work out of place.

    Raises:
        UserError: a part of a block or of the stem that folding doesn't know, by name.
    """
    from torch.nn.utils import prune  # timm doesn't load it, and `import nf_zoo` needn't

    # A weight that a hook computes is no leaf, and deepcopy refuses it: https://github.com/pytorch/pytorch/issues/28594.
    tensors = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    memo = {id(tensor): tensor.detach().clone() for tensor in tensors if not tensor.is_leaf}
    copy = deepcopy(model, memo).eval()
    module: Any
    for module in copy.modules():
        if parametrize.is_parametrized(module):
            # A copy shares the class that torch made for the original. Removing a parametrization deletes the
            # attribute from that class, so the copy needs a class of its own:
            # https://github.com/pytorch/pytorch/pull/80811
            shared = type(module)
            own = {k: v for k, v in vars(shared).items() if k not in ('__dict__', '__weakref__')}
            module.__class__ = type(shared.__name__, shared.__bases__, own)
            for name in list(module.parametrizations):
                trained = any(p.requires_grad for p in module.parametrizations[name].parameters())
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                if name not in module._parameters:  # several tensors had made it: a plain tensor is left
                    value = getattr(module, name).detach().clone()
                    delattr(module, name)
                    module.register_parameter(name, nn.Parameter(value, requires_grad=trained))
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
        # Full backward hooks refuse activations in place: https://github.com/pytorch/pytorch/issues/61519.
        if getattr(module, 'inplace', False):
            module.inplace = False
    for part in _parts(copy):
        _check(*part)
    return copy


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name and module of every part that folding changes, and whether it must be a convolution."""
    for name, module in model.named_modules():
        prefix = f'{name}.' if name else ''
        foldable = isinstance(module, ResidualBlock) and hasattr(module, 'fuse')
        if foldable or isinstance(module, PlainBlock | NormFreeBlock):
            for part, child in module.named_modules():
                is_conv = part in _CONV_NAMES and not isinstance(child, nn.Sequential | nn.Identity)
                yield f'{prefix}{part}', child, is_conv
        elif isinstance(module, ResNet | NormFreeNet):
            yield from ((f'{prefix}stem.{part}', child, False) for part, child in module.stem.named_children())
        elif isinstance(module, FeatureDictNet):
            yield from ((f'{prefix}{part}', child, False) for part, child in module.named_children())


def _check(name: str, module: nn.Module, is_conv: bool) -> None:
    kind = type(module).__name__
    if is_conv and not isinstance(module, nn.Conv2d):
        raise UserError(f"can't fold {name}: it is a {kind}, not a convolution; merge it into a convolution first")
    if not isinstance(module, nn.Conv2d):
        return
    known = type(module).forward in _FORWARDS and type(module)._conv_forward is nn.Conv2d._conv_forward
    if 'forward' in vars(module) or not known:
        raise UserError(f"can't fold {name}: {kind} computes something else than the convolutions that fold knows")
    if 'weight' not in module._parameters:
        raise UserError(f"can't fold {name}: its weight is computed; make it an nn.Parameter first")
    if module.padding_mode != 'zeros' or isinstance(module.padding, str):
        raise UserError(f"can't fold {name}: it doesn't pad a given number of zeros")


def keep_frozen(folded: nn.Module, model: nn.Module) -> None:
    """Freeze the blocks and the modules outside of blocks whose counterpart in ``model`` has no trainable parameter."""
    originals = dict(model.named_modules())
    blocks = tuple(f'{name}.' for name, module in folded.named_modules() if isinstance(module, PlainBlock))
    for name, module in folded.named_modules():
        inner = name.startswith(blocks) if blocks else False
        if name in originals and not inner and (isinstance(module, PlainBlock) or not list(module.children())):
            flags = [p.requires_grad for p in originals[name].parameters()]
            if flags and not any(flags):
                module.requires_grad_(False)
