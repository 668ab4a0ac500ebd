"""The paper's exact form of NF-ResNet and NF-RegNet."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import get_act_layer
from torch import Tensor, nn

import nf_zoo  # noqa: F401
from nf_zoo.analysis.catalogue import multiply_adds
from nf_zoo.errors import UserError
from nf_zoo.layers.std_conv import GAMMA, WSConv2d
from nf_zoo.net.parts import GammaAct


def parameters(name: str, **kwargs) -> int:
    return sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters())


@pytest.mark.parametrize(
    ('depth', 'plain', 'squeezed'),
    [
        (50, 25_557_048, 35_635_704),
        (101, 44_549_193, 63_562_505),
        (152, 60_192_858, 86_565_402),
        (200, 64_673_898, 93_153_834),
        (288, 146_460_552, 213_422_472),
    ],
)
def test_nf_resnet_parameters(depth, plain, squeezed):
    assert parameters(f'dm_nf_resnet{depth}') == plain
    assert parameters(f'dm_nf_resnet{depth}', attn_layer='se') == squeezed


def test_six_hundred_layers_have_their_parameters():
    assert parameters('dm_nf_resnet50', depths=(50, 50, 50, 50)) == 300_646_896


@pytest.mark.parametrize(('depth', 'macs'), [(50, 4_089_184_256), (101, 7_801_405_440), (152, 11_513_626_624)])
def test_nf_resnet_multiply_adds(depth, macs):
    assert multiply_adds(timm.create_model(f'dm_nf_resnet{depth}', device='meta'), 3, 224, 224) == macs


@pytest.mark.parametrize(
    ('size', 'params', 'macs', 'table'),
    [
        ('b0', 8_595_372, 0.4437, 0.44),
        ('b1', 10_019_208, 0.7335, 0.73),
        ('b2', 13_785_904, 1.1451, 1.10),
        ('b3', 18_136_667, 1.9992, 2.00),
        ('b4', 29_315_830, 4.4673, 4.47),
        ('b5', 48_707_138, 11.0978, 10.56),
    ],
)
def test_nf_regnet_parameters_and_multiply_adds(size, params, macs, table):
    """Table 3 halves odd sizes as real numbers: its multiply-adds are a + b side^2."""
    model = timm.create_model(f'dm_nf_regnet_{size}', device='meta')
    side = model.pretrained_cfg['test_input_size'][-1]
    assert sum(p.numel() for p in model.parameters()) == params
    assert round(multiply_adds(model, 3, side, side) / 1e9, 4) == macs
    small, large = multiply_adds(model, 3, 32, 32), multiply_adds(model, 3, 64, 64)
    slope = (large - small) / (64**2 - 32**2)
    assert round((small + slope * (side**2 - 32**2)) / 1e9, 2) == table


# ---- an independent forward pass, written after the released code's bookkeeping


def same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Haiku's SAME padding."""
    for dim in (-1, -2):
        n = x.shape[dim]
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        sides = (total // 2, total - total // 2)
        x = F.pad(x, sides if dim == -1 else (0, 0, *sides), value=value)
    return x


def reference(state: dict[str, Tensor], x: Tensor, widths: list[int], depths: list[int], regnet: bool) -> Tensor:
    def act(x: Tensor) -> Tensor:
        return 1.7881293296813965 * x * x.sigmoid() if regnet else 1.7139588594436646 * x.clamp(min=0)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        w, gain = state[f'{name}.weight'], state[f'{name}.gain']
        fan_in = w[0].numel()
        centred = w - w.sum((1, 2, 3), keepdim=True) / fan_in
        power = centred.square().sum((1, 2, 3), keepdim=True)  # fan-in times the variance
        w = gain * centred / power.clamp(min=1e-4).sqrt()
        return F.conv2d(same(x, w.shape[-1], stride), w, state[f'{name}.bias'], stride, groups=x.shape[1] // w.shape[1])

    def squeeze_excite(name: str, x: Tensor) -> Tensor:
        if f'{name}.fc1.weight' not in state:
            return x
        h = x.mean((2, 3))
        for i, f in ((1, act), (2, torch.sigmoid)):
            h = f(h @ state[f'{name}.fc{i}.weight'].flatten(1).T + state[f'{name}.fc{i}.bias'])
        return 2 * h[:, :, None, None] * x

    x = conv('stem.conv', x, 2)
    if not regnet:
        x = F.max_pool2d(same(x, 3, 2, -float('inf')), 3, 2)
    chs, variance = x.shape[1], 1.0
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for j in range(depth):
            stride = 2 if j == 0 and (regnet or i > 0) else 1
            block = f'stages.{i}.{j}'
            z, h = act(x) / variance**0.5, x
            if regnet and stride > 1:
                h = F.avg_pool2d(z, 2, 2, ceil_mode=True, count_include_pad=False)
                h = conv(f'{block}.downsample.conv', h)
            elif stride > 1 or chs != width:
                h = conv(f'{block}.downsample', z, stride)
            f = conv(f'{block}.conv2', act(conv(f'{block}.conv1', z)), stride)
            f = squeeze_excite(f'{block}.attn', f) if regnet else f
            f = conv(f'{block}.conv3', act(f))
            f = f if regnet else squeeze_excite(f'{block}.attn', f)
            x = h + 0.2 * state[f'{block}.skip_gain'] * f
            chs, variance = width, (1.0 if j == 0 else variance) + 0.2**2
    x = act(conv('final_conv', x) if regnet else x).mean((2, 3))
    return x @ state['head.fc.weight'].T + state['head.fc.bias']


@pytest.mark.parametrize(
    ('name', 'kwargs', 'widths'),
    [
        ('dm_nf_resnet50', {}, [256, 512, 1024, 2048]),
        ('dm_nf_resnet50', dict(attn_layer='se'), [256, 512, 1024, 2048]),
        ('dm_nf_regnet_b0', {}, [36, 78, 156, 330]),
        ('dm_nf_regnet_b2', {}, [42, 84, 174, 366]),
    ],
    ids=str,
)
def test_the_logits_are_the_released_codes_where_its_padding_is_symmetric(name, kwargs, widths):
    depths = [2, 3, 1, 1]
    model = timm.create_model(name, depths=depths, num_classes=5, **kwargs).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for side, symmetric in ((65, True), (64, False)):
            x = torch.randn(2, 3, side, side, dtype=torch.float64)
            logits, expected = model(x), reference(model.state_dict(), x, widths, depths, 'regnet' in name)
            assert logits.shape == expected.shape
            assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-10) == symmetric


@pytest.mark.parametrize('name', ['dm_nf_resnet50', 'dm_nf_regnet_b0'])
def test_starts_as_the_identity_path_with_logits_zero(name):
    model = timm.create_model(name, depths=(1, 2, 1, 1)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (model(x) == 0).all()
        y = model.stages[1][0](model.stages[0](model.stem(x)))
        assert y.std() > 0 and torch.equal(model.stages[1][1](y), y)


def test_gains_biases_and_scalars_do_not_decay():
    model = timm.create_model('dm_nf_regnet_b0', device='meta')
    rest = {name for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith('.gain')}
    assert set(model.no_weight_decay()) == {name for name, _ in model.named_parameters()} - rest


def test_stochastic_depth_rises_by_one_nth_of_the_rate():
    model = timm.create_model('dm_nf_resnet50', device='meta', drop_path_rate=0.16)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.01 * i for i in range(16)])


def test_the_activation_keeps_the_variance():
    x = torch.randn(1_000_000, dtype=torch.float64)
    for name in GAMMA:
        assert GammaAct(name)(x).var().item() == pytest.approx(1, abs=0.01)
        assert torch.equal(GammaAct(name, 3.0)(x), 3.0 * GammaAct(name, 1.0)(x))


@pytest.mark.parametrize('name', ['dm_nf_resnet50', 'dm_nf_regnet_b0'])
def test_the_activation_and_its_gamma_are_keywords(name):
    x = torch.randn(1, 3, 32, 32)

    def logits(**kwargs):
        torch.manual_seed(0)
        model = timm.create_model(name, depths=(1, 1, 1, 1), **kwargs).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        acts = [module for module in model.modules() if isinstance(module, GammaAct)]
        with torch.no_grad():
            return acts, model(x)

    default, expected = logits()
    for act in ('relu', 'silu', 'gelu', 'identity'):
        kind = get_act_layer(act)
        acts, found = logits(act_layer=act)
        assert {type(a.act) for a in acts} == {kind} and {a.gamma for a in acts} == {GAMMA[act]}
        assert torch.equal(found, expected) == isinstance(default[0].act, kind)
    acts, found = logits(gamma=1.0)
    assert {a.gamma for a in acts} == {1.0} and not torch.allclose(found, expected)
    with pytest.raises(UserError, match="act_layer='sliu': use one of relu, silu, gelu, identity; did you mean 'silu'"):
        timm.create_model(name, device='meta', act_layer='sliu')


def test_standardised_weights():
    conv = WSConv2d(6, 4, 3, groups=2).double()
    with torch.no_grad():
        conv.weight.mul_(5).add_(3)
        conv.weight[3] = 7
        conv.gain.copy_(torch.tensor([1.0, 2.0, -0.5, 1.0]).view(4, 1, 1, 1))
    weight = conv.effective_weight().flatten(1)
    torch.testing.assert_close(weight.sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    expected = torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64)  # a constant weight becomes 0
    torch.testing.assert_close(weight.norm(dim=1), expected)
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    plain = conv.fuse()
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain(x), conv(x))
