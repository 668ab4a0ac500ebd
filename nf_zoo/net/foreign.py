"""Weights under the names that torchvision, timm and the papers' own code give the parts of a ResNet."""

import re

from torch import Tensor, nn


def resnet_names(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state_dict`` with the names of ``model``'s convolutions and classifier; one that has them comes back as it is.

    Batch normalisation is left out unless ``model`` has it too. What such a checkpoint cannot have (biases, gains,
    scalars, a convolution in place of the identity) is then taken from ``model``, so that its convolutions initialise
    any method.
    """
    own = model.state_dict()
    norms = tuple(name.removesuffix('running_mean') for name in state_dict if name.endswith('running_mean'))
    foreign = bool(norms) and not any(name.endswith('running_mean') for name in own)
    if 'conv1.weight' not in state_dict and not foreign:
        return state_dict
    pooled = any('.downsample.conv.' in name for name in own)
    renamed = {}
    for name, value in state_dict.items():
        if foreign and name.startswith(norms):
            continue
        name = re.sub(r'^conv1\.', 'stem.conv.', name)
        name = re.sub(r'^layer(\d+)', lambda m: f'stages.{int(m[1]) - 1}', name)
        name = re.sub(r'\bdownsample\.\d+\.', 'downsample.conv.' if pooled else 'downsample.', name)
        name = re.sub(r'^fc\.', 'head.fc.', name)
        renamed[name] = value
    if foreign:
        missing = own.keys() - renamed.keys()
        kept = (n for n in missing if not n.endswith('.weight') or own[n].ndim == 1 or '.downsample.' in n)
        renamed |= {name: own[name] for name in kept}
    return renamed
