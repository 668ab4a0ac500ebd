"""Residual blocks of networks that aren't the zoo's: of timm, torchvision, and a user's own."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from nf_zoo import signal_propagation
from nf_zoo.analysis.verdict import verdict
from nf_zoo.block_scalars import WEAK, block_scalar, block_shares, dead_blocks
from nf_zoo.errors import UserError


@pytest.mark.parametrize(
    ('name', 'blocks'),
    [
        ('resnet18', ['layer1.0', 'layer1.1', 'layer2.0']),
        ('resnet26', ['layer1.0', 'layer1.1', 'layer2.0']),
        ('resnetv2_50', ['stages.0.blocks.0', 'stages.0.blocks.1', 'stages.0.blocks.2']),
        ('regnety_002', ['s1.b1', 's2.b1', 's3.b1']),
        ('nfnet_l0', ['stages.0.0', 'stages.1.0', 'stages.1.1']),
        ('convnext_atto', ['stages.0.blocks.0', 'stages.0.blocks.1', 'stages.1.blocks.0']),
    ],
)
def test_blocks_of_timm_are_found_by_their_structure(name, blocks):
    rows = signal_propagation(timm.create_model(name), torch.randn(1, 3, 64, 64), awake=True)
    assert [row.block for row in rows[1:4]] == blocks
    assert all(row.variance > 0 and row.branch_variance > 0 and row.gradient_variance > 0 for row in rows[1:])


@pytest.mark.parametrize(('name', 'count'), [('resnet18', 8), ('regnet_y_400mf', 16), ('mobilenet_v2', 10)])
def test_blocks_of_torchvision_are_found_by_their_structure(name, count):
    rows = signal_propagation(torchvision.models.get_model(name), torch.randn(1, 3, 64, 64), backward=False)
    assert len(rows) == 1 + count
    assert [row.stage for row in rows[1:]] == sorted(row.stage for row in rows[1:])


def test_normalisation_behind_the_branch_gives_it_variance_one():
    rows = signal_propagation(torchvision.models.resnet18(), torch.randn(8, 3, 64, 64), backward=False)
    assert all(row.branch_variance == pytest.approx(1, rel=0.01) for row in rows[1:])


class Own(nn.Module):
    """x' = x + alpha F(x), as a user writes it."""

    def __init__(self, chs: int, alpha: float):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(chs, chs, 3, padding=1))
        self.alpha = alpha

    def forward(self, x):
        return x + self.alpha * self.body(x)


def own(alpha: float = 0.5) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *(Own(8, alpha) for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_users_network_is_measured_before_its_constant_factor():
    model, x = own().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    rows = signal_propagation(model, x)
    y = model[0](x)
    assert [row.block for row in rows] == ['stem', '1', '2', '3', '4']
    assert rows[1].branch_variance == pytest.approx(model[1].body(y).var((0, 2, 3), correction=0).mean().item())
    assert rows[1].share == pytest.approx(0.25 * rows[1].branch_variance / rows[1].variance)
    assert rows[4].gradient_variance == pytest.approx(1, rel=0.2)  # the noise itself


def test_blocks_can_be_given_by_names():
    model, x = own(), torch.randn(2, 3, 8, 8)
    chosen, found = signal_propagation(model, x, blocks=['2', '4']), signal_propagation(model, x)
    assert [row.block for row in chosen] == ['stem', '2', '4']
    assert chosen[2].variance == pytest.approx(found[4].variance) and chosen[0].variance == pytest.approx(
        found[1].variance
    )
    with pytest.raises(UserError, match="no module '9'"):
        signal_propagation(model, x, blocks=['9'])


def without_norm(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        setattr(model, name, nn.Identity() if isinstance(child, nn.BatchNorm2d) else without_norm(child))
    return model


def test_torchvisions_resnet18_is_diagnosed_rightly_with_and_without_its_normalisation():
    x = torch.randn(4, 3, 96, 96)
    normed, bare = (
        verdict(signal_propagation(m, x))
        for m in (torchvision.models.resnet18(), without_norm(torchvision.models.resnet18()))
    )
    assert bare.startswith('explodes: the variance grows x1.') and 'explodes' not in normed


def test_shares_and_scalars_name_the_blocks_that_contribute_nothing():
    model = timm.create_model('eunnet20_cifar')
    nn.init.constant_(model.stages[1][1].scale, 1e-5)
    model.train()
    shares = block_shares(model, torch.randn(4, 3, 32, 32))
    assert model.training and len(shares) == 9
    assert shares['stages.1.1']['scale'] == pytest.approx(1e-5) and shares['stages.0.0']['scale'] == 1
    assert dead_blocks(shares) == ['stages.1.1'] == dead_blocks(shares, WEAK)
    rows = signal_propagation(model, torch.randn(4, 3, 32, 32))
    assert {row.block: pytest.approx(row.share, rel=0.2) for row in rows[1:] if row.share > 1e-6} == {
        block: row['share'] for block, row in shares.items() if row['share'] > 1e-6
    }
    assert '1 block contributes nothing (stages.1.1)' in verdict(rows)


@pytest.mark.parametrize(
    ('name', 'block', 'parameter'),
    [
        ('skipinit_resnet20_cifar', 'stages.0.0', 'skip_gain'),
        ('dm_nf_resnet50', 'stages.0.0', 'skip_gain'),
        ('fixup_resnet20_cifar', 'stages.0.0', 'scale'),
        ('nf_resnet26', 'stages.0.0', 'conv3.gain'),
        ('nf_regnet_b0', 'stages.0.0', 'conv3.gain'),
        ('resnet18', 'layer1.0', 'bn2.weight'),
        ('bn_preresnet18_cifar', 'stages.0.0', 'bn2.weight'),
        ('idshort_resnet18', 'stages.0.0', None),
    ],
)
def test_a_block_has_one_learned_scalar_or_the_gain_of_its_branch(name, block, parameter):
    found = block_scalar(timm.create_model(name).get_submodule(block))
    assert (found and found[0]) == parameter
