"""nf_zoo.fold: the same function, of plain parts, on a copy."""

from functools import cache
from typing import Any

import pytest
import timm
import torch
from folding import children, close, general, identify, same, traced
from hypothesis import given
from hypothesis import strategies as st
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import nf_zoo
from nf_zoo.errors import UserError
from nf_zoo.folding.blocks import PlainBlock
from nf_zoo.folding.network import fold
from nf_zoo.layers.affine_conv import AffineConv2d, PreBiasConv2d, Shift
from nf_zoo.layers.input_norm import InputNormConv2d, Standardize
from nf_zoo.layers.std_conv import WeightConv2d
from nf_zoo.net.parts import PadShortcut

# Shallow networks of every family, and the products left in them; -1: EUNNet's normalisation, which stays, and timm's
# pooling with SAME padding have operators of their own.
SE = dict(attn_layer='se')
CASES: list[tuple[str, dict[str, Any], int]] = [
    ('bn_preresnet18_cifar', {}, 0),
    ('bn_preresnet50_cifar', SE, 5),
    ('bn_resnet20_cifar', {}, 0),
    ('bn_resnet20_cifar', SE, 5),
    ('convshort_resnet18_cifar', {}, 0),
    ('convshort_resnet20_cifar', {}, 0),
    ('convshort_resnet50', SE, 5),
    ('dm_nf_regnet_b0', {}, 6),  # squeeze-and-excite, and gamma behind the last features
    ('dm_nf_resnet50', {}, 1),  # gamma behind the last features
    ('dm_nf_resnet50', dict(SE, output_stride=8), 11),  # a learned scalar behind each squeeze-and-excite
    ('eunnet18', {}, -1),
    ('eunnet20_cifar', dict(norm='l2', in_chans=1), -1),
    ('eunnet20_cifar', dict(SE, norm='tensor'), -1),
    ('eunnet20_cifar', dict(SE, scale=False), -1),
    ('eunnet20_cifar', dict(residual_scaling=False, drop_conv_rate=0.5, drop_path_rate=0.5), -1),
    ('eunnet50', dict(norm='l2', output_stride=8), -1),
    ('fixup_resnet18', dict(output_stride=16), 0),
    ('fixup_resnet20_cifar', {}, 0),
    ('fixup_resnet20_cifar', SE, 10),
    ('fixup_resnet50', {}, 0),
    ('idshort_resnet18', {}, 1),  # the stem is a feature level, and no convolution follows on the skip path
    ('idshort_resnet18_cifar', SE, 5),
    ('idshort_resnet20_cifar', {}, 0),
    ('idshort_resnet50_cifar', {}, 0),
    ('learnscalar_resnet18_cifar', {}, 2),  # the scalars that are 0 or negative
    ('learnscalar_resnet20_cifar', {}, 2),
    ('learnscalar_resnet50', dict(SE, output_stride=8), 6),
    ('nf_regnet_b0', {}, 5),
    ('nf_regnet_b0', dict(output_stride=8, drop_path_rate=0.5), -1),
    ('nf_resnet20_cifar', dict(in_chans=1), 0),
    ('nf_resnet20_cifar', dict(SE, drop_path_rate=0.5), 5),
    ('nf_resnet50', {}, 0),
    ('nf_resnet50', dict(output_stride=8), -1),
    ('nf_seresnet50', {}, 5),
    ('rescalenet18', {}, 1),  # as idshort_resnet18
    ('rescalenet20_cifar', dict(SE, drop_conv_rate=0.5), 10),
    ('rescalenet50', {}, 0),
    ('rescalenet50', dict(output_stride=16), -1),
    ('skipinit_resnet20_cifar', SE, 10),
    ('skipinit_resnet50', dict(output_stride=8), 0),
    ('wn_resnet18', dict(drop_conv_rate=0.5), 0),
    ('wn_resnet20_cifar', SE, 5),
    ('wn_resnet50', SE, 5),
]
FAMILIES = [
    'bn_preresnet18_cifar',
    'bn_resnet20_cifar',
    'convshort_resnet18_cifar',
    'dm_nf_regnet_b0',
    'dm_nf_resnet50',
    'eunnet20_cifar',
    'fixup_resnet20_cifar',
    'idshort_resnet18_cifar',
    'learnscalar_resnet18_cifar',
    'nf_regnet_b0',
    'nf_resnet20_cifar',
    'rescalenet20_cifar',
    'skipinit_resnet20_cifar',
    'wn_resnet18',
]
every_family = pytest.mark.parametrize('name', FAMILIES)

NOTHING = {'flatten', 'dropout'}  # the latter in eval mode
PLAIN = {'_convolution', 'relu', 'relu_', 'add_', 'max_pool2d', 'adaptive_avg_pool2d', 'linear'} | NOTHING
EXTRA = {
    'fixup': {'add', 'clamp_min_', 'to'},  # biases between blocks and before the pooling; ReLU with a bias in x's dtype
    'rescale': {'add', 'clamp_min_', 'to', 'avg_pool2d'},
    'nf_resnet': {'avg_pool2d'},
    'nf_seresnet': {'avg_pool2d'},
    'nf_regnet': {'avg_pool2d', 'silu', 'silu_'},
    'dm_nf_regnet': {'avg_pool2d', 'silu', 'silu_'},
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """A small, narrow model in float64, in general position: of the learned scalars some are 0 or negative."""
    depths = (2, 2, 1) if name.endswith(('20_cifar', '56_cifar')) else (2, 1, 1, 1)
    torch.manual_seed(0)
    return general(
        timm.create_model(name, **{'depths': depths, 'width': 0.25, 'num_classes': 5, **kwargs}).double().eval()
    )


def images(name: str, channels: int = 3) -> Tensor:
    size = 12 if name.endswith('_cifar') else 37
    return torch.randn(2, channels, size, size, dtype=torch.float64)


@pytest.mark.parametrize(('name', 'kwargs', 'products'), CASES, ids=identify)
@torch.inference_mode()
def test_the_same_function_of_plain_parts(name: str, kwargs: dict[str, Any], products: int) -> None:
    model = build(name, **kwargs)
    x = images(name, kwargs.get('in_chans', 3))
    folded = fold(model)
    same(folded, model, x)
    same(reparameterize_model(model), model, x)

    assert not any(m.training for m in folded.modules())
    assert not list(children(folded, (WeightConv2d, AffineConv2d, PreBiasConv2d, PadShortcut, nn.BatchNorm2d)))
    blocks = list(children(folded, PlainBlock))
    assert len(blocks) == 5
    if not name.startswith('learnscalar'):
        assert sum(b.skip is not None for b in blocks) == (name in ('eunnet18', 'idshort_resnet18', 'rescalenet18'))
    if products < 0:
        return
    ops = traced(folded, x)
    allowed = PLAIN.union(*(extra for family, extra in EXTRA.items() if name.startswith(family)))
    if products:
        allowed |= {'mean', 'sigmoid', 'mul', *(('add',) if 'attn_layer' in kwargs else ())}
    assert set(ops) <= allowed, ops
    assert ops['mul'] == products and ops['add_'] == 5


@pytest.mark.parametrize('name', [*FAMILIES, 'idshort_resnet18', 'rescalenet50'])
@torch.inference_mode()
def test_features_only(name: str) -> None:
    model = build(name, features_only=True)
    x = images(name)
    close(fold(model)(x), model(x))
    model = build(name, features_only=True, out_indices=(1, 2))
    folded = fold(model)
    close(folded(x), model(x))
    # Without the stem's level, nothing is in the way.
    assert name.startswith('learnscalar') or all(b.skip is None for b in children(folded, PlainBlock))


@pytest.mark.parametrize('name', ['fixup_resnet50', 'fixup_resnet20_cifar', 'rescalenet50', 'rescalenet20_cifar'])
@torch.inference_mode()
def test_relu_takes_biases_before_padding(name: str) -> None:
    """What is left stands before the first convolution of a basic block, which pads."""
    model = build(name)
    folded = fold(model)
    left = [key for key, module in folded.stages.named_modules() if isinstance(module, Shift)]
    assert left == (
        [] if name.endswith('50') else [f'{place}.conv1.bias' for place in ('0.0', '0.1', '1.0', '1.1', '2.0')]
    )
    same(folded, model, images(name))


def test_a_tensor_is_normalised_once_for_two_convolutions() -> None:
    folded = fold(build('eunnet50'))
    shared = list(children(folded, Standardize))
    assert len(shared) == 1  # the one block whose shortcut has no pooling
    block = folded.stages[0][0]
    assert block.norm is shared[0]
    assert not isinstance(block.conv1, InputNormConv2d) and not isinstance(block.downsample.conv, InputNormConv2d)


@every_family
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


@every_family
@torch.inference_mode()
def test_folding_twice_is_folding_once(name: str) -> None:
    once = fold(build(name))
    twice = fold(once)
    assert repr(once) == repr(twice) and once is not twice
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))
    x = images(name)
    assert torch.equal(once(x), twice(x))


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [*((name, {}) for name in FAMILIES), *((name, SE) for name in FAMILIES if name.endswith('_cifar'))],
    ids=identify,
)
@torch.inference_mode()
def test_a_state_dict_is_all_that_a_folded_network_is(name: str, kwargs: dict[str, Any]) -> None:
    model = build(name, **kwargs)
    other = build(name, **kwargs)
    for key, parameter in other.named_parameters():
        parameter.mul_(0.9 if key.endswith('.scale') else 1.1)
    other = fold(other)
    other.load_state_dict(fold(model).state_dict())
    x = images(name)
    close(other(x), model(x))


def test_what_stays_of_a_scalar_is_in_the_state_dict() -> None:
    positive, negative = build('learnscalar_resnet18_cifar'), build('learnscalar_resnet18_cifar')
    with torch.no_grad():
        for key, parameter in positive.named_parameters():
            if key.endswith('.scale'):
                parameter.abs_().add_(0.1)
    with pytest.raises(RuntimeError, match='skip'):
        fold(positive).load_state_dict(fold(negative).state_dict())


@every_family
def test_a_folded_network_trains(name: str) -> None:
    folded = fold(build(name)).train()
    x = images(name)
    optimizer = torch.optim.SGD(folded.parameters(), lr=1e-9)
    loss = folded(x).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in folded.parameters())
    assert any(p.grad.abs().max() > 0 for p in folded.stages.parameters())
    squared = sum(p.grad.square().sum() for p in folded.parameters())
    optimizer.param_groups[0]['lr'] = (1e-3 * loss / squared).item()
    optimizer.step()
    assert folded(x).square().sum() < loss


@every_family
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


@pytest.mark.parametrize('name', [name for name in FAMILIES if name.endswith('_cifar')])
@torch.inference_mode()
def test_a_part_of_a_network_can_be_folded(name: str) -> None:
    for stage in build(name).stages[:2]:
        x = torch.randn(2, stage[0].conv1.in_channels, 6, 6, dtype=torch.float64)
        close(fold(stage)(x), stage(x))
        close(fold(stage[0])(x), stage[0](x))


@cache
def five_scalars(name: str, se: bool) -> nn.Module:
    depths = (5, 1, 1, 1) if name.startswith('learn') else (3, 1, 1)
    return build(name, depths=depths, attn_layer='se' if se else None)


SCALARS = st.sampled_from([-2.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 3.0])


@given(scalars=st.lists(SCALARS, min_size=5, max_size=5), se=st.booleans())
@torch.inference_mode()
def test_scalars_of_every_sign(scalars: list[float], se: bool) -> None:
    for name in ('learnscalar_resnet18_cifar', 'fixup_resnet20_cifar', 'skipinit_resnet20_cifar', 'rescalenet20_cifar'):
        model = five_scalars(name, se)
        found = [p for key, p in model.named_parameters() if key.endswith(('.scale', '.skip_gain'))]
        assert len(found) == 5
        for parameter, scalar in zip(found, scalars, strict=True):
            parameter.fill_(scalar)
        x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
        folded = fold(model)
        same(folded, model, x)
        kept = [block.skip is not None for block in folded.stages[0]]
        assert kept == [name.startswith('learn') and scalar <= 0 for scalar in scalars[: len(kept)]]


@torch.inference_mode()
def test_factors_that_would_leave_the_numbers_of_the_dtype_stay() -> None:
    model = build('learnscalar_resnet18_cifar', depths=(4, 1, 1, 1)).float()
    for key, parameter in model.named_parameters():
        if key.endswith('.scale'):
            parameter.fill_(1e-8)
    folded = fold(model)
    x = images('_cifar').float()
    assert [block.skip is None for block in folded.stages[0]] == [False, True, False, True]
    torch.testing.assert_close(folded.forward_intermediates(x), model.forward_intermediates(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('thing', 'message'),
    [
        ('eunnet50', "can't fold str; give the PyTorch model"),
        (nn.Conv2d(1, 1, 1), 'Conv2d has nothing to fold'),
        (torch.jit.script(nn.ReLU()), "can't fold a TorchScript module"),
        (timm.create_model('eunnet20_cifar', device='meta'), "on the device 'meta' and has no weights"),
    ],
)
def test_what_cannot_be_folded(thing: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fold(thing)


def test_the_function_of_the_package() -> None:
    assert nf_zoo.fold is fold
