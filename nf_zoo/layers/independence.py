"""Whether a network mixes the images of a batch."""

from timm.layers import EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2, InplaceAbn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .input_norm import InputNormConv2d, Standardize

MIXING = (_BatchNorm, EvoNorm2dB0, EvoNorm2dB1, EvoNorm2dB2, InplaceAbn)


def is_batch_independent(model: nn.Module) -> bool:
    """Whether each image's output depends on that image alone, in training mode too.

    Only then does an image have a gradient of its own, so private training, federated averaging and training with one
    image need such a model. It is False for a model with batch normalization, whatever its present mode, and for EUNNet
    with ``norm='tensor'``. Batch normalization whose statistics can't change (timm's ``FrozenBatchNormAct2d``,
    torchvision's ``FrozenBatchNorm2d``) is allowed.

    The answer comes from the classes of the modules: a module of yours that mixes images by itself is not noticed.
    """
    return not any(
        isinstance(module, MIXING) or (isinstance(module, InputNormConv2d | Standardize) and module.norm == 'tensor')
        for module in model.modules()
    )
