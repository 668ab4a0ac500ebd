"""What runs on a GPU alone: EUNConv's way there, the engine's prefetcher, averages and mixed precision, compilers."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from families import small
from picture_folders import CONFIG, images  # noqa: F401
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from train_toys import outcome, run_toy, stop_at, toy_recipe, toys  # noqa: F401

import nf_zoo
from nf_zoo.layers.input_norm import NORMS, InputNormConv2d
from nf_zoo.train import Recipe
from nf_zoo.train.data.folder import FolderData, open_folders
from nf_zoo.train.processes import Processes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU that PyTorch can use'),
    pytest.mark.filterwarnings('default'),  # compilers and drivers have much to say
]
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
per_layout = pytest.mark.parametrize('layout', LAYOUTS)
per_norm = pytest.mark.parametrize('norm', NORMS)
SHAPES = {
    '3x3': dict(in_channels=8, out_channels=16, kernel_size=3, padding=1),
    'strided': dict(in_channels=8, out_channels=8, kernel_size=3, padding=1, stride=2),
    'narrow': dict(in_channels=16, out_channels=4, kernel_size=1),
    'wide': dict(in_channels=8, out_channels=32, kernel_size=1),
}


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """float32 in all its digits, and the same kernels in every run."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False
    yield
    cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, by their norms."""
    difference = found.detach().double().cpu() - expected.detach()
    return (difference.norm() / expected.detach().norm().clamp(min=1e-30)).item()


def everything(conv: nn.Module, x: Tensor, context: Any = None) -> list[Tensor]:
    """Output, output without gradients, and the gradients of input, factor and parameters."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    factor = torch.tensor(0.7, dtype=next(conv.parameters()).dtype, device=x.device, requires_grad=True)
    if context is None:
        y = conv(leaf, factor)
        with torch.no_grad():
            z = conv(leaf, factor)
    else:
        with context():
            y = conv(leaf, factor)
            with torch.no_grad():
                z = conv(leaf, factor)
    ramp = torch.linspace(-1, 1, y.numel(), device=x.device, dtype=torch.float64).view_as(y).to(y.dtype)
    return [y, z, *torch.autograd.grad(y, [leaf, factor, *conv.parameters()], ramp)]


@per_norm
@per_layout
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float64, 1e-9), (torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
    ids=str,
)
def test_eunconv_is_that_of_the_cpu(norm: str, layout: str, shape: str, dtype: torch.dtype, tolerance: float) -> None:
    conv = InputNormConv2d(**SHAPES[shape], norm=norm).double()  # type: ignore[arg-type]
    x = (torch.randn(3, conv.in_channels, 14, 12, dtype=torch.float64) + 0.5).to(memory_format=LAYOUTS[layout])
    conv, x = conv.to(dtype).double(), x.to(dtype).double()  # what 16 bits can hold
    expected = everything(conv, x)
    found = everything(copy.deepcopy(conv).to('cuda', dtype), x.to('cuda', dtype))
    assert all(f.dtype == dtype for f in found)
    # The gradient of the factor is a sum over all of the output, in which much cancels.
    errors = [error(f, e) for i, (f, e) in enumerate(zip(found, expected, strict=True)) if i != 3 or dtype.itemsize > 2]
    assert max(errors) < tolerance, errors


@per_norm
@per_layout
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
def test_eunconv_under_autocast(norm: str, layout: str, dtype: torch.dtype, tolerance: float) -> None:
    conv = InputNormConv2d(**SHAPES['3x3'], norm=norm).double()  # type: ignore[arg-type]
    x = (torch.randn(3, 8, 14, 12, dtype=torch.float64) + 0.5).to(memory_format=LAYOUTS[layout])
    expected = everything(conv, x)

    def context() -> torch.autocast:
        return torch.autocast('cuda', dtype)

    found = everything(copy.deepcopy(conv).to('cuda', torch.float32), x.to('cuda', torch.float32), context)
    assert found[0].dtype == found[1].dtype == dtype
    assert all(f.dtype == torch.float32 for f in found[2:])
    errors = [error(f, e) for i, (f, e) in enumerate(zip(found, expected, strict=True)) if i != 3]
    assert max(errors) < tolerance, errors


@per_layout
def test_an_image_does_not_see_its_neighbours(layout: str) -> None:
    model = small('eunnet20_cifar').double().cuda().to(memory_format=LAYOUTS[layout])
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, device='cuda').to(memory_format=LAYOUTS[layout])
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(x[i : i + 1]) for i in range(3)]), rtol=1e-9, atol=1e-9)


def test_float16_with_a_gradient_scaler_learns() -> None:
    torch.manual_seed(0)
    model = timm.create_model('eunnet20_cifar', depths=(1, 1, 1)).cuda().to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler('cuda')
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9)
    x, y = torch.randn(32, 3, 32, 32, device='cuda'), torch.arange(32, device='cuda') % 10
    losses = []
    for _ in range(30):
        with torch.autocast('cuda', torch.float16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@pytest.mark.parametrize('name', ['eunnet20_cifar', 'nf_resnet20_cifar', 'fixup_resnet20_cifar', 'wn_resnet20_cifar'])
def test_folded_it_is_the_same_function(name: str) -> None:
    model = small(name).double().cuda().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, device='cuda')
    with torch.no_grad():
        torch.testing.assert_close(nf_zoo.fold(model)(x), model(x), rtol=1e-9, atol=1e-9)


# ---- the engine

EVERYTHING: dict[str, Any] = {
    'device': 'cuda',
    'amp': True,
    'model_ema': True,
    'model_ema_decay': 0.8,
    'mixup': 0.5,
    'clip_grad': 0.5,
    'grad_accum_steps': 2,
    'batch_size': 4,
}


@pytest.mark.parametrize('options', [{'device': 'cuda'}, EVERYTHING], ids=['plain', 'everything'])
def test_a_run_that_is_stopped_and_continued_is_the_whole_one(tmp_path: Path, toys: None, options: Any) -> None:  # noqa: F811
    result = run_toy(tmp_path / 'whole', **options)
    assert result['hardware'] == torch.cuda.get_device_name()
    stop_at(toy_recipe(tmp_path / 'pieces', **options), 'epoch 1/2: update 2/')
    run_toy(tmp_path / 'pieces', resume=True, **options)
    assert outcome(tmp_path / 'pieces') == outcome(tmp_path / 'whole')


def test_a_run_that_starts_on_the_gpu_goes_on_on_the_cpu(tmp_path: Path, toys: None) -> None:  # noqa: F811
    stop_at(toy_recipe(tmp_path, device='cuda'), 'epoch 1/2: update 2/')
    assert run_toy(tmp_path, device='cpu', resume=True)['epochs'] == 2


@pytest.mark.parametrize('workers', [0, 2])
def test_the_prefetcher_brings_what_the_cpu_computes(images: Path, workers: int) -> None:  # noqa: F811
    recipe = Recipe().with_options({'dataset': 'folder', 'batch_size': 3, 'workers': workers, 'color_jitter': 0.0})
    sets = open_folders(str(images), 'train', 'validation')
    gpu, cpu = (FolderData(*sets, recipe, CONFIG, torch.device(kind)) for kind in ('cuda', 'cpu'))
    for found, wanted in ((gpu.train_batches(1, 0), cpu.train_batches(1, 0)), (gpu.val_batches(), cpu.val_batches())):
        for (x, y), (v, w) in zip(found, wanted, strict=True):
            assert x.is_cuda and y.is_cuda and torch.equal(y.cpu(), w)
            torch.testing.assert_close(x.cpu(), v, rtol=1e-4, atol=1e-4)


def test_one_process_of_nccl_averages_to_the_gradients_themselves() -> None:
    distributed.init_process_group('cpu:gloo,cuda:nccl', rank=0, world_size=1, store=distributed.HashStore())
    try:
        model = small('eunnet20_cifar').cuda().to(memory_format=torch.channels_last)
        x = torch.randn(4, 3, 32, 32, device='cuda')
        alone = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        processes = Processes('cuda')
        processes.size = 2  # else a model is not wrapped
        processes.averaged(model, torch.device('cuda', 0))(x).square().sum().backward()
        for parameter, gradient in zip(model.parameters(), alone, strict=True):
            assert error(parameter.grad, gradient.double().cpu()) < 1e-5
        assert processes.sum(1.5, 2.0) == [1.5, 2.0]
    finally:
        distributed.destroy_process_group()


# ---- compilers


def test_compiled_it_is_the_same_function_forward_and_backward() -> None:
    model = small('eunnet20_cifar', depths=(1, 1, 1)).cuda().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32, device='cuda').to(memory_format=torch.channels_last)

    def gradients(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        y = forward(x)
        return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]

    expected = gradients(model)
    for found, wanted in zip(gradients(torch.compile(model)), expected, strict=True):
        assert error(found, wanted.double().cpu()) < 1e-3


LOAD_AND_RUN = """
import sys
from safetensors.torch import load_file, save_file
from torch._inductor import aoti_load_package
package, given, found = sys.argv[1:]
save_file({'y': aoti_load_package(package)(load_file(given, device='cuda')['x'])}, found)
"""


def test_aotinductor(tmp_path: Path) -> None:
    """The package is loaded by a process of its own, as its users do; a crash there doesn't end the other tests."""
    from torch._inductor import aoti_compile_and_package

    from nf_zoo.export.norms import in_means

    model = small('eunnet20_cifar', depths=(1, 1, 1)).cuda().eval()
    x = torch.randn(4, 3, 32, 32, device='cuda')
    package, given, found = (str(tmp_path / name) for name in ('model.pt2', 'x.safetensors', 'y.safetensors'))
    save_file({'x': x}, given)
    with torch.no_grad():
        program = torch.export.export(in_means(nf_zoo.fold(model)), (x,))
        aoti_compile_and_package(program, package_path=package)
        command = [sys.executable, '-c', LOAD_AND_RUN, package, given, found]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, f'exit code {run.returncode}: {run.stderr[-2000:]}'
        assert error(load_file(found)['y'], model(x).double().cpu()) < 1e-3
