"""The instrument: the numbers are those of the blocks, for every network, and the model stays as it is."""

import math

import pytest
import timm
import torch
from families import images, representatives, small
from torch import nn

import nf_zoo
from nf_zoo import signal_propagation
from nf_zoo.errors import UserError


@pytest.mark.parametrize('name', representatives())
def test_every_family_has_a_row_for_the_stem_and_for_each_block(name):
    model = small(name)
    stem, *rows = signal_propagation(model, images(name, side=32))
    assert [row.block for row in rows] == [f'stages.{i}.{j}' for i, s in enumerate(model.stages) for j in range(len(s))]
    assert stem.block == 'stem' and stem.stage == -1 and math.isnan(stem.branch_variance)
    assert [row.stage for row in rows] == [i for i, s in enumerate(model.stages) for _ in s]
    assert all(value > 0 for row in rows for value in row[2:])


@pytest.mark.parametrize('name', representatives())
def test_a_folded_network_has_the_same_blocks_and_the_same_signal_behind_each_stage(name):
    # BN has statistics of its own, which folding puts into the weights.
    model, x = small(name).double().eval(), images(name, 1, 32, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(0.1)
    rows, folded = (
        signal_propagation(model, x, backward=False),
        signal_propagation(nf_zoo.fold(model), x, backward=False),
    )
    assert [row.block for row in folded] == [row.block for row in rows]
    for row, same, following in zip(rows[1:], folded[1:], [*rows[2:], None], strict=True):
        if following is None or following.stage != row.stage:
            assert same.variance == pytest.approx(row.variance, rel=1e-6)
            assert same.squared_mean == pytest.approx(row.squared_mean, rel=1e-6)
        assert same.nonzero == pytest.approx(row.nonzero, abs=1e-6)


def test_the_numbers_are_those_of_the_blocks():
    model = timm.create_model('nf_resnet20_cifar').double()
    for block in model.stages[2][1:]:
        nn.init.zeros_(block.conv2.gain)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    rows = signal_propagation(model, x)
    stem, row = rows[0], rows[7]
    z = model.stem(x)
    assert stem.variance == pytest.approx(z.var((0, 2, 3), correction=0).mean().item())
    before = model.stages[1](model.stages[0](z))
    block = model.stages[2][0]
    y = block(before)
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    added = y - block.downsample(before.relu())
    branch = (added / block.alpha).var((0, 2, 3), correction=0).mean().item()
    assert row.squared_mean == pytest.approx(mean.square().mean().item())
    assert row.variance == pytest.approx(variance.mean().item())
    assert row.branch_variance == pytest.approx(branch)
    assert row.share == pytest.approx(branch * block.alpha**2 / variance.mean().item())
    assert row.nonzero == pytest.approx((y != 0).double().mean().item())
    # The two blocks behind are the identity: what is left is the last ReLU.
    assert row.gradient_variance == pytest.approx((y > 0).double().mean().item(), rel=0.1)


@pytest.mark.parametrize('attn_layer', [None, 'se'])
@pytest.mark.parametrize('family', ['eunnet20', 'fixup_resnet20', 'skipinit_resnet20', 'rescalenet20'])
def test_the_branch_is_measured_before_its_scalar(family, attn_layer):
    model = small(f'{family}_cifar', attn_layer=attn_layer)
    scalars = [getattr(block, 'scale' if hasattr(block, 'scale') else 'skip_gain') for block in model.stages[0]]
    x = images(f'{family}_cifar')
    found = {}
    for value in (1.0, -0.5, 0.0):
        for scalar in scalars:
            nn.init.constant_(scalar, value)
        found[value] = signal_propagation(model, x)[1]
    assert found[1.0].branch_variance == pytest.approx(found[-0.5].branch_variance, rel=1e-4)
    assert found[1.0].branch_variance == pytest.approx(found[0.0].branch_variance, rel=1e-4)
    assert found[0.0].share < 1e-12 < found[-0.5].share


def test_the_loss_of_the_model_can_be_what_is_sent_back():
    model = small('fixup_resnet20_cifar').double()
    x, labels = images('fixup_resnet20_cifar', dtype=torch.float64), torch.tensor([3, 5])
    first, double = (
        signal_propagation(model, x, loss=lambda y, f=f: f * nn.functional.cross_entropy(y, labels)) for f in (1, 2)
    )
    block = model.stages[1][0]
    y = model.stages[0](model.stem(x)).detach()
    z = block(y).detach().requires_grad_()
    nn.functional.cross_entropy(model.forward_head(model.final_act(model.stages[2](z))), labels).backward()
    expected = z.grad.var((0, 2, 3), correction=0).mean().item()
    assert first[3].gradient_variance == pytest.approx(expected)
    assert double[3].gradient_variance == pytest.approx(4 * expected)
    with pytest.raises(UserError, match='scalar'):
        signal_propagation(model, x, loss=lambda y: y)


@pytest.mark.parametrize('name', nf_zoo.list_models('*net20_cifar'))
def test_the_model_stays_as_it_is(name):
    model = timm.create_model(name, drop_path_rate=0.5, drop_rate=0.5)
    model.set_grad_checkpointing()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = signal_propagation(model)
    assert signal_propagation(model, x)[0].variance == pytest.approx(first[0].variance)
    signal_propagation(model, x, awake=True)
    assert torch.equal(torch.get_rng_state(), random) and not x.requires_grad
    assert model.training and model.grad_checkpointing and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize('name', ['dm_nf_resnet50', 'skipinit_resnet18', 'nf_resnet26', 'resnet18'])
def test_awake_opens_the_branches_that_start_at_zero(name):
    model = timm.create_model(name)
    x = torch.randn(1, 3, 64, 64)
    asleep, awake = (signal_propagation(model, x, awake=value, backward=False)[1:] for value in (False, True))
    assert all(row.share == 0 for row in asleep) and all(row.share > 0.01 for row in awake)
    # Fixup's last convolutions stay 0: without that it is not Fixup.
    assert all(row.share == 0 for row in signal_propagation(timm.create_model('fixup_resnet20_cifar'), awake=True)[1:])


def test_what_overflows_in_float32_is_measured_in_float64():
    model = timm.create_model('skipinit_resnet20_cifar', depths=(40, 40, 40))
    for block in (block for stage in model.stages for block in stage):
        nn.init.constant_(block.skip_gain, 3.0)
    rows = signal_propagation(model, torch.randn(1, 3, 8, 8))
    assert rows[-1].variance > 1e39 and all(math.isfinite(row.variance) for row in rows)


@pytest.mark.parametrize('model', [nn.Linear(8, 2), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))])
def test_a_network_without_residual_blocks_is_refused_in_one_line(model):
    with pytest.raises(UserError, match=f'{type(model).__name__} has no residual block') as caught:
        signal_propagation(model, torch.randn(1, 3, 8, 8))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('images', [torch.empty(0, 3, 8, 8), torch.full((1, 3, 8, 8), torch.inf)], ids=['none', 'inf'])
def test_images_without_a_signal_are_refused(images):
    with pytest.raises(UserError, match='no images, or they hold NaN'):
        signal_propagation(timm.create_model('skipinit_resnet20_cifar', depths=(1, 1, 1)), images)


def test_what_is_no_network_is_refused():
    with pytest.raises(UserError, match='str is no network'):
        signal_propagation('resnet18')


def test_a_model_without_values_is_refused_in_one_line():
    with pytest.raises(UserError, match='meta device'):
        signal_propagation(timm.create_model('resnet18', device='meta'))
