"""IdShort, LearnScalar and ConvShort: sizes as in the paper's tables, its init, and what the init is for."""

import math

import pytest
import timm
import torch
import torchvision
from sizes import SIZES
from torch import nn

from nf_zoo.analysis.signal import BlockSignal, signal_propagation
from nf_zoo.errors import UserError

FAMILIES = ['idshort_resnet', 'learnscalar_resnet', 'convshort_resnet']
per_family = pytest.mark.parametrize('family', FAMILIES)

# Parameters, MACs, and the paper's tables 1 and 2: millions of parameters, 1e9 operations (two for a MAC).
SIZES_FILE = {
    'idshort_resnet18_cifar': (11_164_362, 555_422_720, 11.16, 1.12),
    'learnscalar_resnet18_cifar': (11_164_367, 555_422_720, 11.16, 1.12),
    'convshort_resnet18_cifar': (11_516_618, 576_394_240, 11.52, 1.16),
    'idshort_resnet50_cifar': (23_467_722, 1_297_829_888, 23.47, 2.6),
    'learnscalar_resnet50_cifar': (23_467_734, 1_297_829_888, 23.47, 2.6),
    'convshort_resnet50_cifar': (38_016_714, 2_103_136_256, 38.02, 4.2),
    'idshort_resnet101_cifar': (42_407_626, 2_509_983_744, 42.41, 5.02),
    'learnscalar_resnet101_cifar': (42_407_655, 2_509_983_744, 42.41, 5.02),
    'convshort_resnet101_cifar': (74_782_410, 4_456_140_800, 74.78, 8.92),
}


@pytest.mark.parametrize('name', SIZES_FILE)
def test_sizes_are_the_papers(name: str) -> None:
    params, macs, table_params, table_flops = SIZES_FILE[name]
    assert SIZES[name] == dict(params=params, macs=macs)
    assert round(params / 1e6, 2) == table_params
    # The 50-layer rows have one decimal; some of the others are rounded up.
    digits = 1 if '50' in name else 2
    nearest, up = round(2 * macs / 1e9, digits), math.ceil(2 * macs / 1e9 * 10**digits) / 10**digits
    assert table_flops in (nearest, up)


def test_the_imagenet_layout_counts_the_same_blocks() -> None:
    assert SIZES['convshort_resnet50'] == dict(params=40_052_904, macs=6_555_435_008)
    assert SIZES['idshort_resnet50'] == dict(params=23_454_912 + 2_049_000, macs=4_089_184_256)
    assert SIZES['learnscalar_resnet50']['params'] == 23_454_912 + 2_049_000 + 12


@pytest.mark.parametrize(('depth', 'control'), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_the_6n_plus_2_layout_has_the_controls_convolutions(depth: int, control: int) -> None:
    """Without batch normalization's parameters; LearnScalar has a scalar for each identity, ConvShort its shortcuts."""
    n = (depth - 2) // 6
    plain = control - 2 * (16 + 2 * n * (16 + 32 + 64))
    shortcuts = n * (16**2 + 32**2 + 64**2) - (32**2 - 16 * 32) - (64**2 - 32 * 64)
    found = [SIZES[f'{family}{depth}_cifar']['params'] for family in FAMILIES]
    assert found == [plain, plain + 3 * n - 2, plain + shortcuts]


@pytest.mark.parametrize('family', ['idshort_resnet', 'learnscalar_resnet'])
@torch.no_grad()
def test_a_transition_of_the_6n_plus_2_layout_pads_what_was_activated(family: str) -> None:
    block = timm.create_model(f'{family}20_cifar', depths=(1, 1, 1)).stages[1][0]
    x = torch.randn(2, 16, 6, 6)
    z = x.clamp(min=0)
    h = torch.cat([z[:, :, ::2, ::2], torch.zeros(2, 16, 3, 3)], dim=1)
    torch.testing.assert_close(block(x), 0.5**0.5 * (h + block.conv2(block.conv1(z).clamp(min=0))))


@per_family
@pytest.mark.parametrize('bottleneck', [False, True])
@pytest.mark.parametrize('transition', [False, True])
def test_a_block_is_its_equation(family: str, bottleneck: bool, transition: bool) -> None:
    model = timm.create_model(family + ('50' if bottleneck else '18') + '_cifar', depths=(2, 1, 1, 1))
    block = (model.stages[1][0] if transition else model.stages[0][1]).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.5)
        x = torch.randn(2, block.conv1.in_channels, 5, 5, dtype=torch.float64)
        z = x.clamp(min=0)
        f = z
        for conv in filter(None, (block.conv1, block.conv2, block.conv3)):
            assert conv.bias is None
            f = conv(f.clamp(min=0))
        if transition or family == 'convshort_resnet':
            w = block.downsample.weight
            assert w.shape[2:] == (1, 1) and not hasattr(block, 'scale')
            h = torch.einsum('oi,nihw->nohw', w[:, :, 0, 0], z[:, :, :: 1 + transition, :: 1 + transition])
        else:
            h = 1.5 * x if family == 'learnscalar_resnet' else x
        torch.testing.assert_close(block(x), 0.5**0.5 * (h + f), rtol=1e-10, atol=1e-12)


@per_family
def test_weights_have_exactly_the_rules_mean_and_deviation(family: str) -> None:
    for init in ('fan_out', 'fan_in', 'brock'):
        model = timm.create_model(f'{family}50_cifar', depths=(2, 1, 1, 1), init=init)
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert len(convs) == 1 + 3 * 5 + (5 if family == 'convshort_resnet' else 4)
        for conv in convs:
            fan = conv.kernel_size[0] ** 2 * (conv.out_channels if init == 'fan_out' else conv.in_channels)
            variance = (2 / (1 - 1 / math.pi) if init == 'brock' else 2) / fan
            weight = conv.weight.double()
            rows = weight.flatten(1) if init == 'brock' else weight.view(1, -1)
            deviation, mean = torch.std_mean(rows, dim=1, correction=0)
            assert mean.abs().max() < 1e-6 * variance**0.5
            assert (deviation / variance**0.5 - 1).abs().max() < 1e-5


def first_stage(name: str, **kwargs: object) -> list[BlockSignal]:
    """The signal in eight blocks of one width at initialisation."""
    model = timm.create_model(name, depths=(8, 1, 1, 1), **kwargs)
    return signal_propagation(model, torch.randn(4, 3, 16, 16))[:8]


@per_family
def test_gradients_stay_level_and_explode_with_brocks_gain(family: str) -> None:
    """Figure 2 of the paper: his gain multiplies the gradients' variance at every convolution, not the features'."""
    level = [row.gradient_variance for row in first_stage(f'{family}18_cifar')]
    assert max(level) < 2 * min(level)
    rows = first_stage(f'{family}18_cifar', init='brock')
    gain = 1 / (1 - 1 / math.pi)
    expected = (gain**2 + (gain if family == 'convshort_resnet' else 1)) / 2
    assert (rows[0].gradient_variance / rows[-1].gradient_variance) ** (1 / 7) == pytest.approx(expected, rel=0.1)
    assert rows[-1].variance == pytest.approx(rows[0].variance, rel=0.3)


def test_learned_scalars_start_as_the_identity() -> None:
    plain = timm.create_model('idshort_resnet18_cifar', depths=(2, 1, 1, 1)).eval()
    learned = timm.create_model('learnscalar_resnet18_cifar', depths=(2, 1, 1, 1)).eval()
    missing, unexpected = learned.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ['stages.0.0.scale', 'stages.0.1.scale'] and not unexpected
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(learned(x), plain(x))


@per_family
def test_an_unknown_init_is_one_line(family: str) -> None:
    with pytest.raises(UserError, match="init='fan_otu': use one of fan_out, fan_in, brock; did you mean 'fan_out'"):
        timm.create_model(f'{family}18_cifar', device='meta', init='fan_otu')


def test_a_resnets_convolutions_leave_the_other_shortcuts_as_they_are() -> None:
    theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1]).state_dict()
    overlay = dict(state_dict=theirs)
    torch.manual_seed(1)
    start = timm.create_model('convshort_resnet18', depths=(2, 1, 1, 1))
    torch.manual_seed(1)
    model = timm.create_model(
        'convshort_resnet18', depths=(2, 1, 1, 1), pretrained=True, pretrained_cfg_overlay=overlay
    )
    assert torch.equal(model.stages[0][1].conv2.weight, theirs['layer1.1.conv2.weight'])
    assert torch.equal(model.stages[1][0].downsample.weight, theirs['layer2.0.downsample.0.weight'])
    assert torch.equal(model.stages[0][1].downsample.weight, start.stages[0][1].downsample.weight)
