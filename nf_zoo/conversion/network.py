"""``convert``: a network with batch normalization as the same function without it."""

import logging
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckFailed, UserError, nearest, one_line
from ..folding.network import fold
from ..net.network import ResNet
from .calibration import to_eunnet
from .changes import apply, changes_of, layers_of, norms_of
from .examples import difference, example_for, moved, outputs, run
from .tracing import Trace

_logger = logging.getLogger(__name__)
TOLERANCE = 1e-9
FORMS = ('weight_norm', 'eunnet')


class Conversion(NamedTuple):
    """What a conversion did.

    Attributes:
        weight_norm: Number of batch normalizations that became a layer's weight normalization.
        affine: Number of those that became an affine layer.
        exact: Largest difference of the outputs in float64, as a share of the largest output.
        rounded: The same in the model's own dtype, so with its rounding.
    """

    weight_norm: int
    affine: int
    exact: float
    rounded: float


def convert(
    model: nn.Module, to: str = 'weight_norm', *, images: Tensor | None = None, example: Any = None
) -> nn.Module:
    """Return a network without batch normalization that computes what ``model`` computes in eval mode.

    With ``to='weight_norm'`` a batch normalization becomes the weight normalization of the convolution or linear
    layer before it: the layer's weight is then g v / |v|, with v the original filter. If something else reads that
    layer's output too, or if no such layer comes before it, the batch normalization becomes an affine layer. Nothing
    with statistics is left, so the result trains at any batch size. ``model`` stays as it is. The result has its modes,
    hooks, devices and dtypes; parameters that were frozen stay frozen.

    The network runs once, to find the layer before each batch normalization. The conversion is done on a float64 copy,
    whose outputs are compared with the original's. ``conversion``, an attribute of the result, says what was done and
    by how much the outputs differ.

    With ``to='eunnet'`` every convolution becomes an EUNConv that is fitted to the original on ``images``. This is an
    approximation. A ``bn_resnet*_cifar`` or ``wn_resnet*_cifar`` becomes the network ``eunnet*_cifar``; another
    network keeps its structure. ``calibration``, an attribute of the result, says how near it comes.

    Args:
        model: Network of timm, of torchvision or of your own.
        to: 'weight_norm' or 'eunnet'.
        images: For 'eunnet': images (N, C, H, W), prepared as for the model. 512 are enough for 32 x 32 pixels.
        example: Input for a run: a tensor, a tuple of arguments or a dict of keyword arguments. By default a random
            image of the size in the model's ``pretrained_cfg``, or else of 224 x 224 pixels.

    Raises:
        UserError: the model has no batch normalization, can't be converted, or doesn't run on the example; images are
            missing or not finite, or given for 'weight_norm'.
        CheckFailed: the float64 outputs differ by more than 1e-9 of the largest.
    """
    if to not in FORMS:
        raise UserError(f"to='{to}': expected {' or '.join(FORMS)}{nearest(str(to), FORMS)}")
    if to == 'eunnet':
        return _to_eunnet(model, images)
    if images is not None:
        raise UserError("images are for to='eunnet'; give one input as example=, or nothing")
    return _to_weight_norm(model, example)


def _to_eunnet(model: nn.Module, images: Tensor | None) -> nn.Module:
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) < 2:
        raise UserError("to='eunnet' is fitted on images: give some hundred as one tensor (N, C, H, W), images=")
    if not images.isfinite().all():
        raise UserError('the images hold NaN or infinity; give images prepared as for the model')
    plain = fold(model if isinstance(model, ResNet) else _to_weight_norm(model, images[:1]))
    run(plain, images[:1], type(model).__name__)
    return to_eunnet(model, plain, images)


def _to_weight_norm(model: nn.Module, example: Any) -> nn.Module:
    _check(model)
    name = type(model).__name__
    device = next(p.device for p in [*model.parameters(), *model.buffers()])
    given = example_for(model) if example is None else example
    with torch.no_grad():
        copy = _copied(model).double().eval()
        inputs = moved(given, device, torch.float64)
        with Trace(copy, layers_of(copy), norms_of(copy)) as trace:
            result = run(copy[0], inputs, name)
        trace.finish(result)
        before = outputs(result, name)
        changes = changes_of(copy, trace)
        apply(changes, copy)
        exact = difference(before, outputs(run(copy[0], inputs, f'the converted {name}'), name))
        if exact > TOLERANCE:
            raise CheckFailed(
                f'the converted {name} differs by {exact:.1e} of the largest output, more than {TOLERANCE:.0e}: '
                'a normalization of it does something else too, or a part of it does not compute in float64'
            )
        del copy, trace, result
        root = _copied(model)
        apply(changes, root)
        dtype = next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)
        # A run may leave something in the network (LeViT keeps its attention biases), so a copy runs.
        trial = deepcopy(root).eval()
        rounded = difference(before, outputs(run(trial[0], moved(given, device, dtype), f'the converted {name}'), name))
    converted = root[0]
    affine = sum(change.layer is None for change in changes)
    done = Conversion(len(changes) - affine, affine, exact, rounded)
    converted.conversion = done  # type: ignore[assignment]
    _logger.info(
        f'{name}: {done.weight_norm} batch normalizations became weight normalization, {done.affine} an affine layer; '
        f'outputs differ by {exact:.1e} of the largest in float64, by {rounded:.1e} in {str(dtype)[6:]}'
    )
    return converted


def _check(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"can't convert {type(model).__name__}; give a PyTorch model")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("can't convert a TorchScript module; give the PyTorch model that it was made from")
    if hasattr(model, '_orig_mod'):
        raise UserError("can't convert a compiled model; give the PyTorch model that it was made from")
    name = type(model).__name__
    norms = norms_of(model)
    if not norms:
        raise UserError(f'{name} has no batch normalization to convert')
    if any(nn.parameter.is_lazy(t) for t in [*model.parameters(), *model.buffers()]):
        raise UserError(f'{name} has parameters without a shape; run it once before it is converted')
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        raise UserError(f"{name} is on the device 'meta' and has no weights to convert")
    names = {module: key for key, module in model.named_modules()}
    for norm in norms:
        if norm.running_mean is None or norm.running_var is None:
            raise UserError(
                f'{names[norm]} of {name} has no running statistics: it normalizes with those of the batch even in '
                'eval mode, and no network without batch normalization computes the same'
            )


def _copied(model: nn.Module) -> nn.ModuleList:
    """A copy, in a list, so that ``model`` itself can be replaced if it is a batch normalization."""
    try:
        return nn.ModuleList([deepcopy(model)])
    except RuntimeError as error:
        reason = one_line(error)[:200]
        raise UserError(
            f"{type(model).__name__} can't be copied: {reason}; make computed weights plain (remove_spectral_norm, "
            'prune.remove), or load its weights into a new model'
        ) from None
