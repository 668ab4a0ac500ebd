"""nf_zoo: residual networks that train without batch normalization, as models of timm.

Importing it registers every model. What the methods differ in (h the shortcut, F the branch, a the activation):

==========  =====================  ===========================  ==============================  ==============  ====
method      convolution            biases and scalars           merge                           init            act.
==========  =====================  ===========================  ==============================  ==============  ====
EUNNet      input-normalised       conv bias, scalar s          alpha h + beta s F              He fan-in       post
NF-ResNet   scaled weight          conv bias, gain per channel  h + alpha F(beta a(x))          gain of the     pre
            standardisation                                                                     last conv 0
NF-RegNet   as NF-ResNet           as NF-ResNet                 as NF-ResNet, 2 SE within F     as NF-ResNet    pre
DM-NF-...   as NF-ResNet           as they, scalar g            h + alpha g F(beta gamma a(x))  g 0             pre
Fixup       plain, no bias         scalars before and after     h + s F + b                     He fan-out by   post
                                   each conv, scalar s                                          L^(-1/(2m-2)),
                                                                                                last conv 0
SkipInit    plain                  conv bias, scalar s          h + s F(a(x))                   s 0             pre
RescaleNet  plain, no bias         bias per channel before      alpha h + L^(-1/2) s F          He fan-in by    post
                                   each conv, scalar s                                          depth
IdShort     plain, no bias         none                         c (h + F(a(x))), c = 1/sqrt 2   He fan-out,     pre
                                                                                                standardised
LearnScal.  plain, no bias         scalar s on the identity     c (s x + F(a(x)))               as IdShort      pre
ConvShort   plain, no bias         none                         as IdShort, h always a conv     as IdShort      pre
weight n.   normalised weight      conv bias, gain per channel  h + F                           He fan-out      post
BN          plain, no bias         batch normalization          h + F (the controls)            He fan-out      both
GN          plain, no bias         group normalization          h + F (a control)               He fan-out      post
==========  =====================  ===========================  ==============================  ==============  ====
"""

import importlib
from typing import Any

from . import _interrupt  # noqa: F401 (comes first: it handles Ctrl-C during the imports below)
from .folding.network import fold
from .models import (  # noqa: F401 (importing a page registers its models)
    bn_resnet,
    convshort,
    dm_nf_regnet,
    dm_nf_resnet,
    eunnet,
    fixup,
    nf_regnet,
    nf_resnet,
    rescalenet,
    skipinit,
    weight_norm,
)
from .net.registry import list_models

__version__ = '0.2.0'

# Loaded when first used: they bring the libraries of training, hubs and exporters.
_LAZY = {
    'convert': 'conversion',
    'export_onnx': 'export',
    'export_torchscript': 'export',
    'publish': 'hub',
    'fetch': 'hub',
    'verify': 'hub',
    'signal_propagation': 'analysis',
    'agc_': 'train.gradients',
    'gamma': 'layers.std_conv',
    'is_batch_independent': 'layers.independence',
}
_PACKAGES = ('analysis', 'bench', 'conversion', 'export', 'hub', 'inference', 'train')

__all__ = ['fold', 'list_models', *_LAZY, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f'.{_LAZY[name]}', __name__), name)
    if name in _PACKAGES:
        return importlib.import_module(f'.{name}', __name__)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, '__version__'])
