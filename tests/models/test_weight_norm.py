"""Weight normalisation: its convolution, and the network of torchvision without batch normalization."""

import math
import re

import pytest
import timm
import torch
import torchvision
from sizes import SIZES
from torch import nn

from nf_zoo.layers.std_conv import WeightNormConv2d


@pytest.mark.parametrize(
    ('name', 'params', 'macs'),
    [
        ('wn_resnet18', 11_689_512, 1_814_073_344),
        ('wn_resnet34', 21_797_672, 3_663_761_408),
        ('wn_resnet50', 25_557_032, 4_089_184_256),
        ('wn_resnet101', 44_549_160, 7_801_405_440),
        ('wn_resnet152', 60_192_808, 11_513_626_624),
        ('wn_resnet20_cifar', 269_722, 40_551_040),
    ],
)
def test_as_many_parameters_as_with_batch_normalization(name: str, params: int, macs: int) -> None:
    assert SIZES[name] == dict(params=params, macs=macs)


def test_the_gain_is_the_norm_and_the_weight_a_direction() -> None:
    conv = WeightNormConv2d(4, 6, 3, stride=2, padding=1, groups=2).double()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    plain = nn.functional.conv2d(x, conv.weight, conv.bias, 2, 1, 1, 2)
    torch.testing.assert_close(conv(x), plain)
    with torch.no_grad():
        conv.gain.uniform_(0.5, 2)
        y = conv(x)
        conv.weight.mul_(torch.rand(6, 1, 1, 1, dtype=torch.float64) + 0.5)
        torch.testing.assert_close(conv(x), y)
        torch.testing.assert_close(conv.effective_weight().flatten(1).norm(dim=1), conv.gain.flatten())
        torch.testing.assert_close(conv.fuse()(x), y)


@pytest.mark.parametrize('name', ['wn_resnet18', 'wn_resnet50'])
def test_it_is_torchvisions_network_without_batch_normalization(name: str) -> None:
    depths = (2, 1, 1, 1)
    ours = timm.create_model(name, depths=depths, num_classes=10).double().eval()
    kind = torchvision.models.resnet.Bottleneck if '50' in name else torchvision.models.resnet.BasicBlock
    theirs = torchvision.models.ResNet(kind, list(depths), 10, norm_layer=nn.Identity).double().eval()
    state = {'fc.weight': ours.head.fc.weight, 'fc.bias': ours.head.fc.bias}
    for key, module in ours.named_modules():
        if isinstance(module, WeightNormConv2d):
            key = re.sub(r'^stages\.(\d)', lambda m: f'layer{int(m[1]) + 1}', key)
            key = key.replace('stem.conv', 'conv1').replace('downsample', 'downsample.0')
            state[f'{key}.weight'] = module.effective_weight()
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)


def test_the_init_is_the_plain_networks() -> None:
    model = timm.create_model('wn_resnet18', depths=(1, 1, 1, 1))
    for module in model.modules():
        if isinstance(module, WeightNormConv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.var().item() == pytest.approx(2 / fan_out, rel=0.1)
            torch.testing.assert_close(module.effective_weight(), module.weight)
            assert module.bias is not None and not module.bias.any()


def test_dropout_is_in_the_branch_in_training_only() -> None:
    model = timm.create_model('wn_resnet50', depths=(1, 1, 1, 1), num_classes=10, drop_conv_rate=0.5)
    plain = timm.create_model('wn_resnet50', depths=(1, 1, 1, 1), num_classes=10)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model.train()(x), model(x))
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
        block = model.stages[0][0].train()
        seen: list[float] = []
        for conv in (block.conv1, block.conv2, block.conv3):
            conv.register_forward_pre_hook(lambda module, args: seen.append((args[0] == 0).float().mean().item()))
        block(torch.rand(1, 64, 16, 16))
    # ReLU alone makes about half of them zero, dropout half of the others.
    assert seen[0] == 0 and min(seen[1:]) > 0.65


def test_clipping_loosens_with_the_logarithm_of_the_epoch() -> None:
    model = timm.create_model('wn_resnet18', device='meta')
    bounds = [model.clip_grad(epoch) for epoch in range(90)]
    assert bounds[0] == 5
    assert bounds == sorted(bounds)
    assert bounds[15] - bounds[7] == pytest.approx(5 * math.log(2))
