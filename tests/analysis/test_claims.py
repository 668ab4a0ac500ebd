"""What Brock, De, Smith (2021) claim of the signal of NF-ResNets, as numbers."""

from functools import partial
from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from nf_zoo import signal_propagation
from nf_zoo.analysis.figure_nets import halve_attention
from nf_zoo.analysis.signal import BlockSignal


def measured(model: nn.Module, x: torch.Tensor) -> list[BlockSignal]:
    """The rows of the blocks, forward alone."""
    return signal_propagation(model, x, backward=False)[1:]


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


@pytest.mark.parametrize(
    ('depths', 'attn_layer', 'count'),
    [((3, 4, 6, 3), None, 8), ((3, 4, 6, 3), 'se', 8), ((50, 50, 50, 50), None, 4)],
    ids=['50 layers', '50 layers, se', '600 layers'],
)
def test_the_variance_grows_by_alpha_squared_with_each_addition(depths, attn_layer, count):
    # Squeeze-and-excite's gates differ from image to image: twice their mean is 1, twice their mean square is more.
    slack = 1 if attn_layer is None else 2
    model = awake('dm_nf_resnet50', width=0.25, depths=depths, attn_layer=attn_layer)
    rows = measured(model, torch.randn(count, 3, 64, 64))
    for row, n in zip(rows, additions(depths), strict=True):
        assert row.variance == pytest.approx(1 + n * 0.04, rel=0.15 * slack)
        assert row.branch_variance == pytest.approx(1, rel=0.3 * slack)
        assert row.squared_mean < 0.1 * row.variance


def test_zero_padding_only_lowers_it():
    make = partial(awake, 'dm_nf_resnet50', width=0.25, depths=(3, 4, 6, 3))
    rows = measured(make(circular=False), torch.randn(8, 3, 64, 64))
    for row, n in zip(rows, additions((3, 4, 6, 3)), strict=True):
        assert 0.5 * (1 + n * 0.04) < row.variance < 1.1 * (1 + n * 0.04)


def test_average_pooling_quarters_the_variance_and_nothing_else_does():
    """Appendix B.4: pooling of k x k attenuates the signal by k, and is not corrected."""
    model = awake('dm_nf_regnet_b0', depths=(3, 3, 3, 3))
    x = torch.randn(8, 3, 64, 64)
    pooled = [row.variance for row in measured(model, x) if row.block.endswith('.0')]
    for before, after in pairwise(pooled):
        assert before / 6 < after < before / 3
    for stage in model.stages:
        stage[0].downsample.pool = nn.MaxPool2d(1, stride=2)  # takes every second pixel
    for row, n in zip(measured(model, x), additions((3, 3, 3, 3)), strict=True):
        assert row.variance == pytest.approx(1 + n * 0.04, rel=0.15)


def test_timms_form_grows_alike_relative_to_what_enters_the_stage():
    """Its pooled shortcuts and the stem's gamma change the level; the block is homogeneous in it."""
    depths = (4, 4, 4, 4)
    rows = measured(awake('nf_resnet50', width=0.25, depths=depths), torch.randn(8, 3, 64, 64))
    for i in range(4):
        first, *others = rows[4 * i : 4 * i + 4]
        for n, row in enumerate(others, 2):
            assert row.variance / first.variance == pytest.approx((1 + n * 0.04) / 1.04, rel=0.03)


@pytest.mark.parametrize('name', ['dm_nf_resnet50', 'nf_resnet50'])
def test_squeeze_excite_keeps_the_signal_because_of_its_factor_two(name):
    make = partial(awake, name, width=0.25, depths=(2, 2, 2, 2))
    x = torch.randn(8, 3, 64, 64)
    plain, kept = (measured(make(attn_layer=layer), x) for layer in (None, 'se'))
    model = make(attn_layer='se')
    halve_attention(model)
    decayed = measured(model, x)
    for a, b, c in zip(plain, kept, decayed, strict=True):
        assert b.branch_variance == pytest.approx(a.branch_variance, rel=0.35)
        assert c.branch_variance < 0.4 * a.branch_variance
