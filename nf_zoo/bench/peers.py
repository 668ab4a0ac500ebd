"""The networks that a bench compares, and their peers by kind: batch normalization, group normalization, the floor."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import timm
from torch import nn

from ..analysis.inputs import open_network
from ..errors import UserError
from ..net.layout import imagenet, imagenet_basic
from ..net.network import ResNet
from ..net.registry import list_models, timms_own, variant
from .settings import EAGER
from .twins import Norm, group_norm, no_norm, twin

TIMM = 'timm'  # the peer that is timm's own network of the same name
NORMS: dict[str, tuple[str, Norm]] = {
    'bn': ('BN', nn.BatchNorm2d),
    'gn': ('GN', group_norm),
    'floor': ('floor', no_norm),
}
# timm's ResNets, by the blocks of each stage, basic blocks and bottlenecks.
_BASIC = {(2, 2, 2, 2): 'resnet18', (3, 4, 6, 3): 'resnet34'}
_BOTTLENECK = {
    (2, 2, 2, 2): 'resnet26',
    (3, 4, 6, 3): 'resnet50',
    (3, 4, 23, 3): 'resnet101',
    (3, 8, 36, 3): 'resnet152',
    (3, 24, 36, 3): 'resnet200',
}


def open_peers(name: str, model: nn.Module, kinds: Sequence[str], **kwargs: Any) -> dict[str, nn.Module]:
    """The peers of ``model``, by the label that a row shows.

    Args:
        name: The network's name: NAME or NAME.TAG.
        model: The network.
        kinds: 'bn', 'gn', 'floor', 'eager' (the network itself), 'timm' (timm's own network of this name), or names of
            timm's.
        **kwargs: Keyword arguments that the network was made with, and every peer gets.

    Raises:
        UserError: a twin of a network that nf_zoo doesn't have; a name that timm doesn't have; an unknown name.
    """
    return dict(_open(name.partition('.')[0], model, kind, kwargs) for kind in kinds)


def _open(name: str, model: nn.Module, kind: str, kwargs: dict[str, Any]) -> tuple[str, nn.Module]:
    if kind == EAGER:
        return EAGER, deepcopy(model)
    given = {'num_classes': getattr(model, 'num_classes', 1000), **kwargs}
    if kind == TIMM:
        theirs = timms_own(name, **given)
        if theirs is None:
            raise UserError(f'timm has no network of its own called {name}: give --peer NAME')
        return f'{TIMM} {name}', theirs
    if kind not in NORMS:
        return kind, open_network(kind, model_args=given)
    label, norm = NORMS[kind]
    if name not in list_models() or not isinstance(model, ResNet):
        raise UserError(f'{name} has no {kind} twin, which the networks of nf_zoo have: give --peer NAME')
    same = _same_stages(name, model, kind) if not kwargs else None
    if same:
        return f'{label} {same}', timm.create_model(same, num_classes=model.num_classes)
    return label if kind == 'floor' else f'{label} twin', twin(name, model, norm, **kwargs)


def _same_stages(name: str, model: ResNet, kind: str) -> str | None:
    """timm's network with the same stages, if it has one.

    Its shortcuts are strided where some methods pool. A convolution in the shortcut of every block, or attention, it
    doesn't have.
    """
    row = variant(name)
    known = {imagenet: _BOTTLENECK, imagenet_basic: _BASIC}.get(row['layout'], {})
    found = known.get(tuple(row['depths']))
    stages: Any = model.stages
    projections = sum(block.downsample is not None for stage in stages for block in stage)
    if found is None or projections > len(stages) or row.get('attn_layer'):
        return None
    if kind == 'bn':
        return found
    return 'resnet50_gn' if kind == 'gn' and found == 'resnet50' else None


def share_weights(floor: nn.Module, folded: nn.Module) -> None:
    """Give ``floor`` the convolutions' weights of ``folded``, whose floor it is.

    The address of the weights changes the time by some percent.
    """
    for mine, theirs in zip(_places(floor), _places(folded), strict=True):
        free = [module for module in theirs.modules() if isinstance(module, nn.Conv2d)]
        for conv in [module for module in mine.modules() if isinstance(module, nn.Conv2d)]:
            match = next((other for other in free if other.weight.shape == conv.weight.shape), None)
            if match is not None:
                conv.weight = match.weight
                free.remove(match)


def _places(model: Any) -> list[nn.Module]:
    return [model.stem, *(block for stage in model.stages for block in stage), model.final_conv]
