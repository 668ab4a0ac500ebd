"""Weights under the names that torchvision, timm and the papers' own code give the parts of a ResNet."""

import re
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..errors import UserError

State = dict[str, Tensor]


def resnet_names(state_dict: State, model: nn.Module) -> State:
    """``state_dict`` with the names of ``model``'s convolutions and classifier; one that has them comes back as it is.

    Batch normalization is left out unless ``model`` has it too. What such a checkpoint cannot have (biases, gains,
    scalars, a convolution in place of the identity) is then taken from ``model``, so that its convolutions initialise
    any method.
    """
    own, state_dict = model.state_dict(), new_channels_last(state_dict)
    norms = tuple(name.removesuffix('running_mean') for name in state_dict if name.endswith('running_mean'))
    foreign = bool(norms) and not any(name.endswith('running_mean') for name in own)
    if 'conv1.weight' not in state_dict and not foreign:
        return state_dict
    pooled = any('.downsample.conv.' in name for name in own)
    kept = {name: value for name, value in state_dict.items() if not (foreign and name.startswith(norms))}
    renamed = {own_name(name, pooled): value for name, value in kept.items()}
    if foreign:
        missing = own.keys() - renamed.keys()
        added = (n for n in missing if not n.endswith('.weight') or own[n].ndim == 1 or '.downsample.' in n)
        renamed |= {name: own[name] for name in added}
    return renamed


def own_name(name: str, pooled: bool = False) -> str:
    """A name of torchvision's or timm's ResNet as ours. ``pooled``: the shortcut pools before its convolution."""
    name = re.sub(r'^(conv|bn)1\.', r'stem.\1.', name)
    name = re.sub(r'^layer(\d+)', lambda m: f'stages.{int(m[1]) - 1}', name)
    name = re.sub(r'\bdownsample\.\d+\.', 'downsample.conv.' if pooled else 'downsample.', name)
    return re.sub(r'^(fc|linear)\.', 'head.fc.', name)


def new_channels_last(state: State) -> State:
    """The weights of a CIFAR ResNet whose shortcuts pad channels on both sides, as for shortcuts that pad at the end.

    It is known by a classifier called ``linear``; other weights come back as they are.

    From stage to stage the channels are put into another order, the old ones first. Raises `UserError` for weights
    that are not of such a network.
    """
    if 'linear.weight' not in state or any('downsample' in name for name in state):
        return state
    first = [state.get(f'layer{stage}.0.conv2.weight') for stage in (1, 2, 3)]
    widths = [weight.shape[0] for weight in first if weight is not None]
    if len(widths) != 3:
        raise UserError('the weights have a layer called linear, but not the three stages of a CIFAR ResNet')
    orders = [torch.arange(widths[0])]
    for old, new in pairwise(widths):
        pad = (new - old) // 2
        rest = [*range(pad), *range(pad + old, new)]
        orders.append(torch.cat([pad + orders[-1], torch.tensor(rest)]))
    moved = {}
    for name, value in state.items():
        place = re.match(r'layer(\d)\.(\d+)\.(\w+)', name)
        stage, block, part = place.groups() if place else ('', '', '')
        if part == 'conv1':
            value = value[:, orders[max(int(stage) - (2 if block == '0' else 1), 0)]]
        elif part in ('conv2', 'bn2') and value.ndim:
            value = value[orders[int(stage) - 1]]
        elif name == 'linear.weight':
            value = value[:, orders[-1]]
        moved[name] = value
    return moved
