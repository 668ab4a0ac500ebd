from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from official import OfficialNet, adopted, assert_same, shapes
from sizes import SIZES
from torch import Tensor, nn

from nf_zoo.net.layout import cifar
from nf_zoo.saved_memory import saved_bytes
from nf_zoo.train.groups import parameter_groups

PARAMS = {'rescalenet50': 25_528_568, 'rescalenet101': 44_494_601, 'rescalenet152': 60_115_226}
MACS = {
    'rescalenet18': 1_814_073_344,
    'rescalenet34': 3_663_761_408,
    'rescalenet50': 4_089_184_256,
    'rescalenet101': 7_801_405_440,
    'rescalenet152': 11_513_626_624,
    'rescalenet110_cifar': 252_887_680,
}
SMALL = 'rescalenet20_cifar'


class Bias2D(nn.Module):
    """The official code's bias: it takes the running mean of its first eight inputs off."""

    def __init__(self, chs: int):
        super().__init__()
        self._bias = nn.Parameter(torch.zeros(1, chs, 1, 1))
        self.register_buffer('init_mean', torch.zeros(1, chs, 1, 1))
        self.register_buffer('count', torch.full((1,), 8.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.count < 8:
            self.init_mean += (x.mean((0, 2, 3), keepdim=True) - self.init_mean) / (self.count + 1)
            self._bias.data *= 1e-2
            self.count += 1
        return x + self._bias - self.init_mean


class OfficialBlock(nn.Module):
    def __init__(self, in_chs: int, mid: int, out: int, stride: int, index: int, depth: int):
        super().__init__()
        k, self.beta = depth - 1 + index, depth**-0.5
        self.alpha = (k / (k + 1)) ** 0.5
        self.n = len(shapes(in_chs, mid, out, stride))
        for i, shape in enumerate(shapes(in_chs, mid, out, stride), 1):
            setattr(self, f'addbias{i}', Bias2D(shape[0]))
            setattr(self, f'conv{i}', OfficialNet.conv(*shape))
        self._scale = nn.Parameter(torch.ones(1))
        self.downsample = nn.Identity()
        if in_chs != out:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.downsample = nn.Sequential(pool, Bias2D(in_chs), OfficialNet.conv(in_chs, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        f = x
        for i in range(1, self.n + 1):
            f = getattr(self, f'conv{i}')(getattr(self, f'addbias{i}')(f.relu() if i > 1 else f))
        return (self.beta * self._scale * f + self.alpha * self.downsample(x)).relu()


class Official(OfficialNet):
    def __init__(self, depths: tuple[int, ...], bottleneck: bool):
        super().__init__(partial(OfficialBlock, depth=sum(depths)), depths, True, bottleneck)
        self.addbias1 = Bias2D(64)
        self.addbias2 = Bias2D(self.fc.in_features)
        self.randomize()
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, Bias2D):
                    module.init_mean.normal_(std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.addbias2(self.body(self.addbias1(self.conv1(x)))).mean((2, 3)))


@pytest.mark.parametrize('name', PARAMS)
def test_params(name):
    assert SIZES[name]['params'] == PARAMS[name]


@pytest.mark.parametrize('name', MACS)
def test_macs_are_resnets(name):
    assert SIZES[name]['macs'] == MACS[name]


def test_cifar_has_a_bias_per_channel_before_every_convolution():
    sites = [site for stage in cifar(depths=(9, 9, 9)).stages for site in stage]
    convs = 3 * 9 * 16 + sum(9 * conv['in_channels'] * conv['out_channels'] for site in sites for conv in site.convs)
    biases = 16 + 64 + sum(conv['in_channels'] for site in sites for conv in site.convs)
    assert SIZES['rescalenet56_cifar']['params'] == convs + biases + len(sites) + 650


@pytest.mark.parametrize(
    ('name', 'depths', 'bottleneck'), [('rescalenet50', (2, 1, 1, 1), True), ('rescalenet18', (1, 2, 1, 1), False)]
)
def test_official_checkpoints(name, depths, bottleneck, tmp_path):
    theirs = Official(depths, bottleneck)
    assert_same(adopted(name, theirs, tmp_path), theirs, torch.randn(2, 3, 64, 64, dtype=torch.float64))


def test_centring_is_the_official_codes_first_eight_forwards(tmp_path):
    theirs = Official((1, 1, 1, 1), False)
    for module in theirs.modules():
        if isinstance(module, Bias2D):
            for tensor in (module._bias.data, module.init_mean, module.count):
                tensor.zero_()
    ours = adopted('rescalenet18', theirs, tmp_path)
    batches = torch.randn(8, 2, 3, 64, 64, dtype=torch.float64) + 0.5
    with torch.no_grad():
        for x in batches:
            theirs(x)
        ours.init_from_data(iter(batches))
        torch.testing.assert_close(ours(batches[0]), theirs(batches[0]), rtol=1e-9, atol=1e-9)


def test_centring_leaves_every_channel_with_mean_zero():
    model = timm.create_model(SMALL, depths=(2, 1, 1), dtype=torch.float64)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64) + 1
    model.init_from_data(x)
    means = []
    for name, module in model.named_modules():
        bias = dict(module.named_parameters(recurse=False)).get('pre_bias' if 'conv' in name else 'bias')
        if bias is not None and not name.startswith('head'):
            hook = partial(lambda bias, _, args: means.append(args[0].mean((0, 2, 3)) + bias), bias)
            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(x)
    assert len(means) == 2 + 2 * 4
    assert max(mean.abs().max() for mean in means) < 1e-12


@pytest.mark.parametrize('name', ['rescalenet18', 'rescalenet50', 'rescalenet152', 'rescalenet110_cifar'])
def test_squares_of_the_coefficients_sum_to_one(name):
    model = timm.create_model(name, device='meta')
    for block in (block for stage in model.stages for block in stage):
        convs = 2 if block.conv3 is None else 3
        assert block.alpha**2 + (block.beta * block.init_gain**convs) ** 2 == pytest.approx(1, abs=1e-12)


def test_init():
    model = timm.create_model('rescalenet56_cifar')
    blocks = [block for stage in model.stages for block in stage]
    for k, block in enumerate(blocks):
        gain = block.beta
        for conv in (block.conv1, block.conv2):
            gain *= conv.weight.std().item() / (2 / conv.weight[0].numel()) ** 0.5
        assert gain == pytest.approx((27 + k) ** -0.5, rel=0.1)
    dropped = timm.create_model(SMALL, drop_conv_rate=0.5)
    plain = timm.create_model(SMALL)
    for stage, factor in ((0, 1.0), (1, 1.0), (2, 0.5**0.5)):
        ratio = dropped.stages[stage][1].init_gain / plain.stages[stage][1].init_gain
        assert ratio == pytest.approx(factor)


@pytest.mark.parametrize('name', ['rescalenet50', 'rescalenet110_cifar'])
def test_variance_is_level_within_a_stage_before_centring(name):
    model = timm.create_model(name).eval()
    with torch.no_grad():
        x = model.stem(torch.randn(2, 3, 64, 64))
        for stage in model.stages:
            variances = []
            for block in stage:
                x = block(x)
                variances.append(x.var().item())
            assert max(variances) < 2 * min(variances)


def test_the_branch_and_its_scalar():
    """The equation, with and without its ablations, on random weights."""
    x = torch.randn(2, 16, 8, 8)
    for kwargs in ({}, dict(scale=False), dict(residual_scaling=False), dict(attn_layer='se')):
        block = timm.create_model(SMALL, **kwargs).stages[0][1].eval()
        with torch.no_grad():
            s = 1.0 if 'scale' in kwargs else block.scale.fill_(-0.7)
            f = block.conv2.weight.new_tensor(0.0)
            for conv in (block.conv1, block.conv2):
                conv.pre_bias.normal_()
                before = f.relu() if f.dim() else x
                f = F.conv2d(before + conv.pre_bias.view(-1, 1, 1), conv.weight, padding=1)
            f = block.attn(f)
            alpha, beta = (1, 1) if 'residual_scaling' in kwargs else ((9 / 10) ** 0.5, 1 / 3)
            torch.testing.assert_close(block(x), (alpha * x + beta * s * f).relu())


def test_drop_conv_is_in_the_last_two_of_four_stages():
    model = timm.create_model('rescalenet18', drop_conv_rate=0.1, device='meta')
    assert [isinstance(stage[0].drop, nn.Dropout2d) for stage in model.stages] == [False, False, True, True]


def test_what_is_not_decayed():
    model = timm.create_model(SMALL, device='meta')
    decayed = {id(p) for group in parameter_groups(model, 1e-4) if group['weight_decay'] for p in group['params']}
    assert {id(p) for n, p in model.named_parameters() if p.dim() > 1 or n == 'head.fc.bias'} == decayed


def test_keeps_less_for_backward_than_the_official_code():
    ours = timm.create_model('rescalenet50', depths=(2, 1, 1, 1))
    assert saved_bytes(ours, 32) < 0.65 * saved_bytes(Official((2, 1, 1, 1), True).float(), 32)
