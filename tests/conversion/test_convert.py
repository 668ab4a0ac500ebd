"""convert: the same function without batch normalization, for whatever network."""

import copy
import io

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, SplitBatchNorm2d, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.ops import FrozenBatchNorm2d

import nf_zoo
from nf_zoo import convert
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.layers.std_conv import WeightNormConv2d
from nf_zoo.layers.weight_norm import Affine, WeightNorm
from tools.conversion import randomize

IMAGE = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))


def norms(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) or hasattr(m, 'running_var')]


def check(model: nn.Module, example: Tensor, weight_norm: int, affine: int) -> nn.Module:
    """Convert ``model``; the result has these layers, no statistics and the outputs of ``model``."""
    model = randomize(model)
    converted = convert(model, example=example)
    assert (converted.conversion.weight_norm, converted.conversion.affine) == (weight_norm, affine)
    assert norms(converted) == []
    double = copy.deepcopy(model).double().eval()
    torch.testing.assert_close(
        copy.deepcopy(converted).double().eval()(example.double()), double(example.double()), rtol=0, atol=1e-5
    )
    assert converted.conversion.exact < 1e-13
    return converted


LAYERS = {
    'conv': (nn.Conv2d(4, 6, 3, padding=1), 2),
    'grouped': (nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False), 2),
    'same': (nn.Conv2d(4, 6, 3, padding='same', dilation=2), 2),
    'circular': (nn.Conv2d(4, 6, 3, padding=1, padding_mode='circular'), 2),
    'SAME': (Conv2dSame(4, 6, 3, stride=2, bias=False), 2),
    'transposed': (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), 2),
    'conv1d': (nn.Conv1d(4, 6, 3), 1),
    'transposed1d': (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), 1),
    'conv3d': (nn.Conv3d(4, 6, 3), 3),
    'transposed3d': (nn.ConvTranspose3d(4, 6, 3), 3),
    'linear': (nn.Linear(4, 6), 0),
}


@pytest.mark.parametrize('kind', LAYERS)
def test_every_kind_of_layer(kind: str) -> None:
    layer, dims = LAYERS[kind]
    norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](6)
    model = nn.Sequential(copy.deepcopy(layer), norm, nn.ReLU())
    example = torch.randn(2, 4, *[5] * dims)
    converted = check(model, example, 1, 0)
    assert isinstance(converted[0], WeightNorm | WeightNormConv2d)
    torch.testing.assert_close(converted[0].weight, model[0].weight, rtol=0, atol=0)  # v is the original filter
    assert converted[0].gain.numel() == 6

    folded = nf_zoo.fold(converted)
    assert type(folded[0]) is type(layer)
    torch.testing.assert_close(folded(example), model.eval()(example), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(converted)(example), converted(example))
    converted(example).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())


NORMS = {
    'act': lambda: BatchNormAct2d(6, act_layer=nn.SiLU, drop_layer=nn.Dropout),
    'no act': lambda: BatchNormAct2d(6, apply_act=False),
    'sync': lambda: nn.SyncBatchNorm(6),
    'split': lambda: SplitBatchNorm2d(6),
    'not affine': lambda: nn.BatchNorm2d(6, affine=False),
    'frozen': lambda: FrozenBatchNorm2d(6),
    'frozen act': lambda: freeze_batch_norm_2d(randomize(BatchNormAct2d(6, act_layer=nn.SiLU))),
}


@pytest.mark.parametrize('kind', NORMS)
@pytest.mark.parametrize('before', [nn.Conv2d(4, 6, 3), nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU())])
def test_every_kind_of_norm(kind: str, before: nn.Module) -> None:
    norm = NORMS[kind]()
    if kind == 'frozen act':
        assert isinstance(norm, FrozenBatchNormAct2d)
    model = nn.Sequential(copy.deepcopy(before), norm)
    absorbed = isinstance(before, nn.Conv2d)
    converted = check(model, IMAGE, int(absorbed), int(not absorbed))
    assert any(isinstance(m, nn.SiLU) for m in converted.modules()) == kind.endswith('act') - (kind == 'no act')
    assert all(p.requires_grad for p in converted.parameters())


class Net(nn.Module):
    """A convolution and a norm, with something between or beside them."""

    def __init__(self, way: str):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.way = way

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x)
        if self.way == 'also returned':
            return self.norm(y), y
        if self.way == 'read':
            return self.norm(y) + y.abs()
        if self.way == 'changed in place':
            y += 1
        if self.way == 'items set':
            y[:, 0] = 1
        if self.way == 'dropout':
            y = self.drop(y)
        if self.way == 'two norms':
            return self.norm(y) + self.other(y)
        if self.way == 'twice with one norm':
            return self.norm(self.conv(self.norm(y)))
        if self.way == 'twice with two norms':
            return self.other(self.conv(self.norm(y)))
        if self.way == 'norm twice':
            return self.norm(self.norm(y))
        if self.way == 'shape read':
            assert y.shape[1] == 4 and y.size(0) and y.dim() == 4
        if self.way == 'flattened':
            return self.norm(y.flatten(2)[..., None])
        return self.norm(y)


WAYS = {
    'also returned': (0, 2),
    'read': (0, 2),
    'changed in place': (0, 2),
    'items set': (0, 2),
    'dropout': (0, 2),
    'two norms': (0, 2),
    'twice with two norms': (0, 2),
    'twice with one norm': (1, 1),
    'norm twice': (0, 2),
    'flattened': (0, 2),
    'shape read': (1, 1),
}


@pytest.mark.parametrize('way', WAYS)
def test_a_norm_is_absorbed_if_it_alone_takes_the_output(way: str) -> None:
    model = randomize(Net(way)).eval()
    converted = convert(model, example=IMAGE)
    assert converted.conversion[:2] == WAYS[way]
    assert isinstance(converted.conv, WeightNormConv2d) == bool(WAYS[way][0])
    assert isinstance(converted.other, Affine) or way == 'twice with two norms'


def test_flattened_and_transposed_outputs_of_a_linear_layer_are_followed() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
            self.norm1, self.norm2 = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y = self.norm1(y.flatten(0, 1)).reshape_as(y)
            return self.norm2(self.second(y).transpose(1, 2))

    check(Tokens(), torch.randn(2, 6, 4), 2, 0)


def test_channels_elsewhere_are_not_the_norms() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))  # (N, 6, 4): the norm's channels are the tokens
    check(model, torch.randn(2, 6, 4), 0, 1)


def test_branches_that_do_not_run() -> None:
    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)).relu_()

    class WithAuxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = Unit()
            self.aux = nn.Sequential(Unit(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.BatchNorm2d(5))

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            y = self.main(x)
            return (y, self.aux(y)) if self.training else y

    model = randomize(WithAuxiliary()).eval()
    converted = convert(model, example=IMAGE)
    assert converted.conversion[:2] == (3, 1)
    torch.testing.assert_close(converted.aux(IMAGE), model.aux(IMAGE), rtol=1e-4, atol=1e-5)


def test_filters_of_zeros_and_gammas_of_zero() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[1].weight[1] = 0
    converted = convert(model, example=IMAGE)
    converted(IMAGE).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())
    torch.testing.assert_close(converted(IMAGE), model.eval()(IMAGE))
    torch.testing.assert_close(nf_zoo.fold(converted)(IMAGE), model(IMAGE))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_modes_and_frozen_parameters_are_kept(dtype: torch.dtype) -> None:
    model = randomize(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))).to(dtype)
    model[0].requires_grad_(False)
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    converted = convert(model, example=IMAGE)
    assert {p.dtype for p in converted.parameters()} == {dtype}
    assert [m.training for m in converted] == [True, False, True, True] and converted.training
    assert not any(p.requires_grad for p in converted[0].parameters())
    assert all(p.requires_grad for p in converted[3].parameters())
    assert converted[0].weight.equal(model[0].weight) and converted[0].weight is not model[0].weight
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert converted.conversion.rounded < 100 * torch.finfo(dtype).eps


def test_the_result_saves_copies_exports_and_trains_on_one_image() -> None:
    model = randomize(torchvision.models.resnet18(num_classes=5)).eval()
    example = torch.randn(1, 3, 32, 32)
    converted = convert(model, example=example)
    expected = model(example)

    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    for again in (copy.deepcopy(converted), torch.load(file, weights_only=False), torch.jit.script(converted)):
        torch.testing.assert_close(again(example), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.export.export(converted, (example,)).module()(example), expected, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(nf_zoo.fold(converted)(example), expected, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in converted.parameters()) == sum(p.numel() for p in model.parameters())

    converted.train()
    together = converted(torch.cat([example, torch.randn(1, 3, 32, 32)]))[:1]
    torch.testing.assert_close(converted(example), together, rtol=1e-4, atol=1e-4)
    converted(example).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


# Small networks of timm's with what is special in each: names, and (weight norm, affine).
NETWORKS = {
    'test_resnet': (15, 0),
    'test_efficientnet': (13, 0),
    'test_byobnet': (14, 0),
    'test_coatnet': (5, 2),
    'resnetv2_18': (8, 9),
    'mobilenetv3_small_050': (34, 0),
    'starnet_s050': (17, 1),
    'efficientvit_m0': (112, 1),
    'levit_128s': (50, 2),
    'ghostnet_050': (80, 0),
    'mobilevit_xxs': (32, 0),
    'bn_preresnet18_cifar': (9, 8),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_dozen_networks(name: str) -> None:
    model = randomize(timm.create_model(name))
    fixed = name in ('levit_128s', 'test_coatnet', 'efficientvit_m0', 'bn_preresnet18_cifar')
    size = model.pretrained_cfg['input_size'][-1] if fixed else 64
    converted = convert(model, example=torch.randn(1, 3, size, size))
    assert converted.conversion[:2] == NETWORKS[name]
    assert converted.conversion.exact < 1e-12
    assert norms(converted) == []
    x = torch.randn(1, 3, size, size)
    expected = model.eval()(x)
    torch.testing.assert_close(nf_zoo.fold(converted)(x), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def _spectral() -> nn.Module:
    return nn.Sequential(torch.nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4))


FAULTS = {
    'no model': (lambda: {'state_dict': {}}, 'give a PyTorch model'),
    'TorchScript': (lambda: torch.jit.script(nn.Sequential(nn.BatchNorm2d(4)).eval()), 'TorchScript'),
    'compiled': (lambda: torch.compile(nn.Sequential(nn.BatchNorm2d(4))), 'compiled'),
    'nothing to do': (lambda: nn.Sequential(nn.Conv2d(4, 4, 3)), 'no batch normalization'),
    'lazy': (lambda: nn.Sequential(nn.LazyBatchNorm2d()), 'run it once'),
    'meta': (lambda: nn.Sequential(nn.BatchNorm2d(4, device='meta')), "'meta'"),
    'no statistics': (lambda: nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)), '0 of Sequential has no'),
    'not copied': (lambda: _ran(_spectral()), "can't be copied"),
    'other input': (lambda: nn.Sequential(nn.Linear(7, 4), nn.BatchNorm2d(4)), 'does not run on the example'),
    'no tensors': (lambda: _Number(), 'returns no tensors'),
    'not finite': (lambda: nn.Sequential(nn.BatchNorm2d(4, eps=float('nan'))), 'NaN'),
}


class _Number(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> float:
        return super().forward(x).sum().item()


def _ran(model: nn.Module) -> nn.Module:
    model(IMAGE)
    return model


@pytest.mark.parametrize('fault', FAULTS)
def test_what_cannot_be_converted_says_why_in_one_line(fault: str) -> None:
    make, words = FAULTS[fault]
    with pytest.raises(UserError, match=words) as error:
        convert(make(), example=IMAGE)
    assert '\n' not in str(error.value)


def test_a_form_is_named_and_an_example_asked_for() -> None:
    with pytest.raises(UserError, match="did you mean 'weight_norm'"):
        convert(nn.Sequential(nn.BatchNorm2d(4)), to='weightnorm')
    with pytest.raises(UserError, match='example='):
        convert(nn.Sequential(nn.BatchNorm2d(4)))


def test_computed_weights_keep_their_way() -> None:
    model = nn.Sequential(spectral_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4)).eval()
    check(model, IMAGE, 0, 1)


def test_a_difference_is_a_failed_check() -> None:
    class Shifted(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    with pytest.raises(CheckFailed, match='differs by'):
        convert(randomize(nn.Sequential(nn.Conv2d(4, 4, 3), Shifted(4))), example=IMAGE)


def test_arguments_keywords_and_models_that_are_a_norm() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, list[Tensor]]:
            return {'features': [scale * self.norm(self.conv(x))]}

    for example in ((IMAGE, torch.tensor(2)), {'scale': torch.tensor(2.0), 'x': IMAGE}):
        assert convert(randomize(Pair()), example=example).conversion[:2] == (1, 0)
    assert isinstance(convert(nn.BatchNorm2d(4), example=IMAGE), Affine)
