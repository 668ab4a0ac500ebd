"""Convolutions against their equations, in float64."""

import itertools

import pytest
import timm.layers
import torch
from torch import nn
from torch.nn import functional as F

from nf_zoo.layers import input_norm
from nf_zoo.layers.input_norm import NORMS, InputNormConv2d, standardize
from nf_zoo.layers.std_conv import ScaledStdConv2d, WeightNormConv2d

SHAPE = dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, groups=2)


def eunconv(**kwargs) -> InputNormConv2d:
    return InputNormConv2d(**{**SHAPE, **kwargs}, dtype=torch.float64)


def by_equation(x: torch.Tensor, norm: str, eps: float) -> torch.Tensor:
    """Equation 8, in the three readings of mu and sigma, one image at a time."""
    if norm == 'tensor':
        return (x - x.mean()) / (((x - x.mean()) ** 2).mean() + eps).sqrt()
    if norm == 'l2':
        return x / x.square().sum(1, keepdim=True).sqrt()
    return torch.stack([(i - i.mean()) / (((i - i.mean()) ** 2).mean() + eps).sqrt() for i in x])


@pytest.mark.parametrize('norm', NORMS)
def test_eunconv_is_equation_8(norm):
    conv = eunconv(norm=norm)
    x = 3 + 2 * torch.randn(3, 4, 7, 6, dtype=torch.float64)
    expected = F.conv2d(by_equation(x, norm, conv.eps), conv.weight, conv.bias, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # the path without a graph
        torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('shape', [(2, 4, 7, 6), (1, 4, 9, 5), (3, 4, 16, 8), (1, 4, 1, 1), (0, 4, 6, 6)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last, None])
def test_a_graph_or_none_and_any_layout(shape, layout, norm):
    """Values and gradients are autograd's own through `standardize`, whatever the layout of x and of the gradient."""
    conv, x = eunconv(norm=norm), torch.randn(shape, dtype=torch.float64)
    x = x.to(memory_format=layout) if layout else x.transpose(2, 3).contiguous().transpose(2, 3)
    y = conv(x.requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(conv(x), y.detach(), rtol=1e-12, atol=1e-12)
    if not len(x):
        return
    expected = F.conv2d(standardize(x, norm, conv.eps), conv.weight, conv.bias, 2, 1, 1, 2)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for grad_layout in (torch.contiguous_format, torch.channels_last):
        grad = torch.randn_like(y).to(memory_format=grad_layout)
        found, wanted = (torch.autograd.grad(out, x, grad, retain_graph=True)[0] for out in (y, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_the_way_of_other_devices_is_the_same(norm, layout, monkeypatch):
    conv, x = eunconv(norm=norm), torch.randn(3, 4, 7, 6, dtype=torch.float64).to(memory_format=layout)
    x.requires_grad_()

    def everything() -> list[torch.Tensor]:
        y = conv(x)
        with torch.no_grad():
            return [y, conv(x), *torch.autograd.grad(y, [x, *conv.parameters()], torch.cos(y))]

    expected = everything()
    monkeypatch.setattr(input_norm, '_is_cpu', lambda x: False)
    for one, other in zip(everything(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(('norm', 'bias'), list(itertools.product(NORMS, [True, False])))
def test_eunconv_gradients(norm, bias):
    conv = eunconv(norm=norm, bias=bias)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)
    parameters = [p for p in (conv.weight, conv.bias) if p is not None]

    def run(x, factor, *_):
        return conv(x, factor)

    assert torch.autograd.gradcheck(run, (x, factor, *parameters))


NARROW = dict(in_channels=6, out_channels=4, kernel_size=1, padding=0, groups=1)


@pytest.mark.parametrize(('stride', 'bias'), list(itertools.product([1, 2], [True, False])))
def test_large_features_are_normalised_behind_a_narrowing_convolution(stride, bias, monkeypatch):
    """The same values and gradients, whichever way round."""
    conv = eunconv(**NARROW | dict(stride=stride, bias=bias))
    x = 1 + 2 * torch.randn(3, 6, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    x[1] = 3.0  # a blank image
    calls = []

    def everything() -> list[torch.Tensor]:
        leaf, factor = x.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        inputs = [leaf, factor, *conv.parameters()]
        y = conv(leaf, factor)
        with torch.no_grad():
            return [y, conv(x, factor), *torch.autograd.grad(y, inputs, torch.cos(y))]

    expected = everything()
    original = input_norm._conv_then_norm
    monkeypatch.setattr(input_norm, 'LARGE', 1)
    monkeypatch.setattr(input_norm, '_conv_then_norm', lambda *args: (calls.append(1), original(*args))[1])
    for one, other in zip(everything(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert len(calls) == 2
    with torch.autocast('cpu', torch.bfloat16):
        conv.float()(x.float())
    assert len(calls) == 2
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv.double(), (x,))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', [{}, NARROW, NARROW | dict(bias=False)])
def test_one_image_alone_is_that_image_in_a_batch(shape, layout):
    conv = eunconv(**shape)
    images = torch.randn(4, conv.in_channels, 6, 5, dtype=torch.float64)
    images[1] = 3.0  # a blank one
    images[2] += 1e4  # one of which rounding would leave little
    images[3] *= 1e-3
    expected = F.conv2d(
        F.group_norm(images, 1, eps=conv.eps), conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups
    )
    with torch.no_grad():
        for x, y in zip(images.split(1), expected.split(1), strict=True):
            given = x.clone(memory_format=torch.contiguous_format).to(memory_format=layout)
            torch.testing.assert_close(conv(given), y, rtol=1e-8, atol=1e-8)
            assert torch.equal(given, x)


@pytest.mark.parametrize('shape', [{}, NARROW])
@pytest.mark.parametrize('norm', NORMS)
def test_eunconv_keeps_its_input_alone(norm, shape, monkeypatch):
    """For backward: x, weight, and at most two numbers an image; not the normalised copy of x."""
    monkeypatch.setattr(input_norm, 'LARGE', 1)
    conv = eunconv(norm=norm, **shape)
    x = torch.randn(8, conv.in_channels, 32, 32, dtype=torch.float64, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        conv(x)
    assert x.data_ptr() in kept
    assert sum(kept.values()) <= x.numel() + conv.weight.numel() + 2 * len(x)


def test_the_factor_is_a_factor():
    conv, x, s = eunconv(), torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.tensor(-0.7, dtype=torch.float64)
    torch.testing.assert_close(conv(x, s), s * conv(x), rtol=1e-12, atol=1e-12)


def test_invariances():
    """A sample's brightness and contrast vanish; 'l2' loses each pixel's length; 'tensor' sees the whole batch."""
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    scale, shift = torch.tensor([0.2, 1.0, 5.0]).view(3, 1, 1, 1), torch.tensor([-1.0, 0.0, 4.0]).view(3, 1, 1, 1)
    exact = dict(rtol=1e-9, atol=1e-9)
    sample = standardize(x, 'sample', 0.0)
    torch.testing.assert_close(standardize(scale * x + shift, 'sample', 0.0), sample, **exact)
    pixel = 0.1 + torch.rand(3, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(standardize(pixel * x, 'l2', 0.0), standardize(x, 'l2', 0.0), **exact)
    tensor = standardize(x, 'tensor', 0.0)
    assert abs(tensor.mean()) < 1e-12 and abs(tensor.var(unbiased=False) - 1) < 1e-12
    assert (standardize(x[:1], 'tensor', 0.0) - tensor[:1]).abs().max() > 1e-3
    torch.testing.assert_close(standardize(x[:1], 'sample', 0.0), sample[:1], **exact)


def test_autocast_gives_gradients_in_the_parameters_dtype():
    conv = InputNormConv2d(**SHAPE)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert {t.grad.dtype for t in (x, conv.weight, conv.bias)} == {torch.float32}


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
