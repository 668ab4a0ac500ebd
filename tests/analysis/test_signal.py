"""The signal at initialisation, as an instrument, and as the normalizer-free papers claim it."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import timm
import torch
from families import images, representatives, small
from torch import nn

import nf_zoo
from nf_zoo import signal_propagation
from nf_zoo.errors import UserError
from nf_zoo.net.layout import Layout, Site, imagenet


@pytest.mark.parametrize('name', representatives())
def test_every_family_has_a_row_per_block(name):
    model = small(name)
    rows = signal_propagation(model, images(name))
    assert [row.block for row in rows] == [f'stages.{i}.{j}' for i, s in enumerate(model.stages) for j in range(len(s))]
    assert all(value > 0 for row in rows for value in row[1:])


def test_the_numbers_are_those_of_the_blocks():
    model = timm.create_model('nf_resnet20_cifar').double()
    for block in model.stages[2][1:]:
        nn.init.zeros_(block.conv2.gain)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    row = signal_propagation(model, x)[6]
    before = model.stages[1](model.stages[0](model.stem(x)))
    block = model.stages[2][0]
    y = block(before)
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    branch = (y - block.shortcut_gain * block.downsample(before.relu())) / block.alpha
    assert row.squared_mean == pytest.approx(mean.square().mean().item())
    assert row.variance == pytest.approx(variance.mean().item())
    assert row.branch_variance == pytest.approx(branch.var((0, 2, 3), correction=0).mean().item())
    # The two blocks behind are the identity: what is left is the last ReLU.
    assert row.gradient_variance == pytest.approx((y > 0).double().mean().item(), rel=0.1)


@pytest.mark.parametrize('name', nf_zoo.list_models('*net20_cifar'))
def test_the_model_stays_as_it_is(name):
    model = timm.create_model(name, drop_path_rate=0.5, drop_rate=0.5)
    model.set_grad_checkpointing()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = signal_propagation(model)
    assert signal_propagation(model, x)[0].variance == pytest.approx(first[0].variance)
    assert torch.equal(torch.get_rng_state(), random) and not x.requires_grad
    assert model.training and model.grad_checkpointing and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize('make', [partial(nn.Linear, 2, 2), partial(timm.create_model, 'resnet18', device='meta')])
def test_another_model_is_refused_in_one_line(make):
    model = make()
    with pytest.raises(UserError, match=type(model).__name__) as caught:
        signal_propagation(model)
    assert '\n' not in str(caught.value)


# ---- Brock, De, Smith (2021)


def narrow(*, depths: tuple[int, ...], output_stride: int = 32) -> Layout:
    """NF-ResNet of a quarter of the width: the claims hold for every width."""

    def quarter(site: Site) -> Site:
        return replace(site, in_chs=site.in_chs // 4, mid_chs=site.mid_chs // 4, out_chs=site.out_chs // 4)

    plan = imagenet(depths=depths, output_stride=output_stride)
    return replace(plan, stem_chs=16, stages=tuple(tuple(map(quarter, stage)) for stage in plan.stages))


def awake(name: str, circular: bool = True, **kwargs) -> nn.Module:
    """The network with every gain 1. Circular padding keeps the variance that zeros around small maps would take."""
    model = timm.create_model(name, **kwargs)
    for key, parameter in model.named_parameters():
        if key.endswith('gain'):
            nn.init.ones_(parameter)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and circular:
            module.padding_mode = 'circular'
    return model


def additions(depths: tuple[int, ...]) -> list[int]:
    """Additions up to the end of each block, counted anew at each transition block."""
    return [n for depth in depths for n in range(1, depth + 1)]


@pytest.mark.parametrize('depths', [(3, 4, 6, 3), (50, 50, 50, 50)], ids=['50 layers', '600 layers'])
@pytest.mark.parametrize('attn_layer', [None, 'se'])
def test_the_variance_grows_by_alpha_squared_with_each_addition(depths, attn_layer):
    # Squeeze-and-excite's gates differ from image to image: twice their mean is 1, twice their mean square is more.
    slack = 1 if attn_layer is None else 2
    model = awake('dm_nf_resnet50', layout=narrow, depths=depths, attn_layer=attn_layer)
    rows = signal_propagation(model, torch.randn(8, 3, 64, 64))
    for row, n in zip(rows, additions(depths), strict=True):
        assert row.variance == pytest.approx(1 + n * 0.04, rel=0.15 * slack)
        assert row.branch_variance == pytest.approx(1, rel=0.3 * slack)
        assert row.squared_mean < 0.1 * row.variance


def test_zero_padding_only_lowers_it():
    make = partial(awake, 'dm_nf_resnet50', layout=narrow, depths=(3, 4, 6, 3))
    rows = signal_propagation(make(circular=False), torch.randn(8, 3, 64, 64))
    for row, n in zip(rows, additions((3, 4, 6, 3)), strict=True):
        assert 0.5 * (1 + n * 0.04) < row.variance < 1.1 * (1 + n * 0.04)


def test_average_pooling_quarters_the_variance_and_nothing_else_does():
    """Appendix B.4: pooling of k x k attenuates the signal by k, and is not corrected."""
    model = awake('dm_nf_regnet_b0', depths=(3, 3, 3, 3))
    x = torch.randn(8, 3, 64, 64)
    pooled = [row.variance for row in signal_propagation(model, x) if row.block.endswith('.0')]
    for before, after in pairwise(pooled):
        assert before / 6 < after < before / 3
    for stage in model.stages:
        stage[0].downsample.pool = nn.MaxPool2d(1, stride=2)  # takes every second pixel
    for row, n in zip(signal_propagation(model, x), additions((3, 3, 3, 3)), strict=True):
        assert row.variance == pytest.approx(1 + n * 0.04, rel=0.15)


def test_timms_form_grows_alike_relative_to_what_enters_the_stage():
    """Its pooled shortcuts and the stem's gamma change the level; the block is homogeneous in it."""
    depths = (4, 4, 4, 4)
    rows = signal_propagation(awake('nf_resnet50', layout=narrow, depths=depths), torch.randn(8, 3, 64, 64))
    for i in range(4):
        first, *others = rows[4 * i : 4 * i + 4]
        for n, row in enumerate(others, 2):
            assert row.variance / first.variance == pytest.approx((1 + n * 0.04) / 1.04, rel=0.03)


@pytest.mark.parametrize('name', ['dm_nf_resnet50', 'nf_resnet50'])
def test_squeeze_excite_keeps_the_signal_because_of_its_factor_two(name):
    make = partial(awake, name, layout=narrow, depths=(2, 2, 2, 2))
    x = torch.randn(8, 3, 64, 64)
    plain, kept = (signal_propagation(make(attn_layer=layer), x) for layer in (None, 'se'))
    model = make(attn_layer='se')
    for module in model.modules():
        if type(module).__name__ == 'SEModule':
            module.register_forward_hook(lambda _, args, y: y / 2)
    decayed = signal_propagation(model, x)
    for a, b, c in zip(plain, kept, decayed, strict=True):
        assert b.branch_variance == pytest.approx(a.branch_variance, rel=0.35)
        assert c.branch_variance < 0.4 * a.branch_variance
