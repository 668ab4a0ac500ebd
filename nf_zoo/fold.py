"""Folding: a copy of a network for inference, in which every constant is a part of a plain convolution's weight."""

from collections.abc import Sequence
from copy import deepcopy
from typing import TypeAlias

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from .convs import InputNormConv2d, WeightConv2d, plain_conv, standardized
from .errors import UserError
from .net import ResNet
from .plain import PlainBlock, scale_output

TimmStdConv: TypeAlias = StdConv2d | StdConv2dSame | ScaledStdConv2d | ScaledStdConv2dSame


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Return an equivalent network of plain convolutions, in eval mode; ``model`` stays as it is.

    Normalised weights become plain ones, and constant factors go into the convolutions next to them, also across
    blocks. Logits, and the features at the stem and at the end of every stage, are those of ``model``: equal up to
    rounding. EUNNet keeps its normalisation of activations. Of families whose blocks have no ``fuse`` yet, and of other
    timm models, only the convolutions with standardised weight are folded.

    Raises:
        UserError: not a model that has anything to fold.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        kind = 'a TorchScript module' if isinstance(model, torch.jit.ScriptModule) else type(model).__name__
        raise UserError(f"can't fold {kind}; give the PyTorch model itself, as timm.create_model returns it")
    known = ResNet | WeightConv2d | InputNormConv2d | PlainBlock | TimmStdConv
    if not any(isinstance(m, known) or hasattr(m, 'is_folded') for m in model.modules()):
        raise UserError(
            f'{type(model).__name__} has nothing to fold: neither a model of nf_zoo nor standardised weights'
        )
    root = nn.ModuleList([deepcopy(model)])
    reparameterize_model(root, inplace=True)
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if isinstance(module, TimmStdConv):
            root.set_submodule(name, _plain(module))
    for module in list(root.modules()):
        if isinstance(module, nn.Sequential):
            blocks = [block for block in module if isinstance(block, PlainBlock)]
            if blocks and len(blocks) == len(module):
                _drop_skip_factors(blocks, _conv_before(module, root))
    folded = root[0].eval()
    folded.is_folded = True  # type: ignore[assignment]
    return folded


def _drop_skip_factors(blocks: Sequence[PlainBlock], before: nn.Module | None) -> None:
    """Rescale what runs between the blocks so that identity shortcuts need no factor; the last output stays.

    ``before``: the convolution that the first block's input comes from, if that input may be rescaled too.
    """
    scale = 1.0
    for block in reversed(blocks[1:]):
        scale = block.absorb(scale)
    scale = blocks[0].absorb(scale, fixed=before is None)
    if before is not None:
        scale_output(before, 1 / scale)


def _conv_before(stage: nn.Sequential, root: nn.Module) -> nn.Module | None:
    """The stem's convolution, if ``stage`` is the first one and the stem's output is no feature level."""
    nets = [m for m in root.modules() if isinstance(m, ResNet) and m.stages[0] is stage and m.stem_tap < 0]
    return nets[0].get_submodule('stem.conv') if nets else None


def _plain(conv: TimmStdConv) -> nn.Conv2d:
    """The convolution with the standardised weight as its weight."""
    plain = plain_conv(conv, _standardized(conv), conv.bias)
    if not getattr(conv, 'same_pad', False):
        return plain
    shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups
    same = nn.utils.skip_init(Conv2dSame, *shape).train(conv.training)
    same.weight, same.bias = plain.weight, plain.bias
    return same


def _standardized(conv: TimmStdConv) -> Tensor:
    gain = (conv.gain * conv.scale).view(-1) if isinstance(conv, ScaledStdConv2d | ScaledStdConv2dSame) else None
    return standardized(conv.weight, gain, conv.eps)
