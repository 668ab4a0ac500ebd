"""What every network without batch normalization can do, and those with it can't."""

import pytest
import torch
from families import images, one_per_method, tiny
from torch import Tensor
from torch.nn import functional as F

NAMES = one_per_method()


@pytest.mark.parametrize('name', NAMES)
def test_training_mode_computes_what_evaluation_computes(name: str) -> None:
    """There are no running statistics: without dropout the mode changes neither the logits nor a buffer."""
    model, x = tiny(name), images(name, side=16, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = model.train()(x)
    assert torch.equal(logits, model.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', NAMES)
def test_one_image_at_a_time_learns_what_their_batch_does(name: str) -> None:
    """Online learning: the gradients of single images add up to those of the batch."""
    model, x = tiny(name).train(), images(name, n=3, side=16, dtype=torch.float64)
    y = torch.tensor([1, 5, 9])
    F.cross_entropy(model(x), y, reduction='sum').backward()
    batch = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for i in range(len(x)):
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
    largest = max(grad.abs().max().item() for grad in batch)
    for p, grad in zip(model.parameters(), batch, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize('part', ['input', 'weights', 'scalars and biases'])
@pytest.mark.parametrize('name', NAMES)
def test_second_derivatives(name: str, part: str) -> None:
    """Along a step of the input or of parameters, the gradients change by the Hessian times the step, at 8 pixels.

    Away from ReLU's kinks the networks are smooth.
    """
    model, x = tiny(name).eval(), images(name, n=1, side=8, dtype=torch.float64)
    names = [key for key, _ in model.named_parameters()]
    at = [x, *(p.detach() for p in model.parameters())]
    parts = ['input', *('weights' if p.squeeze().ndim > 1 else 'scalars and biases' for p in model.parameters())]
    step = [torch.randn_like(v) * (kind == part) for kind, v in zip(parts, at, strict=True)]
    length = torch.cat([v.flatten() for v in step]).norm()
    step = [v / length for v in step]

    def gradients(factor: float) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        moved = [(v + factor * s).requires_grad_() for v, s in zip(at, step, strict=True)]
        x, *parameters = moved
        y = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))
        return moved, torch.autograd.grad(y.square().sum(), moved, create_graph=True)

    moved, found = gradients(0.0)
    products = torch.autograd.grad(found, moved, step, materialize_grads=True)
    (_, after), (_, before) = gradients(1e-6), gradients(-1e-6)
    for product, high, low in zip(products, after, before, strict=True):
        expected = (high - low).detach() / 2e-6
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-6 * expected.abs().max().item() + 1e-9)
    assert all(product.any() for product in products)


@pytest.mark.soak  # the test above finds more, in a tenth of the time
@pytest.mark.parametrize('name', NAMES)
def test_gradgradcheck(name: str) -> None:
    model, x = tiny(name).eval(), images(name, n=1, side=8, dtype=torch.float64).requires_grad_()
    names = [key for key, _ in model.named_parameters()]
    parameters = [p.detach().requires_grad_() for p in model.parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize('name', NAMES)
def test_a_hessian_vector_product_is_the_derivative_of_the_gradient(name: str) -> None:
    """Autograd's double backward against torch.func's forward mode over reverse mode."""
    model, x = tiny(name).eval(), images(name, n=2, side=8, dtype=torch.float64)
    v = torch.randn_like(x)

    def loss(x: Tensor) -> Tensor:
        return model(x).square().sum()

    found = torch.autograd.functional.hvp(loss, x, v)[1]
    expected = torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())
    assert found.any()
