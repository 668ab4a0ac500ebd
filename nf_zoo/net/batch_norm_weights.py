"""Weights of ResNets with batch normalization for the weight-normalised ResNet, which has none."""

from dataclasses import replace
from typing import Any

import torch
from timm.models import get_arch_pretrained_cfgs
from timm.models._manipulate import adapt_input_conv
from timm.models._pretrained import PretrainedCfg
from torch import nn

from ..errors import UserError
from ..layers.std_conv import filter_norm, without_batch_norm
from .foreign import State, new_channels_last, own_name

_NORM = ('running_mean', 'running_var', 'weight', 'bias')


def weight_norm_weights(state_dict: State, model: nn.Module) -> State:
    """The weights of a ResNet with batch normalization, as weights with which ``model`` computes the same.

    ``model`` is a weight-normalised ResNet. Known are the names of torchvision and timm, those of our own
    ``bn_resnet*_cifar``, and those of https://github.com/akamaster/pytorch_resnet_cifar10, whose shortcuts have their
    own order of channels. Weights without batch normalization are those of ``model`` itself.

    Raises:
        UserError: a batch normalization without a convolution before it.
    """
    own = model.state_dict()
    state_dict = new_channels_last(state_dict)
    found: State = {}
    for name, value in state_dict.items():
        layer, _, key = name.rpartition('.')
        if f'{layer}.running_mean' not in state_dict:
            found[own_name(name)] = value
        elif key == 'running_mean':
            conv = _convolution_before(layer)
            if f'{conv}.weight' not in state_dict:
                raise UserError(
                    f'{layer} of the weights has no convolution {conv}; load weights of another architecture'
                )
            parts = _convolution_without_norm(state_dict, conv, layer)
            conv = own_name(f'{conv}.').removesuffix('.')
            if f'{conv}.gain' not in own:  # weight_norm=False: plain convolutions
                parts['weight'] = parts['weight'] * (parts.pop('gain') / filter_norm(parts['weight']))
            # Rounded once, to the dtype of the model.
            found |= {
                f'{conv}.{key}': p.to(getattr(own.get(f'{conv}.{key}'), 'dtype', None)) for key, p in parts.items()
            }
    return _for_channels(found, own)


def _convolution_before(norm: str) -> str:
    """Name of the convolution before a batch normalization: conv1 of bn1, stem.conv of stem.bn, downsample.0 of .1."""
    head, _, last = norm.rpartition('.')
    return f'{head}.{int(last) - 1}' if last.isdecimal() else f'{head}.{last.replace("bn", "conv")}'.removeprefix('.')


def _convolution_without_norm(state_dict: State, conv: str, norm: str, eps: float = 1e-5) -> State:
    """Weight, gain and bias that do what a convolution and the batch normalization behind it do."""
    weight = state_dict[f'{conv}.weight']
    parts = [state_dict.get(name) for name in (f'{conv}.bias', *(f'{norm}.{part}' for part in _NORM))]
    bias, mean, var, gamma, beta = (None if part is None else part.double() for part in parts)
    assert mean is not None and var is not None
    length = torch.linalg.vector_norm(weight.double().flatten(1), dim=1)
    gain, bias = without_batch_norm(length, bias, mean, var, gamma, beta, eps)
    return {'weight': weight, 'gain': gain.view(-1, 1, 1, 1), 'bias': bias}


def _for_channels(state: State, own: State) -> State:
    """For other input channels timm sums or repeats v. Here g follows |v|, so that the same is done to W'."""
    weight, gain = state.get('stem.conv.weight'), state.get('stem.conv.gain')
    channels = own['stem.conv.weight'].shape[1]
    if weight is None or gain is None or weight.shape[1] == channels:
        return state
    adapted = adapt_input_conv(channels, weight, base_chans=weight.shape[1])
    return state | {'stem.conv.gain': (gain * filter_norm(adapted) / filter_norm(weight)).to(gain.dtype)}


def batch_norm_cfgs(name: str, **layers: Any) -> dict[str, PretrainedCfg]:
    """timm's pretrained cfgs of its own network ``name``, tag -> cfg, with our names of the first and the last layer.

    They name timm's repositories and licences. (Those in the page of timm are of the repository of any architecture.)
    """
    cfgs = get_arch_pretrained_cfgs(name)
    return {key.partition('.')[2]: replace(cfg, **layers) for key, cfg in cfgs.items()}
