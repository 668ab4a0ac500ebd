"""A batch-normalised ResNet's convolutions as the start of any method."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.resnet import BasicBlock, ResNet

NAMES = ['eunnet18', 'fixup_resnet18', 'skipinit_resnet18', 'rescalenet18']


@pytest.fixture(scope='module')
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], str]:
    state = ResNet(BasicBlock, [1, 2, 1, 1]).state_dict()
    path = tmp_path_factory.mktemp('resnet') / 'resnet.safetensors'
    save_file(state, path)
    return state, str(path)


@pytest.mark.parametrize('name', NAMES)
def test_convolutions_come_from_a_resnet_and_the_rest_from_the_method(name, resnet):
    state, path = resnet
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=dict(file=path))
    torch.manual_seed(0)
    model = timm.create_model(name, depths=(1, 2, 1, 1), **kwargs)
    assert torch.equal(model.stem.conv.weight, state['conv1.weight'])
    assert torch.equal(model.stages[1][1].conv2.weight, state['layer2.1.conv2.weight'])
    shortcut = model.stages[1][0].downsample
    assert torch.equal(getattr(shortcut, 'conv', shortcut).weight, state['layer2.0.downsample.0.weight'])
    assert torch.equal(model.head.fc.bias, state['fc.bias'])
    torch.manual_seed(0)
    fresh = timm.create_model(name, depths=(1, 2, 1, 1)).state_dict()
    for key, value in model.state_dict().items():
        if not key.endswith('.weight') and 'head' not in key:
            assert torch.equal(value, fresh[key]), key


def test_another_depth_is_refused(resnet):
    with pytest.raises(RuntimeError, match=r'stages\.2\.1\.conv1\.weight'):
        overlay = dict(file=resnet[1])
        timm.create_model('fixup_resnet18', depths=(1, 2, 2, 1), pretrained=True, pretrained_cfg_overlay=overlay)
