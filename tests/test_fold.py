"""nf_zoo.fold: the same function, of plain parts, on a copy."""

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import nf_zoo
from nf_zoo.convs import InputNormConv2d, WeightConv2d
from nf_zoo.errors import UserError
from nf_zoo.fold import fold
from nf_zoo.net import PadShortcut
from nf_zoo.plain import PlainBlock, Standardize

SMALL: dict[str, dict[str, Any]] = {
    'eunnet18': dict(depths=(2, 1, 1, 1)),
    'eunnet50': dict(depths=(2, 2, 1, 1)),
    'eunnet20_cifar': dict(depths=(2, 2, 1)),
    'nf_resnet50': dict(depths=(2, 1, 1, 1)),
    'nf_seresnet50': dict(depths=(1, 2, 1, 1)),
    'nf_resnet20_cifar': dict(depths=(2, 2, 1)),
}
VARIANTS = [
    *((name, {}) for name in SMALL),
    *((name, dict(in_chans=1)) for name in ('eunnet20_cifar', 'nf_resnet20_cifar')),
    *(('eunnet20_cifar', dict(norm=norm, attn_layer='se')) for norm in ('tensor', 'l2')),
    ('eunnet20_cifar', dict(scale=False, attn_layer='se')),
    ('eunnet20_cifar', dict(residual_scaling=False, drop_conv_rate=0.5, drop_path_rate=0.5)),
    ('nf_resnet20_cifar', dict(attn_layer='se', drop_path_rate=0.5)),
    ('eunnet50', dict(norm='l2', output_stride=8)),
    ('nf_resnet50', dict(output_stride=8)),
]


def build(name: str, **kwargs: Any) -> nn.Module:
    """A small model in float64; every gain, bias and scalar is random, of either sign, and one scalar is 0."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL[name], 'num_classes': 5, **kwargs}).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(('gain', 'bias', 'scale')):
                parameter.normal_()
        scalars = [p for key, p in model.named_parameters() if key.endswith('.scale')]
        if scalars:
            scalars[1].zero_()
            scalars[-1].fill_(-0.5)
    return model


def images(name: str, channels: int = 3) -> Tensor:
    size = 12 if name.endswith('_cifar') else 37
    return torch.randn(2, channels, size, size, dtype=torch.float64)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def children(model: nn.Module, kind: Any) -> Iterator[nn.Module]:
    return (m for m in model.modules() if isinstance(m, kind))


@pytest.mark.parametrize(
    ('name', 'kwargs'), VARIANTS, ids=lambda v: v if isinstance(v, str) else '-'.join(map(str, v.values())) or 'plain'
)
@torch.inference_mode()
def test_the_same_function_of_plain_parts(name: str, kwargs: dict[str, Any]) -> None:
    model = build(name, **kwargs)
    x = images(name, kwargs.get('in_chans', 3))
    folded = fold(model)
    close(folded(x), model(x))
    close(folded.forward_intermediates(x), model.forward_intermediates(x))
    close(reparameterize_model(model)(x), model(x))

    assert not any(m.training for m in folded.modules())
    assert not list(children(folded, (WeightConv2d, PadShortcut)))
    blocks = list(children(folded, PlainBlock))
    assert len(blocks) == sum(SMALL[name]['depths'])
    # Only here the stem is a feature level and no convolution follows on the skip path.
    assert sum(b.skip != 1 for b in blocks) == (name == 'eunnet18')
    learned = name.startswith('eunnet') and 'attn_layer' in kwargs and kwargs.get('scale', True)
    assert all((b.gain is not None) == learned for b in blocks)


@pytest.mark.parametrize('name', ['eunnet50', 'eunnet20_cifar', 'nf_resnet50'])
@torch.inference_mode()
def test_features_only(name: str) -> None:
    model = build(name, features_only=True)
    x = images(name)
    close(fold(model)(x), model(x))


def test_a_tensor_is_normalised_once_for_two_convolutions() -> None:
    folded = fold(build('eunnet50'))
    shared = list(children(folded, Standardize))
    assert len(shared) == 1  # the one block whose shortcut has no pooling
    block = folded.stages[0][0]
    assert block.norm is shared[0]
    assert not isinstance(block.conv1, InputNormConv2d) and not isinstance(block.downsample.conv, InputNormConv2d)


@pytest.mark.parametrize('name', ['eunnet18', 'eunnet20_cifar', 'nf_seresnet50'])
def test_the_original_is_untouched(name: str) -> None:
    model = build(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    text = repr(model)
    fold(model)
    for block in model.stages[0]:
        block.fuse()
    assert torch.equal(torch.get_rng_state(), random)
    assert repr(model) == text and all(m.training for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', ['eunnet18', 'eunnet20_cifar', 'nf_resnet20_cifar'])
def test_folding_twice_is_folding_once(name: str) -> None:
    once = fold(build(name))
    twice = fold(once)
    assert repr(once) == repr(twice) and once is not twice
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))
    x = images(name)
    assert torch.equal(once(x), twice(x))


@pytest.mark.parametrize('kwargs', [{}, dict(attn_layer='se')], ids=str)
@pytest.mark.parametrize('name', ['eunnet20_cifar', 'nf_resnet20_cifar'])
def test_a_state_dict_is_all_that_a_folded_network_is(name: str, kwargs: dict[str, Any]) -> None:
    model = build(name, **kwargs)
    other = fold(timm.create_model(name, **{**SMALL[name], 'num_classes': 5, **kwargs}).double())
    other.load_state_dict(fold(model).state_dict())
    x = images(name)
    close(other(x), model(x))


@pytest.mark.parametrize('name', ['eunnet20_cifar', 'nf_resnet20_cifar'])
def test_a_folded_network_trains(name: str) -> None:
    folded = fold(build(name)).train()
    folded(images(name)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in folded.parameters())
    assert any(p.grad.abs().max() > 0 for p in folded.stages.parameters())


@pytest.mark.parametrize('name', ['eunnet20_cifar', 'nf_resnet20_cifar'])
@torch.inference_mode()
def test_a_folded_network_keeps_the_contract(name: str) -> None:
    model = build(name)
    folded = fold(model)
    x = images(name)
    close(torch.jit.script(folded)(x), model(x))
    folded.reset_classifier(3)
    assert folded(x).shape == (2, 3)
    folded.prune_intermediate_layers([0, 1])
    close(folded(x), model.forward_intermediates(x, [1], intermediates_only=True)[0])


@pytest.mark.parametrize('name', ['eunnet20_cifar', 'nf_resnet20_cifar'])
def test_a_part_of_a_network_can_be_folded(name: str) -> None:
    block = build(name).stages[1]
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    close(fold(block)(x), block(x))


def test_timm_convolutions_with_standardised_weight() -> None:
    kinds = [
        StdConv2d(4, 6, 3, stride=2, bias=True, eps=1e-4),
        ScaledStdConv2d(4, 6, 3, groups=2, dilation=2, gamma=1.7),
        StdConv2dSame(4, 6, 3, stride=2),
        ScaledStdConv2dSame(4, 6, 3, stride=2, gamma=1.7),
        ScaledStdConv2dSame(4, 6, 3, dilation=2, gamma=1.7),
    ]
    for conv in kinds:
        model = nn.Sequential(conv).double().eval()
        nn.init.normal_(conv.gain if hasattr(conv, 'gain') else conv.weight)
        folded = fold(model)
        assert type(folded[0]) is (Conv2dSame if getattr(conv, 'same_pad', False) else nn.Conv2d)
        x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
        close(folded(x), model(x))
        assert torch.equal(fold(folded)(x), folded(x))


def test_timm_network() -> None:
    """A name of timm's own, and one that nf_zoo hands to timm because of timm's keywords."""
    for name, kwargs in {'nf_resnet50': dict(skipinit=True, act_layer='silu'), 'nf_ecaresnet26': {}}.items():
        model = timm.create_model(name, depths=(1, 1, 1, 1), num_classes=5, **kwargs).double().eval()
        assert type(model).__module__ == 'timm.models.nfnet'
        x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
        folded = fold(model)
        close(folded(x), model(x))
        assert {type(m) for m in children(folded, nn.Conv2d)} == {nn.Conv2d}
        assert torch.equal(fold(folded)(x), folded(x))


@pytest.mark.parametrize(
    ('thing', 'message'),
    [
        ('eunnet50', "can't fold str; give the PyTorch model"),
        (nn.Conv2d(1, 1, 1), 'Conv2d has nothing to fold'),
        (torch.jit.script(nn.ReLU()), "can't fold a TorchScript module"),
    ],
)
def test_what_cannot_be_folded(thing: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fold(thing)


def test_the_function_of_the_package() -> None:
    assert nf_zoo.fold is fold
