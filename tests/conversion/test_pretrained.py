"""The weight-normalised ResNets with the weights of ResNets that have batch normalization."""

import copy
import logging
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from hub_client import connect
from hub_server import File, Hub, Repo
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import nf_zoo
from nf_zoo.errors import UserError
from tools.conversion import randomize

DEPTHS = {'wn_resnet18': (1, 2, 1, 1), 'wn_resnet50': (1, 1, 2, 1)}


def theirs(name: str, **kwargs: object) -> nn.Module:
    """timm's network with batch normalization, small, with random statistics, in float64."""
    block = timm.models.resnet.Bottleneck if name == 'wn_resnet50' else timm.models.resnet.BasicBlock
    return randomize(timm.models.resnet.ResNet(block, DEPTHS[name], **kwargs)).double().eval()


def ours(name: str, file: Path, **kwargs: object) -> nn.Module:
    overlay = dict(file=str(file))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, dtype=torch.float64, **kwargs)
    return model.eval()


@pytest.mark.parametrize('name', DEPTHS)
def test_timms_weights_give_timms_outputs(name: str, tmp_path: Path) -> None:
    resnet = theirs(name)
    save_file(resnet.state_dict(), tmp_path / 'model.safetensors')
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = ours(name, tmp_path / 'model.safetensors', depths=DEPTHS[name])
    expected = resnet(x)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())
    torch.testing.assert_close(nf_zoo.fold(model)(x), expected, rtol=0, atol=1e-12 * expected.abs().max().item())

    features = ours(name, tmp_path / 'model.safetensors', depths=DEPTHS[name], features_only=True)
    x1 = x
    for level in features(x):
        assert level.isfinite().all()
    torch.testing.assert_close(features(x1)[-1], resnet.forward_features(x1), rtol=1e-11, atol=1e-11)

    other = ours(name, tmp_path / 'model.safetensors', depths=DEPTHS[name], num_classes=7)
    torch.testing.assert_close(other.forward_features(x), resnet.forward_features(x), rtol=1e-11, atol=1e-11)
    assert other(x).shape == (2, 7)

    float32 = model.float()
    difference = (float32(x.float()) - expected).abs().max() / expected.abs().max()
    assert difference < 6e-7


@pytest.mark.parametrize('channels', [1, 4])
def test_other_input_channels_are_adapted_as_timm_adapts_them(channels: int, tmp_path: Path) -> None:
    resnet = theirs('wn_resnet18')
    save_file(resnet.state_dict(), tmp_path / 'model.safetensors')
    kwargs = dict(
        pretrained=True, in_chans=channels, pretrained_cfg_overlay=dict(file=str(tmp_path / 'model.safetensors'))
    )
    x = torch.randn(2, channels, 64, 64)
    expected = timm.models.build_model_with_cfg(
        timm.models.resnet.ResNet,
        'resnet18',
        block=timm.models.resnet.BasicBlock,
        layers=DEPTHS['wn_resnet18'],
        **kwargs,
    ).eval()(x)
    found = timm.create_model('wn_resnet18', depths=DEPTHS['wn_resnet18'], **kwargs).eval()
    torch.testing.assert_close(found(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    # Its own weights too: g follows |v|.
    save_file(timm.create_model('wn_resnet18', depths=(1, 1, 1, 1)).state_dict(), tmp_path / 'own.safetensors')
    kwargs['pretrained_cfg_overlay'] = dict(file=str(tmp_path / 'own.safetensors'))
    stem = timm.create_model('wn_resnet18', depths=(1, 1, 1, 1), **kwargs).stem.conv
    torch.testing.assert_close(stem.effective_weight(), stem.weight)


def test_torchvisions_checkpoint(tmp_path: Path) -> None:
    resnet = randomize(torchvision.models.resnet18(num_classes=10)).eval()
    torch.save(resnet.state_dict(), tmp_path / 'resnet18.pth')
    model = timm.create_model(
        'wn_resnet18',
        pretrained=True,
        num_classes=10,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'resnet18.pth'), num_classes=10),
    )
    x = torch.randn(1, 3, 64, 64)
    expected = resnet(x)
    torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_our_controls_weights(tmp_path: Path) -> None:
    control = randomize(timm.create_model('bn_resnet20_cifar', depths=(1, 2, 1), attn_layer='se')).double().eval()
    save_file(control.state_dict(), tmp_path / 'model.safetensors')
    model = ours('wn_resnet20_cifar', tmp_path / 'model.safetensors', depths=(1, 2, 1), attn_layer='se')
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), control(x), rtol=1e-12, atol=1e-12)


class PaddedOnBothSides(nn.Module):
    """A CIFAR ResNet with the structure of akamaster's: zero channels on both sides in a shortcut, fc called linear."""

    class Block(nn.Module):
        def __init__(self, old: int, new: int):
            super().__init__()
            self.stride, self.pad = (1 if old == new else 2), (new - old) // 2
            self.conv1 = nn.Conv2d(old, new, 3, self.stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(new)
            self.conv2 = nn.Conv2d(new, new, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(new)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(y + shortcut)

    def __init__(self, blocks: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        for i, (old, new) in enumerate([(16, 16), (16, 32), (32, 64)]):
            layers = [self.Block(old if block == 0 else new, new) for block in range(blocks)]
            self.add_module(f'layer{i + 1}', nn.Sequential(*layers))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def test_shortcuts_that_pad_on_both_sides(tmp_path: Path) -> None:
    resnet = randomize(PaddedOnBothSides(2)).double().eval()
    parallel = {f'module.{key}': value for key, value in resnet.state_dict().items()}
    torch.save({'state_dict': parallel, 'best_prec1': 91.25}, tmp_path / 'resnet14.th')
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for name in ('wn_resnet20_cifar', 'bn_resnet20_cifar'):
        model = ours(name, tmp_path / 'resnet14.th', depths=(2, 2, 2))
        torch.testing.assert_close(model(x), resnet(x), rtol=1e-12, atol=1e-12)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file({'features.norm0.running_mean': torch.ones(3), 'fc.weight': torch.ones(3)}, tmp_path / 'a.safetensors')
    with pytest.raises(UserError, match='features.norm0 of the weights has no convolution'):
        ours('wn_resnet18', tmp_path / 'a.safetensors', depths=(1, 1, 1, 1))
    save_file({'linear.weight': torch.ones(3), 'layer1.0.conv2.weight': torch.ones(3)}, tmp_path / 'b.safetensors')
    with pytest.raises(UserError, match='three stages of a CIFAR ResNet'):
        ours('wn_resnet20_cifar', tmp_path / 'b.safetensors')


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_timms_tags_are_tags_of_these_networks(depth: int) -> None:
    resnet, name = f'resnet{depth}', f'wn_resnet{depth}'
    expected = [f'{name}.{key.partition(".")[2]}' for key in timm.models.get_arch_pretrained_cfgs(resnet)]
    assert set(timm.list_models(f'{name}.*', pretrained=True)) == set(expected)
    for tagged in expected:
        tag = tagged.partition('.')[2]
        cfg, original = timm.get_pretrained_cfg(tagged), timm.get_pretrained_cfg(f'{resnet}.{tag}')
        assert (cfg.hf_hub_id, cfg.license) == (f'timm/{resnet}.{tag}', original.license)
        assert (cfg.input_size, cfg.crop_pct, cfg.mean, cfg.num_classes) == (
            original.input_size,
            original.crop_pct,
            original.mean,
            original.num_classes,
        )
        assert (cfg.first_conv, cfg.classifier) == ('stem.conv', 'head.fc')


@pytest.fixture(scope='module')
def resnet50() -> nn.Module:
    return randomize(timm.create_model('resnet50')).eval()


@pytest.fixture
def timms_hub(server: Hub, resnet50: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub that has a timm/resnet50.a1_in1k, with random weights."""
    file = File(save(resnet50.state_dict()), large=True)
    server.objects[file.sha256] = file.data
    server.repos['timm/resnet50.a1_in1k'] = Repo()
    server.repos['timm/resnet50.a1_in1k'].commit('main', {'model.safetensors': file})
    connect(server, tmp_path, monkeypatch)
    return server


def test_a_tag_of_timms_is_loaded_from_the_hub_and_converted(
    timms_hub: Hub, resnet50: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(1, 3, 64, 64)
    expected = copy.deepcopy(resnet50).double()(x.double())
    largest = expected.abs().max().item()
    with caplog.at_level(logging.WARNING, logger='nf_zoo'):
        model = timm.create_model('wn_resnet50.a1_in1k', pretrained=True, dtype=torch.float64).eval()
    assert caplog.records == []
    torch.testing.assert_close(model(x.double()), expected, rtol=0, atol=1e-12 * largest)
    assert not any('running' in key for key in model.state_dict())
    assert model.pretrained_cfg['tag'] == 'a1_in1k' and model.pretrained_cfg['license'] == 'apache-2.0'

    with caplog.at_level(logging.WARNING, logger='nf_zoo'):
        model = timm.create_model('wn_resnet50', pretrained=True).eval()
    (line,) = caplog.messages
    assert 'timm/resnet50.a1_in1k' in line and 'apache-2.0' in line
    torch.testing.assert_close(model(x).double(), expected, rtol=0, atol=6e-7 * largest)


def test_the_readmes_first_example(timms_hub: Hub, resnet50: nn.Module) -> None:
    readme = (Path(__file__).parents[2] / 'README.md').read_text(encoding='utf-8')
    names: dict[str, nn.Module] = {}
    exec(readme.partition('```python\n')[2].partition('```')[0], names)
    x = torch.randn(1, 3, 64, 64)
    expected = resnet50(x)
    model = names['model'].eval()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=2e-6 * expected.abs().max().item())
    assert not any('running' in key for key in model.state_dict())
