"""torch.compile: every network of depth 20 is one graph, for any batch, with the values and gradients of eager mode."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import nf_zoo
from nf_zoo.export.survey import randomize

NAMES = nf_zoo.list_models('*20_cifar')


@pytest.fixture(autouse=True)
def inductor() -> Iterator[None]:
    cpp_builder = pytest.importorskip('torch._inductor.cpp_builder')
    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:
        pytest.skip(f'Inductor finds no C++ compiler: {error}')
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def results(run: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Logits, and the gradients of the images and of every parameter."""
    x = x.clone().requires_grad_()
    torch._dynamo.mark_dynamic(x, 0)
    y = run(x)
    target = torch.linspace(-1, 1, y.numel()).view_as(y)
    return [y.detach(), *torch.autograd.grad((y - target).square().mean(), [x, *model.parameters()])]


def test_depth_20_is_of_every_method() -> None:
    assert len(NAMES) == 11


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings('default')  # of the compiler
@pytest.mark.parametrize('name', NAMES)
def test_compiled_it_is_one_graph_for_any_batch(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).double().train()  # in float32 a ReLU at 0 may switch
    with torch.no_grad():
        randomize(model)
    compiled = torch.compile(model, fullgraph=True)
    for batch in (4, 3, 7):
        x = torch.randn(batch, 3, 32, 32, dtype=torch.float64).to(memory_format=torch.channels_last)
        for found, wanted in zip(results(compiled, model, x), results(model, model, x), strict=True):
            scale = wanted.abs().max().clamp(min=1e-6)
            torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-9)
    assert counters['stats']['unique_graphs'] == 1


@pytest.mark.parametrize('name', ['fixup_resnet20_cifar', pytest.param('eunnet20_cifar', marks=pytest.mark.soak)])
def test_transforms_are_compiled(name: str) -> None:
    """Gradients of single images, and derivatives in forward mode: they take no checkpointing either."""
    model = timm.create_model(name, depths=(1, 1, 1), width=0.5).double().train()
    with torch.no_grad():
        randomize(model)
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    def both(parameters: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        single = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        return single, torch.func.jvp(model, (x,), (torch.cos(x),))[1]

    parameters = dict(model.named_parameters())
    torch.testing.assert_close(torch.compile(both, backend='aot_eager')(parameters, x), both(parameters, x))


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('name', ['eunnet20_cifar', 'fixup_resnet20_cifar', 'rescalenet20_cifar'])
def test_a_network_in_training_is_exported_as_a_program(name: str, strict: bool) -> None:
    """torch.export takes no checkpointing, which a convolution with a recomputed input has when it is compiled."""
    model = timm.create_model(name, depths=(1, 1, 1), width=0.5).train()
    with torch.no_grad():
        randomize(model)
    x = torch.randn(2, 3, 16, 16)
    program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), model(x))
