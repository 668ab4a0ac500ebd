import pytest
import timm
import torch
import torch.nn.functional as F
from families import small
from sizes import SIZES

from nf_zoo.train.groups import parameter_groups

PARAMS = {
    'skipinit_resnet18': 11_684_656,
    'skipinit_resnet34': 21_789_112,
    'skipinit_resnet50': 25_530_424,
    'skipinit_resnet101': 44_496_457,
    'skipinit_resnet152': 60_117_082,
    # 1,719,920 without biases, and 18 blocks of two convolutions a stage
    'skipinit_resnet110_cifar': 1_719_920 + 2 * 18 * (16 + 32 + 64),
}


@pytest.mark.parametrize('name', PARAMS)
def test_params(name):
    assert SIZES[name]['params'] == PARAMS[name]


def test_macs():
    assert SIZES['skipinit_resnet50']['macs'] == 4_089_184_256
    assert SIZES['skipinit_resnet110_cifar']['macs'] == 252_887_680


@pytest.mark.parametrize('name', ['skipinit_resnet50', 'skipinit_resnet20_cifar'])
def test_starts_as_the_identity_path(name):
    model = timm.create_model(name, depths=(2,) * (3 if 'cifar' in name else 4)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not model(x).any()
        x = model.stem(x)
        for block in (block for stage in model.stages for block in stage):
            h = x if block.downsample is None else block.downsample(x.relu())
            x = block(x)
            assert torch.equal(x, h) and x.std() > 0


@pytest.mark.parametrize('attn_layer', [None, 'se'])
@pytest.mark.parametrize(('name', 'padding'), [('skipinit_resnet50', (0, 1, 0)), ('skipinit_resnet18', (1, 1))])
def test_the_block_is_its_equation(name, padding, attn_layer):
    model = small(name, attn_layer=attn_layer, dtype=torch.float64).eval()
    block = model.stages[1][0]
    x = torch.randn(2, block.conv1.in_channels, 7, 7, dtype=torch.float64)
    f = z = x.relu()
    for i, pad in enumerate(padding, 1):
        conv = getattr(block, f'conv{i}')
        f = F.conv2d(f.relu(), conv.weight, conv.bias, conv.stride, pad)
    f = block.attn(f)
    h = F.conv2d(z, block.downsample.weight, block.downsample.bias, 2)
    expected = h + block.skip_gain * f
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)
    parameters = list(block.parameters())
    grads = [torch.autograd.grad(y.square().sum(), parameters) for y in (block(x), expected)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_init():
    model = timm.create_model('skipinit_resnet50', depths=(1, 1, 1, 1))
    assert model.stem.conv.bias is None
    for block in (stage[0] for stage in model.stages):
        for conv in (block.conv1, block.conv2, block.conv3, block.downsample):
            assert conv.weight.std().item() == pytest.approx((2 / conv.weight[0].numel()) ** 0.5, rel=0.03)
            assert not conv.bias.any()
        assert block.skip_gain.item() == 0


def test_the_scalar_alone_wakes_the_branches():
    """At first the branch passes no gradient to its own weights, its scalar learns; then all of them do."""
    model = timm.create_model('skipinit_resnet20_cifar', depths=(2, 1, 1))
    torch.nn.init.normal_(model.head.fc.weight)
    x = torch.randn(4, 3, 32, 32)
    model(x).square().sum().backward()
    branches = [(block.skip_gain, block.conv1.weight) for stage in model.stages for block in stage]
    assert all(s.grad.any() and not weight.grad.any() for s, weight in branches)
    with torch.no_grad():
        for s, _ in branches:
            s.sub_(1e-2 * s.grad.sign())
    model(x).square().sum().backward()
    assert all(weight.grad.any() for _, weight in branches)


def test_what_is_not_decayed():
    model = timm.create_model('skipinit_resnet20_cifar', device='meta')
    decayed = {id(p) for group in parameter_groups(model, 1e-4) if group['weight_decay'] for p in group['params']}
    assert decayed == {id(p) for p in model.parameters() if p.dim() > 1}
