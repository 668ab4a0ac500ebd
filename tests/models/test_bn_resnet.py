"""The controls: sizes, blocks and the batch dependence that the methods are there to avoid."""

import pytest
import timm
import torch
from sizes import SIZES
from torch import nn

from nf_zoo.folding.network import fold
from nf_zoo.net.parts import PadShortcut


@pytest.mark.parametrize(
    ('name', 'params', 'macs'),
    [
        ('bn_resnet20_cifar', 269_722, 40_551_040),
        ('bn_resnet56_cifar', 853_018, 125_485_696),
        ('bn_resnet110_cifar', 1_727_962, 252_887_680),
    ],
)
def test_sizes_of_the_6n_plus_2_layout(name: str, params: int, macs: int) -> None:
    assert SIZES[name] == dict(params=params, macs=macs)
    assert SIZES[name.replace('bn_', 'gn_')] == dict(params=params, macs=macs)


@pytest.mark.parametrize(
    ('depth', 'params', 'macs'),
    [(18, 11_516_618, 576_394_240), (50, 38_016_714, 2_103_136_256), (101, 74_782_410, 4_456_140_800)],
)
def test_without_bn_the_preactivation_control_has_convshorts_size(depth: int, params: int, macs: int) -> None:
    name = f'bn_preresnet{depth}_cifar'
    model = timm.create_model(name, device='meta')
    norms = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert SIZES[name] == dict(params=params + norms, macs=macs)


def perturbed(name: str, depths: tuple[int, ...]) -> nn.Module:
    """A float64 model in eval mode whose BN has statistics and parameters of its own."""
    model = timm.create_model(name, depths=depths).double().eval()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_(std=0.5)
                norm.running_mean.normal_(std=0.5)
                norm.running_var.uniform_(0.5, 2)
    return model


def normalized(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    mean, var, gain, bias = (t.view(1, -1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / (var + norm.eps).sqrt() * gain + bias


@torch.no_grad()
def test_the_postactivation_block_is_its_equation() -> None:
    model = perturbed('bn_resnet20_cifar', (1, 2, 1))
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    for block in model.stages[1]:
        f = normalized(block.bn2, block.conv2(normalized(block.bn1, block.conv1(x)).clamp(min=0)))
        h = x
        if block.downsample is not None:
            assert isinstance(block.downsample, PadShortcut)
            h = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 3, 3)], dim=1)
        y = (h + f).clamp(min=0)
        torch.testing.assert_close(block(x.clone()), y)
        x = y


@torch.no_grad()
def test_a_group_of_the_group_normalized_control_has_eight_channels() -> None:
    model = timm.create_model('gn_resnet20_cifar', depths=(1, 1, 1)).double()
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_channels // norm.num_groups for norm in norms] == [8] * 7
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    block, x = model.stages[0][0], torch.randn(2, 16, 5, 5, dtype=torch.float64)

    def normalized(f: torch.Tensor) -> torch.Tensor:
        groups = f.view(2, 2, -1)
        variance, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
        return ((groups - mean) / (variance + 1e-5).sqrt()).view_as(f)

    f = normalized(block.conv2(normalized(block.conv1(x)).clamp(min=0)))
    torch.testing.assert_close(block(x.clone()), (x + f).clamp(min=0))


@torch.no_grad()
def test_folding_leaves_the_group_normalization() -> None:
    model = timm.create_model('gn_resnet20_cifar', depths=(1, 1, 1)).double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_(std=0.5)
    folded = fold(model)
    kinds = [sum(isinstance(m, kind) for m in folded.modules()) for kind in (nn.GroupNorm, nn.Conv2d)]
    assert kinds == [7, 7]
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize('name', ['bn_preresnet18_cifar', 'bn_preresnet50_cifar'])
def test_the_preactivation_block_is_its_equation(name: str) -> None:
    model = perturbed(name, (2, 1, 1, 1))
    x = torch.randn(2, 64, 5, 5, dtype=torch.float64)
    for block in model.stages[0]:
        z = normalized(block.bn1, x).clamp(min=0)
        f = block.conv2(normalized(block.bn2, block.conv1(z)).clamp(min=0))
        if block.conv3 is not None:
            f = block.conv3(normalized(block.bn3, f).clamp(min=0))
        y = torch.einsum('oi,nihw->nohw', block.downsample.weight[:, :, 0, 0], z) + f
        torch.testing.assert_close(block(x), y)
        x = y
    features = model.forward_features(torch.randn(1, 3, 16, 16, dtype=torch.float64))
    assert (features >= 0).all()  # BN and ReLU once more before the pooling


@torch.no_grad()
@pytest.mark.parametrize('name', ['bn_resnet20_cifar', 'bn_preresnet18_cifar'])
def test_an_image_sees_its_neighbours_in_training_alone(name: str) -> None:
    model = timm.create_model(name, depths=(1,) * (3 if '20' in name else 4)).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    other = torch.cat([x[:1], 3 * x[1:]])
    assert not torch.allclose(model.train()(x)[0], model(other)[0])
    torch.testing.assert_close(model.eval()(x)[0], model(other)[0])


@pytest.mark.parametrize('name', ['bn_resnet20_cifar', 'bn_preresnet18_cifar'])
def test_the_init_is_torchvisions(name: str) -> None:
    model = timm.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.var().item() == pytest.approx(2 / fan_out, rel=0.2)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()


@pytest.mark.parametrize(
    ('control', 'name', 'depths'),
    [
        ('bn_resnet20_cifar', 'eunnet20_cifar', (1, 2, 1)),
        ('bn_resnet20_cifar', 'nf_resnet20_cifar', (1, 2, 1)),
        ('bn_resnet20_cifar', 'gn_resnet20_cifar', (1, 2, 1)),
        ('bn_resnet20_cifar', 'convshort_resnet20_cifar', (1, 2, 1)),
        ('bn_preresnet18_cifar', 'convshort_resnet18_cifar', (1, 2, 1, 1)),
    ],
)
def test_the_controls_convolutions_initialise_a_method(control: str, name: str, depths: tuple[int, ...]) -> None:
    source = timm.create_model(control, depths=depths).state_dict()
    overlay = dict(state_dict=source)
    torch.manual_seed(1)
    start = timm.create_model(name, depths=depths).state_dict()
    torch.manual_seed(1)
    model = timm.create_model(name, depths=depths, pretrained=True, pretrained_cfg_overlay=overlay)
    for key, value in model.state_dict().items():
        taken = key in source and (key.endswith('.weight') and value.ndim > 1 or key == 'head.fc.bias')
        assert torch.equal(value, (source if taken else start)[key]), key
