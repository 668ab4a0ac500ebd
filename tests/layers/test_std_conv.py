"""Convolutions that normalise their weight, against their equations, in float64."""

import math

import pytest
import timm.layers
import torch
from torch import nn
from torch.nn import functional as F

import nf_zoo
from nf_zoo.errors import UserError
from nf_zoo.layers.std_conv import GAMMA, ScaledStdConv2d, WeightNormConv2d

SHAPE = dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, groups=2)


def test_weight_standardisation():
    conv = ScaledStdConv2d(**SHAPE, gamma=1.7, eps=1e-12, dtype=torch.float64)
    with torch.no_grad():
        conv.gain.copy_(torch.randn_like(conv.gain))
    rows = conv.effective_weight().flatten(1)
    fan_in = rows.shape[1]
    torch.testing.assert_close(rows.mean(1), torch.zeros_like(rows[:, 0]), rtol=0, atol=1e-12)
    expected = (1.7 * conv.gain.flatten()) ** 2 / fan_in
    torch.testing.assert_close(rows.var(1, unbiased=False), expected, rtol=1e-9, atol=1e-12)


def test_scaled_std_conv_is_timms():
    ours = ScaledStdConv2d(**SHAPE, gamma=1.7, dtype=torch.float64)
    theirs = timm.layers.ScaledStdConv2d(
        4, 6, 3, stride=2, padding=1, groups=2, gamma=1.7, eps=1e-5, dtype=torch.float64
    )
    with torch.no_grad():
        theirs.gain.copy_(torch.randn_like(theirs.gain))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    plain = ours.fuse()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), ours(x), rtol=1e-12, atol=1e-12)


def test_weight_norm_of_a_filter_that_is_zero():
    """It gives 0 and the gradients of W' = g v there, and nothing changes for the other filters."""
    conv, x = WeightNormConv2d(**SHAPE, dtype=torch.float64), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    whole = conv.effective_weight().detach()
    with torch.no_grad():
        conv.gain.copy_(torch.rand_like(conv.gain) + 0.5)
        conv.weight[1] = 0
    weight = conv.effective_weight()
    assert not weight[1].any()
    others = [0, 2, 3, 4, 5]
    norms = whole.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(weight[others], (conv.gain * whole / norms)[others], rtol=1e-12, atol=1e-12)
    conv(x).square().sum().backward()
    assert conv.weight.grad.isfinite().all() and conv.gain.grad.isfinite().all()
    plain = (weight.detach()).requires_grad_()
    F.conv2d(x, plain, conv.bias, 2, 1, 1, 2).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad[1], (conv.gain * plain.grad)[1], rtol=1e-12, atol=1e-12)


def test_gamma_is_the_exact_integral():
    """ReLU: E a = 1 / sqrt(2 pi), E a^2 = 1/2. SiLU and GELU: values of another integration."""
    assert abs(nf_zoo.gamma('relu') - (0.5 - 0.5 / math.pi) ** -0.5) < 1e-12
    assert abs(nf_zoo.gamma('identity') - 1) < 1e-12
    for name, value in (('silu', 1.787187), ('gelu', 1.700926), ('gelu_tanh', 1.700917)):
        assert abs(nf_zoo.gamma(name) - value) < 1e-6
    for name, value in GAMMA.items():
        assert nf_zoo.gamma(name) == pytest.approx(value, rel=1e-3)


def test_gamma_keeps_unit_variance():
    """Of functions and modules with kinks, jumps and parameters; the module given is not changed."""
    prelu = nn.PReLU(init=0.1)
    x = torch.randn(1_000_000)
    for act in (F.mish, F.hardswish, torch.sign, prelu, nn.ReLU(inplace=True), lambda x: 3 * x.exp()):
        y = nf_zoo.gamma(act) * act(x.clone())
        assert y.var().item() == pytest.approx(1, rel=0.05)
    assert prelu.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ('act', 'message'),
    [
        ('rleu', "no activation 'rleu': .* mean 'relu'"),
        (lambda x: x.sum(), 'elementwise'),
        (torch.zeros_like, 'variance of this activation is 0'),
        (lambda x: x / 0, 'variance of this activation is nan'),
    ],
)
def test_gamma_of_what_has_none(act, message):
    with pytest.raises(UserError, match=message):
        nf_zoo.gamma(act)
