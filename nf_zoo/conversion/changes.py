"""What becomes of each batch normalization of a network, and the change itself."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers.std_conv import without_batch_norm
from ..layers.weight_norm import WEIGHT_NORM, Affine, WeightNormTransposed, as_class, by_output
from .tracing import Trace


@dataclass(frozen=True)
class Change:
    """What one norm becomes: g and the bias of the layer before it or, without a layer, an affine layer's w and b."""

    norm: str
    layer: str | None
    weight: Tensor
    bias: Tensor


def norms_of(model: nn.Module) -> list[Any]:
    """The batch normalizations, also synchronized and frozen ones, but not those inside another one."""
    found = [m for m in model.modules() if isinstance(m, _BatchNorm) or _is_frozen(m)]
    inner = {m for norm in found for m in norm.modules() if m is not norm}
    return [norm for norm in found if norm not in inner]


def _is_frozen(module: nn.Module) -> bool:
    """Whether this is a batch normalization of constants. torchvision, timm and others have a class of their own."""
    return 'FrozenBatchNorm' in type(module).__name__ and hasattr(module, 'running_var') and hasattr(module, 'eps')


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers that have a weight-normalised form."""
    return [m for m in model.modules() if _weight_norm_of(m) is not None]


def _weight_norm_of(layer: nn.Module) -> type[nn.Module] | None:
    """The weight-normalised class of ``layer``; None where other code computes its weight or its output."""
    if set(layer._parameters) != {'weight', 'bias'} or layer._forward_pre_hooks:
        return None
    for plain, kind in WEIGHT_NORM.items():
        own = ('forward', '_conv_forward')
        if isinstance(layer, plain) and all(getattr(type(layer), f, None) is getattr(plain, f, None) for f in own):
            return kind
    return None


def _rows(layer: Any) -> Tensor:
    """The layer's weight with the output channels first."""
    transposed = issubclass(_weight_norm_of(layer) or nn.Module, WeightNormTransposed)
    return by_output(layer.weight, layer.groups) if transposed else layer.weight


def changes_of(root: nn.Module, trace: Trace) -> list[Change]:
    """One change for each norm, computed in the dtype of ``root``."""
    names = {module: name for name, module in root.named_modules()}
    changes = []
    for norm in norms_of(root):
        layer: Any = trace.producer(norm) or trace.neighbour(norm)
        if layer is None:
            length, bias = torch.ones_like(norm.running_var), None
        else:
            length, bias = torch.linalg.vector_norm(_rows(layer).flatten(1), dim=1), layer.bias
        weight, bias = without_batch_norm(
            length, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
        )
        changes.append(Change(names[norm], None if layer is None else names[layer], weight, bias))
    return changes


def apply(changes: list[Change], root: nn.Module) -> None:
    """Put the new layers in place of the norms and of the layers before them; new parameters have their dtype."""
    new: dict[nn.Module, nn.Module] = {}
    for change in changes:
        norm: Any = root.get_submodule(change.norm)
        if change.layer is None:
            trained, like = _trained(norm.weight), norm.running_var if norm.weight is None else norm.weight
            affine = Affine(_parameter(change.weight, like, trained), _parameter(change.bias, like, trained))
            new[norm] = _rest(norm, affine)
        else:
            layer: Any = root.get_submodule(change.layer)
            trained, shape = _trained(norm.weight, layer.weight), [-1] + [1] * (_rows(layer).dim() - 1)
            new[layer] = as_class(
                layer,
                _weight_norm_of(layer) or type(layer),
                weight=layer.weight,
                bias=_parameter(change.bias, layer.weight, trained),
                gain=_parameter(change.weight.view(shape), layer.weight, trained),
            )
            new[norm] = _rest(norm)
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if module in new:
            root.set_submodule(name, new[module])


def _parameter(value: Tensor, like: Tensor, trained: bool) -> nn.Parameter:
    return nn.Parameter(value.detach().to(like.device, like.dtype, copy=True), requires_grad=trained)


def _trained(*weights: Tensor | None) -> bool:
    """Whether the new parameters are trained: unless one of the old ones is frozen. A frozen norm has no parameters."""
    return all(weight.requires_grad for weight in weights if isinstance(weight, nn.Parameter))


def _rest(norm: nn.Module, affine: nn.Module | None = None) -> nn.Module:
    """What takes a norm's place: ``affine``, then the dropout and the activation that timm's norms have."""
    tail = {name: getattr(norm, name, None) for name in ('drop', 'act')}
    parts = OrderedDict((name, part) for name, part in tail.items() if isinstance(part, nn.Module))
    if all(isinstance(part, nn.Identity) for part in parts.values()):
        rest = affine or nn.Identity()
    elif affine is not None:
        rest = nn.Sequential(OrderedDict(affine=affine, **parts))
    else:
        rest = nn.Sequential(parts)
    rest.training = norm.training
    return rest
