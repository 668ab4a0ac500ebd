"""nf_zoo: residual networks that train without batch normalization, as models of timm.

Importing it registers every model. What the methods differ in (h the shortcut, F the branch, a the activation):

=========  =====================  ===========================  ==============================  ==============  ====
method     convolution            biases and scalars           merge                           init            act.
=========  =====================  ===========================  ==============================  ==============  ====
EUNNet     input-normalised       conv bias, scalar s          alpha h + beta s F              He fan-in       post
NF-ResNet  scaled weight          conv bias, gain per channel  h + alpha F(beta a(x))          gain of the     pre
           standardisation                                                                     last conv 0
NF-RegNet  as NF-ResNet           as NF-ResNet                 as NF-ResNet, 2 SE within F     as NF-ResNet    pre
DM-NF-...  as NF-ResNet           as they, scalar g            h + alpha g F(beta gamma a(x))  g 0             pre
=========  =====================  ===========================  ==============================  ==============  ====
"""

import importlib
from typing import Any

from . import dm_nf_regnet, dm_nf_resnet, eunnet, nf_regnet, nf_resnet
from .fold import fold  # the function; as a lazy name it would give way to the module of that name
from .registry import list_models

__version__ = '0.1.0'

# Loaded when first used: they bring the libraries of training, hubs and exporters.
_LAZY = {
    'export_onnx': 'export',
    'export_torchscript': 'export',
    'publish': 'hub',
    'fetch': 'hub',
    'verify': 'hub',
    'signal_propagation': 'signal',
}

__all__ = ['dm_nf_regnet', 'dm_nf_resnet', 'eunnet', 'list_models', 'nf_regnet', 'nf_resnet', *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f'.{_LAZY[name]}', __name__), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
