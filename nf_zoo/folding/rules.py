"""How a constant moves from one module to the next. The modules are changed in place."""

from collections import OrderedDict

import torch
from timm.layers import EcaModule, EffectiveSEModule, SEModule
from timm.layers.create_act import _ACT_FN_DEFAULT, create_act_layer
from timm.models import nfnet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import UserError
from ..layers.affine_conv import Scale, Shift, add_bias
from ..layers.input_norm import InputNormConv2d, Standardize
from ..layers.std_conv import plain_conv
from ..net.parts import GammaAct, PadShortcut, SqueezeExcite

# ---- factors


def squeeze_conv(module: nn.Module) -> nn.Module | None:
    """The first layer of squeeze-and-excite or a similar attention; it sees the mean of the input. Else None."""
    if isinstance(module, SEModule):
        return module.fc1
    if isinstance(module, EffectiveSEModule):
        return module.fc
    return module.get_submodule('conv') if type(module) is EcaModule else None


def scale_output(module: nn.Module, factor: float | Tensor) -> None:
    """Multiply the output of ``module`` by ``factor``.

    Args:
        module: A convolution, or a sequence that ends with one or with squeeze-and-excite.
        factor: A scalar, which isn't 0 for squeeze-and-excite. For a convolution also (out, 1, 1, 1).
    """
    if isinstance(module, nn.Sequential):
        squeeze = squeeze_conv(module[-1])
        scale_output(module[-1] if squeeze is None else module[:-1], factor)
        if squeeze is not None:
            scale_input(squeeze, 1 / factor)
    elif isinstance(module, Scale):
        module.gain.mul_(factor)
    else:
        assert isinstance(module, nn.Conv2d), f'{type(module).__name__} is no convolution'
        module.weight.mul_(factor)
        if module.bias is not None:
            module.bias.mul_(factor.flatten() if isinstance(factor, Tensor) else factor)


def scale_input(module: nn.Module, factor: float | Tensor) -> None:
    """Let ``module`` give for x what it gave for ``factor`` x.

    Args:
        module: A convolution, a normalisation, or a sequence with one of them after pooling and biases. A sequence
            without one (a pooling alone) is left as it is.
        factor: A positive scalar.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            if isinstance(part, Shift):
                part.bias.div_(factor)
            elif isinstance(part, nn.Conv2d):
                return scale_input(part, factor)
    elif isinstance(module, Standardize | InputNormConv2d):
        # (c x - c mean) / sqrt(c^2 var + eps). The norm 'l2' has no eps: it doesn't see the factor.
        module.eps /= float(factor) ** 2
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d), f'{type(module).__name__} is no convolution'
        module.weight.mul_(factor)


# ---- activations and attention


def plain_act(act: nn.Module) -> tuple[nn.Module, float]:
    """``act`` without its constant factor, and the factor. ``act`` may be timm's."""
    if isinstance(act, GammaAct):
        return act.act, act.gamma
    if isinstance(act, nfnet.GammaAct):
        name = next(name for name, function in _ACT_FN_DEFAULT.items() if function is act.act_fn)
        return create_act_layer(name, inplace=False), act.gamma
    return act, 1.0


@torch.no_grad()
def plain_attention(attn: nn.Module) -> tuple[nn.Module | None, float]:
    """``attn`` without its constant factors, and the one of its output. None if ``attn`` does nothing."""
    if isinstance(attn, nn.Identity):
        return None, 1.0
    if not isinstance(attn, SqueezeExcite):
        return attn, 1.0
    plain = SEModule(attn.fc1.in_channels, rd_channels=attn.fc1.out_channels, device='meta')
    plain.fc1, plain.fc2 = attn.fc1, attn.fc2
    plain.act, gamma = plain_act(attn.act)
    scale_input(plain.fc2, gamma)
    return plain.train(attn.training), 2.0


def attended(conv: nn.Module, attn: nn.Module, gain: float = 1.0) -> nn.Module:
    """``gain`` attn(conv(x)), with the gain (not 0) in the convolution where that is possible."""
    plain, factor = plain_attention(attn)
    if plain is None:
        return conv
    sequence = nn.Sequential(OrderedDict(conv=conv, attn=plain)).train(conv.training)
    if squeeze_conv(plain) is None:
        sequence.append(Scale(next(conv.parameters()).new_tensor(factor * gain)))
    else:
        with torch.no_grad():
            scale_output(sequence, factor * gain)
    return sequence


# ---- shortcuts


def projection(shortcut: nn.Module, conv: nn.Module) -> nn.Module:
    """The shortcut of a transition block whose first convolution is ``conv``. A zero-padding one becomes a strided 1x1
    convolution."""
    if not isinstance(shortcut, PadShortcut):
        return shortcut
    conv = conv[-1] if isinstance(conv, nn.Sequential) else conv
    assert isinstance(conv, nn.Conv2d)
    chs, like = conv.in_channels, conv.weight
    dd = dict(device=like.device, dtype=like.dtype)
    plain = nn.utils.skip_init(nn.Conv2d, chs, chs + shortcut.new_chs, 1, stride=shortcut.stride, bias=False, **dd)
    nn.init.dirac_(plain.weight)
    with torch.no_grad():
        plain.weight.mul_(shortcut.gain)
    return plain


# ---- batch normalization


def normed(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """norm(conv(x)) as one convolution, with the running statistics."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise UserError(f"can't fold a {type(norm).__name__} without running statistics")
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias)
    return plain_conv(conv, weight, bias)


def affine(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """``norm`` alone, as a convolution of each channel."""
    chs, like = norm.num_features, norm.weight
    dd = dict(device=like.device, dtype=like.dtype)
    conv = nn.utils.skip_init(nn.Conv2d, chs, chs, 1, groups=chs, bias=False, **dd).train(norm.training)
    nn.init.ones_(conv.weight)
    return normed(conv, norm)


def then_affine(module: nn.Module, conv: nn.Conv2d) -> None:
    """Let ``module`` give conv(module(x)). Arguments as of :func:`scale_output` and of the result of :func:`affine`."""
    scale_output(module, conv.weight)
    if conv.bias is not None:
        add_bias(module, conv.bias)
