"""convert to an EUNNet: fitted on images, so near to the original and not equal to it."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision.datasets import CIFAR10

from nf_zoo import convert, fold
from nf_zoo.errors import UserError
from nf_zoo.layers.input_norm import InputNormConv2d
from tools.conversion import randomize


def test_images_of_the_same_statistics_are_converted_exactly() -> None:
    network = randomize(
        nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        )
    ).double()
    pixels = torch.randn(3, 36, dtype=torch.float64)
    images = torch.stack([pixels[:, torch.randperm(36)].view(3, 6, 6) for _ in range(8)])
    converted = convert(network, to='eunnet', images=images)
    assert [type(m) for m in converted.modules() if isinstance(m, nn.Conv2d)] == [InputNormConv2d] * 2
    torch.testing.assert_close(converted(images), network.eval()(images), rtol=1e-9, atol=1e-9)
    assert converted.calibration.layers == 2 and converted.calibration.difference < 1e-9


@pytest.mark.parametrize('name', ['bn_resnet20_cifar', 'wn_resnet20_cifar'])
def test_a_cifar_network_becomes_the_eunnet_of_its_depth(name: str) -> None:
    model = randomize(timm.create_model(name, depths=(1, 1, 2), in_chans=1, num_classes=5)).eval()
    images = torch.randn(16, 1, 32, 32)
    converted = convert(model, to='eunnet', images=images)
    assert converted.pretrained_cfg['architecture'] == 'eunnet20_cifar'
    same = timm.create_model('eunnet20_cifar', depths=(1, 1, 2), in_chans=1, num_classes=5)
    same.load_state_dict(converted.state_dict())
    torch.testing.assert_close(same.eval()(images), converted(images))
    torch.testing.assert_close(fold(converted)(images), converted(images), rtol=1e-4, atol=1e-4)
    # A network that knows nothing of the original differs by about 1.4: the outputs have nothing in common.
    assert converted.calibration.difference < 0.5


def test_a_resnet_of_the_imagenet_layout_keeps_its_structure() -> None:
    model = randomize(timm.create_model('test_resnet', num_classes=5)).eval()
    converted = convert(model, to='eunnet', images=torch.randn(4, 3, 64, 64))
    assert type(converted) is type(model)
    assert converted.calibration.layers == 15 and converted.calibration.difference < 0.5
    assert not any('running' in key for key in converted.state_dict())
    converted.train()(torch.randn(1, 3, 64, 64)).sum().backward()


def test_images_are_asked_for() -> None:
    model = timm.create_model('bn_resnet20_cifar', depths=(1, 1, 1))
    for images in (None, torch.randn(3, 32, 32), torch.randn(1, 3, 32, 32), [torch.randn(3, 32, 32)] * 2):
        with pytest.raises(UserError, match='images='):
            convert(model, to='eunnet', images=images)
    with pytest.raises(UserError, match='NaN or infinity'):  # not: a network of NaN
        convert(model, to='eunnet', images=torch.full((4, 3, 32, 32), float('nan')))
    with pytest.raises(UserError, match='does not run on the example'):
        convert(model, to='eunnet', images=torch.randn(4, 2, 32, 32))
    with pytest.raises(UserError, match="images are for to='eunnet'"):
        convert(model, images=torch.randn(4, 3, 32, 32))


def test_the_bundled_control_keeps_most_of_its_accuracy(cifar_dir: Path) -> None:
    model = timm.create_model('bn_resnet20_cifar.cifar10', pretrained=True).eval()
    data = CIFAR10(cifar_dir, train=False)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    images = (torch.tensor(data.data[:600]).permute(0, 3, 1, 2) / 255 - mean) / std
    labels = torch.tensor(data.targets[:600])
    converted = convert(model, to='eunnet', images=images[:200])
    with torch.no_grad():
        right = (converted(images[200:]).argmax(1) == labels[200:]).float().mean().item()
    assert right > 0.8
