"""Weights under the names that torchvision, timm and the papers' own code give the parts of a ResNet."""

import re

from torch import Tensor, nn

State = dict[str, Tensor]


def resnet_names(state_dict: State, model: nn.Module) -> State:
    """``state_dict`` with the names of ``model``'s convolutions and classifier; one that has them comes back as it is.

    Batch normalization is left out unless ``model`` has it too. What such a checkpoint cannot have (biases, gains,
    scalars, a convolution in place of the identity) is then taken from ``model``, so that its convolutions initialise
    any method.
    """
    own = model.state_dict()
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
    name = re.sub(r'^conv1\.', 'stem.conv.', name)
    name = re.sub(r'^layer(\d+)', lambda m: f'stages.{int(m[1]) - 1}', name)
    name = re.sub(r'\bdownsample\.\d+\.', 'downsample.conv.' if pooled else 'downsample.', name)
    return re.sub(r'^(fc|linear)\.', 'head.fc.', name)
