"""Folding: a copy of a network for inference, in which plain convolutions have taken up every constant."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from timm.models import FeatureDictNet
from timm.models.nfnet import GammaAct, NormFreeBlock, NormFreeNet
from torch import nn

from ..errors import UserError
from ..layers.affine_conv import Shift, add_bias
from ..layers.input_norm import InputNormConv2d
from ..layers.std_conv import WeightConv2d
from ..layers.weight_norm import Affine, WeightNorm
from ..net.network import ResNet
from ..net.parts import Bias
from .blocks import PlainBlock, PreBlock
from .copies import keep_frozen, plain_copy
from .rules import affine, normed, plain_act, scale_input, scale_output, then_affine
from .timm_blocks import StdConv, plain_block, plain_std_conv


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference that computes the same with plain convolutions. ``model`` stays as it is.

    Normalised weights become plain weights. Constants, scalars, biases and batch normalization become part of the
    convolutions next to them, also across blocks. The logits, and the features at the stem and at the end of every
    stage, are those of ``model`` up to rounding. Inside a stage the features may differ by a constant factor from block
    to block, because such a factor moves on to the next convolution.

    EUNNet keeps its normalisation of activations. timm's own networks with standardised weights can be folded too.

    What can't be moved exactly stays, as a parameter: a learned scalar after squeeze-and-excite, a factor of an
    identity shortcut that isn't positive, a factor or bias after a feature level, a bias before zero padding at the
    start of a block.

    A weight that torch computes becomes plain: pruned, spectral norm, or with any parametrization. The copy is in eval
    mode. Parts of which all parameters are frozen stay frozen. Hooks of the modules that are replaced are lost: those
    of blocks, of convolutions with a normalised weight, of batch normalization.

    Raises:
        UserError: nothing to fold, or a part that can't be folded, such as a convolution with a LoRA around it.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        kind = 'a TorchScript module' if isinstance(model, torch.jit.ScriptModule) else type(model).__name__
        raise UserError(f"can't fold {kind}; give the PyTorch model itself, as timm.create_model returns it")
    known = ResNet | WeightConv2d | InputNormConv2d | PlainBlock | StdConv | Affine
    if not any(isinstance(m, known) or hasattr(m, 'fuse') or hasattr(m, 'is_folded') for m in model.modules()):
        raise UserError(
            f'{type(model).__name__} has nothing to fold: neither a model of nf_zoo nor standardised weights'
        )
    if any(p.is_meta for p in model.parameters()):
        raise UserError("the model is on the device 'meta' and has no weights to fold")
    root = nn.ModuleList([plain_copy(model)])
    _fuse(root)
    _replace(root, StdConv, plain_std_conv)
    _replace(root, NormFreeBlock, plain_block)
    stems: dict[nn.Module, nn.Conv2d | None] = {}
    for net in list(root.modules()):
        if isinstance(net, ResNet | NormFreeNet | FeatureDictNet):
            path = _fold_path(net)
            first = next((i for i, step in enumerate(path) if _is_stage(step.module)), 0)
            stems[path[first].module] = _conv_before(path[:first])
    for stage in root.modules():
        if _is_stage(stage):
            blocks: Any = list(stage.children())
            _drop_affines(blocks)
            _drop_skip_factors(blocks, stems.get(stage))
    folded = root[0].eval()
    keep_frozen(folded, model)
    folded.is_folded = True  # type: ignore[assignment]
    return folded


def _fuse(module: nn.Module, converted: bool = False) -> None:
    """Replace modules by what their ``fuse`` gives, as timm's ``reparameterize_model``.

    In a converted network only layers are replaced. The ``fuse`` of its blocks (LeViT, RepVGG and others) expects the
    batch normalization that the network no longer has.
    """
    child: Any
    for name, child in list(module.named_children()):
        inside = converted or hasattr(child, 'conversion')
        if hasattr(child, 'fuse') and (not inside or isinstance(child, WeightConv2d | WeightNorm)):
            setattr(module, name, child.fuse())
            continue
        for method in ('reparameterize', 'switch_to_deploy'):
            if hasattr(child, method) and not inside:
                getattr(child, method)()
                break
        _fuse(child, inside)


def _replace(root: nn.Module, kind: Any, convert: Callable[[Any], nn.Module]) -> None:
    for name, module in list(root.named_modules(remove_duplicate=False)):
        if isinstance(module, kind):
            root.set_submodule(name, convert(module))


# ---- what runs before and behind the blocks


@dataclass(frozen=True)
class _Step:
    """A module of a network that runs its modules in a row. ``tapped``: its output is a feature level."""

    parent: nn.Module
    name: str
    tapped: bool = True

    @property
    def module(self) -> nn.Module:
        return self.parent.get_submodule(self.name)

    def replace(self, module: nn.Module) -> None:
        setattr(self.parent, self.name, module)


def _path(net: ResNet | NormFreeNet | FeatureDictNet) -> Iterator[_Step]:
    if isinstance(net, FeatureDictNet):
        yield from (_Step(net, name, name in net.return_layers) for name in net)
        return
    tap = net.stem_tap if isinstance(net, ResNet) else net.stem_feat_idx
    for i, (name, _) in enumerate(net.stem.named_children()):
        yield _Step(net.stem, name, i == tap)
    for name, _ in net.stages.named_children():
        yield _Step(net.stages, name)
    yield _Step(net, 'final_conv')
    if isinstance(net.final_act, nn.Sequential):
        for name, _ in net.final_act.named_children():
            yield _Step(net.final_act, name)
    else:
        yield _Step(net, 'final_act')


def _fold_path(net: ResNet | NormFreeNet | FeatureDictNet) -> list[_Step]:
    path = list(_path(net))
    for step, following in pairwise(path):
        _fold_step(step, following)
    for step in path:  # what stands behind a feature level
        if isinstance(net, ResNet) and type(step.module) is nn.BatchNorm2d:
            step.replace(affine(step.module))
        elif isinstance(step.module, Bias):
            step.replace(Shift(step.module.bias))
    return path


def _fold_step(step: _Step, following: _Step) -> None:
    """Move what one of two neighbours does besides into the convolution that the other is."""
    module, after = step.module, following.module
    if step.tapped:
        return
    if isinstance(module, GammaAct) and isinstance(after, nn.Conv2d):
        act, gamma = plain_act(module)
        scale_input(after, gamma)
        step.replace(act)
    if not isinstance(module, nn.Conv2d):
        return
    if type(after) is nn.BatchNorm2d and type(module) is nn.Conv2d:
        step.replace(normed(module, after))
        following.replace(nn.Identity())
    elif isinstance(after, Bias):
        add_bias(module, after.bias)
        following.replace(nn.Identity())
    elif _is_stage(after):
        block: Any = after.get_submodule('0')
        if isinstance(block, PreBlock) and block.affine is not None:
            then_affine(module, block.affine)
            block.affine = None


def _is_stage(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) > 0 and all(isinstance(m, PlainBlock) for m in module)


def _conv_before(path: Sequence[_Step]) -> nn.Conv2d | None:
    """The convolution that the end of ``path`` comes from, if it may be rescaled."""
    for step in reversed(path):
        module = step.module
        if step.tapped or not isinstance(module, nn.Conv2d | nn.ReLU | nn.MaxPool2d | nn.Identity):
            return None
        if isinstance(module, nn.Conv2d):
            return module
    return None


# ---- what runs from block to block


def _drop_affines(blocks: Sequence[PlainBlock]) -> None:
    for block, following in pairwise(blocks):
        if isinstance(following, PreBlock) and following.affine is not None and block.absorb_affine(following.affine):
            following.affine = None


def _drop_skip_factors(blocks: Sequence[PlainBlock], before: nn.Conv2d | None) -> None:
    """Rescale what runs between the blocks so that identity shortcuts need no factor; the last output stays.

    ``before``: the convolution that the first block's input comes from, if that input may be rescaled too.
    """
    scale = 1.0
    for block in reversed(blocks[1:]):
        scale = block.absorb(scale)
    scale = blocks[0].absorb(scale, fixed=before is None)
    if before is not None:
        scale_output(before, 1 / scale)
