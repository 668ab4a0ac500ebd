"""Networks in which an image's output, and so its gradient, depends on that image alone."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import timm
import torch
from families import SHALLOW, one_per_method, representatives, small, tiny
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import nf_zoo
from nf_zoo.layers.input_norm import Standardize


def is_control(name: str) -> bool:
    return name.startswith('bn_')


def per_sample(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradients of each image's loss by torch.func, (N, ...)."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)


def by_opacus(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradients of each image's loss by Opacus in its default mode, hooks, (N, ...)."""
    opacus = pytest.importorskip('opacus', reason="Opacus isn't installed: pip install 'nf-zoo[private]'")
    wrapped = opacus.GradSampleModule(deepcopy(model), loss_reduction='sum')
    # An input that needs no gradient makes torch warn of Opacus' hooks.
    F.cross_entropy(wrapped(x.clone().requires_grad_()), y, reduction='sum').backward()
    return {name.removeprefix('_module.'): p.grad_sample for name, p in wrapped.named_parameters()}


def check_per_sample(model: nn.Module, gradients: Callable[..., dict[str, Tensor]]) -> None:
    """They are those of one image at a time, to 1e-12 of the largest."""
    assert nf_zoo.is_batch_independent(model)
    x, y = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 5])
    found = gradients(model, x, y)
    names = [key for key, _ in model.named_parameters()]
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        expected = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
        largest = max(grad.abs().max().item() for grad in expected.values())
        assert largest > 0
        for key, grad in expected.items():
            torch.testing.assert_close(found[key][i], grad, rtol=0, atol=1e-12 * largest)


@pytest.mark.parametrize('gradients', [per_sample, by_opacus])
@pytest.mark.parametrize('name', one_per_method())
def test_gradients_of_each_image(name: str, gradients: Callable[..., dict[str, Tensor]]) -> None:
    check_per_sample(tiny(name).train(), gradients)


@pytest.mark.soak
@pytest.mark.parametrize('gradients', [per_sample, by_opacus])
@pytest.mark.parametrize('name', [name for name in nf_zoo.list_models() if not is_control(name)])
def test_gradients_of_each_image_for_every_name(name: str, gradients: Callable[..., dict[str, Tensor]]) -> None:
    stages = len(timm.create_model(name, device='meta').stages)
    check_per_sample(small(name, depths=(1,) * stages).double().train(), gradients)


def test_which_networks_mix_images() -> None:
    for name in representatives():
        model = timm.create_model(name, device='meta')
        assert bool(list(model.buffers())) == is_control(name), 'federated averaging: the parameters are the model'
        assert nf_zoo.is_batch_independent(model) == (not is_control(name)), name
    for norm, independent in (('sample', True), ('l2', True), ('tensor', False)):
        model = timm.create_model('eunnet20_cifar', depths=SHALLOW[3], norm=norm).eval()
        assert nf_zoo.is_batch_independent(model) == nf_zoo.is_batch_independent(nf_zoo.fold(model)) == independent
        assert nf_zoo.is_batch_independent(Standardize(norm, 1e-5)) == independent
    assert not nf_zoo.is_batch_independent(nn.Sequential(nn.BatchNorm2d(3)).eval())
    assert nf_zoo.is_batch_independent(nn.Sequential(FrozenBatchNorm2d(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3)))


@pytest.mark.parametrize('name', ['bn_resnet20_cifar', 'eunnet20_cifar'])
def test_the_images_that_a_mixing_network_needs(name: str) -> None:
    """What `is_batch_independent` says of them is so: the neighbours change an image's output."""
    kwargs = {} if is_control(name) else {'norm': 'tensor'}
    model = small(name, depths=(1, 1, 1), **kwargs).double().train()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64) * torch.tensor([0.3, 1.0, 3.0]).view(3, 1, 1, 1)
    assert not nf_zoo.is_batch_independent(model)
    assert (model(x)[:1] - model(x[:1])).abs().max() > 1e-2
