"""EUNConv against equation 8, and all that autograd can do with it, in float64."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, functional
from torch.nn import functional as F

from nf_zoo.errors import UserError
from nf_zoo.layers import input_norm
from nf_zoo.layers.input_norm import NORMS, InputNormConv2d, standardize

SHAPE = dict(in_channels=4, out_channels=6, kernel_size=3, stride=2, padding=1, groups=2)
NARROW = dict(in_channels=6, out_channels=4, kernel_size=1, stride=1, padding=0, groups=1)
EXACT = dict(rtol=1e-10, atol=1e-10)


def eunconv(**kwargs: Any) -> InputNormConv2d:
    return InputNormConv2d(**{**SHAPE, **kwargs}, dtype=torch.float64)


def by_equation(x: Tensor, norm: str, eps: float) -> Tensor:
    """Equation 8, in the three readings of mu and sigma, one image at a time."""
    if norm == 'tensor':
        return (x - x.mean()) / (((x - x.mean()) ** 2).mean() + eps).sqrt()
    if norm == 'l2':
        return x / x.square().sum(1, keepdim=True).sqrt()
    return torch.stack([(i - i.mean()) / (((i - i.mean()) ** 2).mean() + eps).sqrt() for i in x])


def definition(conv: InputNormConv2d, x: Tensor) -> Tensor:
    y = standardize(x, conv.norm, conv.eps)
    return F.conv2d(y, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@pytest.mark.parametrize('norm', NORMS)
def test_eunconv_is_equation_8(norm: str) -> None:
    conv = eunconv(norm=norm)
    x = 3 + 2 * torch.randn(3, 4, 7, 6, dtype=torch.float64)
    expected = F.conv2d(by_equation(x, norm, conv.eps), conv.weight, conv.bias, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x), expected, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, **EXACT)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('shape', [(2, 4, 7, 6), (1, 4, 9, 5), (3, 4, 16, 8), (1, 4, 1, 1), (0, 4, 6, 6)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last, None])
def test_a_graph_or_none_and_any_layout(shape: tuple[int, ...], layout: torch.memory_format | None, norm: str) -> None:
    """Values and gradients are autograd's own through `standardize`, whatever the layout of x and of the gradient."""
    if norm == 'tensor' and not shape[0]:
        return  # an empty batch has no moments
    conv, x = eunconv(norm=norm), torch.randn(shape, dtype=torch.float64)
    x = x.to(memory_format=layout) if layout else x.transpose(2, 3).contiguous().transpose(2, 3)
    y = conv(x.requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(conv(x), y.detach(), **EXACT)
    expected = definition(conv, x)
    torch.testing.assert_close(y, expected, **EXACT)
    for grad_layout in (torch.contiguous_format, torch.channels_last):
        grad = torch.randn_like(y).to(memory_format=grad_layout)
        found, wanted = (torch.autograd.grad(out, x, grad, retain_graph=True)[0] for out in (y, expected))
        torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize(
    'needed', [(True, True, True), (False, True, True), (True, False, False), (False, False, True)]
)
@pytest.mark.parametrize('norm', NORMS)
def test_only_the_gradients_that_are_asked_for(norm: str, needed: tuple[bool, ...]) -> None:
    conv, x = eunconv(norm=norm), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    inputs = x, conv.weight, conv.bias
    for tensor, need in zip(inputs, needed, strict=True):
        tensor.requires_grad_(need)
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found, expected = (torch.autograd.grad(y.cos().sum(), wanted) for y in (conv(x), definition(conv, x)))
    torch.testing.assert_close(found, expected, **EXACT)


# Stride, padding, groups and kernel, each with and without a bias. The first is narrow, because all entries of its
# Jacobians are computed.
GEOMETRIES = [
    dict(kernel_size=3, stride=1, padding=1, groups=1, in_channels=2, out_channels=3),
    dict(kernel_size=3, stride=2, padding=1, groups=2),
    dict(kernel_size=3, stride=1, padding=0, groups=4, out_channels=4),
    dict(kernel_size=3, stride=1, padding=2, dilation=2, groups=1),
    dict(kernel_size=1, stride=1, padding=0, groups=1, out_channels=2),
    dict(kernel_size=1, stride=2, padding=0, groups=1, out_channels=2),
]


@pytest.mark.parametrize('geometry', GEOMETRIES, ids=lambda g: '-'.join(f'{k[0]}{v}' for k, v in g.items()))
@pytest.mark.parametrize(('norm', 'bias'), list(itertools.product(NORMS, [True, False])))
def test_first_and_second_derivatives(norm: str, bias: bool, geometry: dict[str, int]) -> None:
    conv = eunconv(norm=norm, bias=bias, **geometry)
    x = torch.randn(2, conv.in_channels, 4, 3, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)
    inputs = (x, factor, *conv.parameters())

    def run(x: Tensor, factor: Tensor, *parameters: Tensor) -> Tensor:
        return conv(x, factor)

    # Random projections of the Jacobians of every geometry, all their entries for the first.
    fast = geometry is not GEOMETRIES[0]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=fast)


@pytest.mark.parametrize('shape', [SHAPE, NARROW])
@pytest.mark.parametrize('norm', NORMS)
def test_every_way_to_differentiate_gives_the_same(norm: str, shape: dict[str, int]) -> None:
    """Reverse and forward mode, one gradient or many at once, autograd and torch.func: those of the definition."""
    conv = eunconv(norm=norm, **shape)
    x, v = torch.randn(2, 2, conv.in_channels, 3, 4, dtype=torch.float64)
    x.requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return conv(x).cos().sum()

    def expected_loss(x: Tensor) -> Tensor:
        return definition(conv, x).cos().sum()

    jacobian = functional.jacobian(lambda x: definition(conv, x), x)
    hessian = functional.hessian(expected_loss, x)
    product = torch.einsum('nchwNCHW,NCHW->nchw', hessian, v)
    for vectorize, strategy in ((True, 'reverse-mode'), (True, 'forward-mode'), (False, 'reverse-mode')):
        found = functional.jacobian(conv, x, vectorize=vectorize, strategy=strategy)
        torch.testing.assert_close(found, jacobian, **EXACT)
        torch.testing.assert_close(
            functional.hessian(loss, x, vectorize=vectorize, outer_jacobian_strategy=strategy), hessian, **EXACT
        )
    for method in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(method(conv)(x), jacobian, **EXACT)
    torch.testing.assert_close(torch.func.hessian(loss)(x), hessian, **EXACT)
    torch.testing.assert_close(functional.hvp(loss, x, v)[1], product, **EXACT)
    torch.testing.assert_close(functional.vhp(loss, x, v)[1], product, **EXACT)
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(loss), (x.detach(),), (v,))[1], product, **EXACT)

    tangent = torch.einsum('nopqNCHW,NCHW->nopq', jacobian, v)
    for grad in (True, False):
        with forward_ad.dual_level(), torch.set_grad_enabled(grad):
            found = forward_ad.unpack_dual(conv(forward_ad.make_dual(x, v))).tangent
        torch.testing.assert_close(found, tangent, **EXACT)

    y = conv(x)
    many = torch.randn(3, *y.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    for one, grad in zip(found, many, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(y, x, grad, retain_graph=True)[0], **EXACT)


@pytest.mark.parametrize('norm', NORMS)
def test_a_penalty_on_the_gradient(norm: str) -> None:
    """Its gradients, of the weights too, are those of the definition."""
    conv, x = eunconv(norm=norm), torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def penalty(y: Tensor) -> tuple[Tensor, ...]:
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [x, conv.weight, conv.bias])

    torch.testing.assert_close(penalty(conv(x)), penalty(definition(conv, x)), **EXACT)


@pytest.mark.parametrize('norm', ['sample', 'l2'])
def test_vmap_over_images(norm: str) -> None:
    conv, x = eunconv(norm=norm), torch.randn(3, 4, 5, 5, dtype=torch.float64)
    found = torch.func.vmap(lambda image: conv(image[None])[0])(x)
    torch.testing.assert_close(found, conv(x), **EXACT)


def test_statistics_over_the_batch_refuse_single_images() -> None:
    """Their gradients would be those of batches of one image, whose sum is not the gradient of the batch."""
    conv, x = eunconv(norm='tensor'), torch.randn(3, 4, 5, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in conv.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(conv, parameters, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(lambda p, image: loss(p, image[None])), in_dims=(None, 0))
    for work in (lambda: torch.func.vmap(conv)(x[:, None]), lambda: each(parameters, x)):
        with pytest.raises(UserError, match="norm='tensor' takes its statistics over the whole batch"):
            work()
    several = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}  # an ensemble sees one batch
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(several, x)
    torch.testing.assert_close(found['weight'][0], torch.func.grad(loss)(parameters, x)['weight'], **EXACT)
    deep = torch.func.vmap(lambda p: loss(p, loss(p, x) * x))(several)
    torch.testing.assert_close(deep[0], loss(parameters, loss(parameters, x) * x), **EXACT)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', [{}, NARROW, NARROW | dict(bias=False)])
def test_one_image_alone_is_that_image_in_a_batch(shape: dict[str, Any], layout: torch.memory_format) -> None:
    conv = eunconv(**shape)
    images = torch.randn(4, conv.in_channels, 6, 5, dtype=torch.float64)
    images[1] = 3.0  # a blank one
    images[2] += 1e3  # its variance is a millionth of its mean square
    images[3] *= 1e-3
    expected = conv(images).detach()
    with torch.no_grad():
        for x, y in zip(images.split(1), expected.split(1), strict=True):
            given = x.clone(memory_format=torch.contiguous_format).to(memory_format=layout)
            torch.testing.assert_close(conv(given), y, rtol=1e-8, atol=1e-8)
            assert torch.equal(given, x)


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('shape', [{}, NARROW])
@pytest.mark.parametrize('norm', NORMS)
def test_eunconv_keeps_its_input_alone(norm: str, shape: dict[str, int], compiled: bool) -> None:
    """Backward needs x and the weight; the normalised copy of x is not kept."""
    conv = eunconv(norm=norm, **shape)
    run = torch.compile(conv, backend='aot_eager_decomp_partition', fullgraph=True) if compiled else conv
    x = torch.randn(8, conv.in_channels, 32, 32, dtype=torch.float64, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    assert x.data_ptr() in kept
    assert sum(kept.values()) == x.numel() + conv.weight.numel()


@pytest.mark.parametrize('norm', NORMS)
def test_the_factor_is_a_factor(norm: str) -> None:
    x, s = torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.tensor([-0.7], dtype=torch.float64, requires_grad=True)
    for conv in (eunconv(norm=norm), eunconv(norm=norm, bias=False)):
        inputs = (x.requires_grad_(), s, *conv.parameters())
        found, expected = ((y, *torch.autograd.grad(y.cos().sum(), inputs)) for y in (conv(x, s), s * conv(x)))
        torch.testing.assert_close(found, expected, **EXACT)


def test_invariances() -> None:
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


def test_autocast_gives_gradients_in_the_parameters_dtype() -> None:
    conv = InputNormConv2d(**SHAPE)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert {t.grad.dtype for t in (x, conv.weight, conv.bias)} == {torch.float32}


@pytest.mark.parametrize('factor', [None, -0.7])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_the_way_of_a_gpu_computes_the_same(layout: torch.memory_format, factor: float | None) -> None:
    """Values, gradients and second derivatives of the batch normalization of rows, in which images are channels."""
    x = (3 + 2 * torch.randn(3, 4, 5, 6, dtype=torch.float64)).to(memory_format=layout).requires_grad_()
    s = None if factor is None else torch.tensor([factor], dtype=torch.float64, requires_grad=True)
    inputs = [x] if s is None else [x, s]

    def derivatives(y: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(y.cos().sum(), inputs, create_graph=True)
        return y, *grads, *torch.autograd.grad(sum(grad.sin().sum() for grad in grads), inputs)

    found = derivatives(input_norm._as_channels(x, 1e-5, s))
    expected = by_equation(x, 'sample', 1e-5)
    torch.testing.assert_close(found, derivatives(expected if s is None else s * expected), **EXACT)
    assert found[0].is_contiguous(memory_format=layout)


def test_the_way_of_a_gpu_serves_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_norm, 'standardize_images', input_norm._as_channels)
    conv = eunconv(norm='sample')
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(by_equation(x, 'sample', conv.eps), conv.weight, conv.bias, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x), expected, **EXACT)
    assert torch.autograd.gradcheck(conv, (x,)) and torch.autograd.gradgradcheck(conv, (x,))
