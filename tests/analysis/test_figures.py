"""What the papers claim in their figures, held as numbers on the figures' networks with fewer blocks."""

import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from nf_zoo.analysis.figure_nets import (
    Size,
    bn_relu,
    classical,
    halve_attention,
    he_nf_resnet,
    nf_resnet,
    postact_resnet,
    preact_resnet,
    relu_bn,
    without_pooling,
)
from nf_zoo.analysis.figures import FIGURES, curves_of, draw_figure, figure_size, measure_figure
from nf_zoo.analysis.signal import signal_propagation
from nf_zoo.errors import UserError

SIZE, DEPTHS = Size(pixels=64, batch=4), (12, 3, 2, 2)


def rows_of(model: nn.Module, size: Size = SIZE, backward: bool = False):
    x = torch.randn(size.batch, 3, size.pixels, size.pixels, generator=torch.Generator().manual_seed(0))
    return signal_propagation(model, x, awake=True, backward=backward)[1:]


@pytest.mark.parametrize(('norm', 'gain', 'branch'), [(bn_relu, 2.0, 1 - 1 / math.pi), (relu_bn, 1.0, 1.0)])
def test_batch_normalization_grows_linearly_and_is_reset(norm, gain, branch):
    """Brock, figure 1: Var(f) is 0.68 or 1, and so is the slope; the first block has a projection besides."""
    rows = rows_of(preact_resnet(SIZE, DEPTHS, norm, gain))
    for n, row in enumerate(rows[:12], 1):
        assert row.branch_variance == pytest.approx(branch, rel=0.15)
        assert row.variance == pytest.approx(branch * (1 + n), rel=0.15)
    firsts = [row for row, before in zip(rows[1:], rows, strict=False) if row.stage != before.stage]
    assert len(firsts) == 3 and all(row.variance == pytest.approx(2 * branch, rel=0.15) for row in firsts)


def test_scaled_weight_standardisation_takes_the_mean_shift_of_he_away():
    """Brock, figure 2."""
    he, scaled = rows_of(he_nf_resnet(SIZE, DEPTHS)), rows_of(nf_resnet(SIZE, DEPTHS))
    assert he[11].squared_mean > he[11].variance and scaled[11].squared_mean < 0.05 * scaled[11].variance
    assert [row.variance for row in scaled[:12]] == pytest.approx([1 + n for n in range(1, 13)], rel=0.15)
    assert sum(row.branch_variance < 1 for row in he) > 0.6 * len(he)


def test_without_normalisation_the_signal_explodes():
    """Brock, figure 6: about x1.9 a block."""
    model = timm.create_model('skipinit_resnet50', depths=(20, 1, 1, 1), width=0.25)
    rows = rows_of(model)
    assert (rows[19].variance / rows[0].variance) ** (1 / 19) == pytest.approx(1.85, rel=0.15)


def test_linear_networks_have_no_mean():
    """Brock, figure 7."""
    rows = rows_of(without_pooling(nf_resnet(SIZE, DEPTHS, act_layer='identity')))
    assert all(row.squared_mean < 0.1 * row.variance for row in rows)
    assert all(row.branch_variance == pytest.approx(1, rel=0.5) for row in rows[:12])


def test_a_gain_that_is_too_low_attenuates_at_each_block_and_transition():
    """Brock, figure 8: gamma^2 is too low by 1 - 1 / pi in each of three convolutions."""
    rows = rows_of(nf_resnet(SIZE, DEPTHS, gamma=2**0.5))
    assert rows[0].branch_variance == pytest.approx((1 - 1 / math.pi) ** 3, rel=0.15)
    assert rows[12].variance < 0.2 * rows[11].variance and rows[15].variance < 0.5 * rows[14].variance


def test_squeeze_and_excite_without_its_factor_quarters_the_branch():
    """Brock, figure 9."""
    model = nf_resnet(SIZE, DEPTHS, attn_layer='se')
    kept = rows_of(model)
    halve_attention(model)
    assert rows_of(model)[0].branch_variance == pytest.approx(kept[0].branch_variance / 4, rel=1e-3)


def test_fixup_is_constant_within_a_stage():
    """Brock, figure 10."""
    rows = rows_of(timm.create_model('fixup_resnet50', depths=DEPTHS, width=0.25))
    for stage in range(4):
        variances = {round(row.variance, 7) for row in rows if row.stage == stage}
        assert len(variances) == 1
    assert rows[0].variance > 1.5 * rows[12].variance and all(row.branch_variance == 0 for row in rows)


def test_normalisation_at_the_branchs_end_gives_it_variance_one():
    """Brock, figure 11."""
    rows = rows_of(postact_resnet(SIZE, DEPTHS))
    assert all(row.branch_variance == pytest.approx(1, rel=0.02) for row in rows)
    assert rows[12].variance < 0.3 * rows[11].variance


def test_the_two_equations_of_civitelli_keep_gradients_or_features():
    """Civitelli, figure 2: within a stage; the transitions of equation 2 divide the gradients."""
    size = Size(pixels=32, batch=4)
    depths = (6, 1, 1, 1)
    make = partial(timm.create_model, 'idshort_resnet50_cifar', depths=depths, width=0.25)
    ours, brock = (rows_of(make(init=init), size, backward=True)[:6] for init in ('fan_out', 'brock'))
    gradients = [row.gradient_variance for row in ours]
    assert max(gradients) / min(gradients) < 1.6
    assert brock[0].gradient_variance / brock[5].gradient_variance > 1.4**5
    assert max(row.variance for row in brock) / min(row.variance for row in brock) < 1.3


@pytest.mark.parametrize('normalised', [False, True])
def test_classical_networks_explode_unless_they_are_normalised(normalised):
    rows = rows_of(classical(Size(pixels=32, batch=4), '50', 'fan_in', normalised), Size(pixels=32, batch=4))
    assert len(rows) == 16 and (rows[-1].variance / rows[0].variance > 100) != normalised


def test_a_figure_has_its_networks_and_can_be_drawn(tmp_path):
    size = figure_size('hoedt4', width=0.125, batch=2, pixels=32)
    panels = measure_figure('hoedt4', size)
    assert list(curves_of(panels)) == ['no BN', 'BN -> ReLU']
    draw_figure('hoedt4', tmp_path / 'a.svg', panels, size)
    text = (tmp_path / 'a.svg').read_text()
    assert 'BN -&gt; ReLU' in text and FIGURES['hoedt4'].title in text
    with pytest.raises(UserError, match="no figure 'hoedt3'.*; did you mean 'hoedt"):
        figure_size('hoedt3')


@pytest.mark.parametrize('name', FIGURES)
def test_the_gallery_has_each_figure_with_its_command(name):
    docs = Path(__file__).parents[2] / 'docs'
    assert f'nf-zoo signal --figure {name} -o docs/figures/{name}.svg' in (docs / 'gallery.md').read_text()
    picture = (docs / 'figures' / f'{name}.svg').read_text()
    assert FIGURES[name].title in picture and len(picture) < 150_000
