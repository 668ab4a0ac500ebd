import pytest
import timm
import torch
import torch.nn.functional as F
from official import OfficialNet, adopted, assert_same, shapes
from sizes import SIZES
from torch import Tensor, nn

from nf_zoo.saved_memory import saved_bytes
from nf_zoo.train.groups import parameter_groups

PARAMS = {
    'fixup_resnet18': 11_679_954,
    'fixup_resnet34': 21_780_730,
    'fixup_resnet50': 25_504_026,
    'fixup_resnet101': 44_444_049,
    'fixup_resnet152': 60_041_736,
    'fixup_resnet20_cifar': 268_393,
    'fixup_resnet56_cifar': 849_091,
    'fixup_resnet110_cifar': 1_720_138,
}
MACS = {
    'fixup_resnet50': 4_089_184_256,
    'fixup_resnet20_cifar': 40_551_040,
    'fixup_resnet56_cifar': 125_485_696,
    'fixup_resnet110_cifar': 252_887_680,
}


class OfficialBlock(nn.Module):
    def __init__(self, in_chs: int, mid: int, out: int, stride: int, index: int, large: bool):
        super().__init__()
        self.n = len(shapes(in_chs, mid, out, stride))
        for i, shape in enumerate(shapes(in_chs, mid, out, stride), 1):
            setattr(self, f'conv{i}', OfficialNet.conv(*shape))
            for kind in 'ab':
                setattr(self, f'bias{i}{kind}', nn.Parameter(torch.zeros(1)))
        self.scale = nn.Parameter(torch.ones(1))
        self.pads = in_chs != out and not large
        self.downsample = OfficialNet.conv(in_chs, out, 1, stride) if in_chs != out and large else None

    def forward(self, x: Tensor) -> Tensor:
        h, f = x, x
        if self.pads:
            h = F.avg_pool2d(x + self.bias1a, 1, 2)
            h = torch.cat([h, torch.zeros_like(h)], 1)
        elif self.downsample is not None:
            h = self.downsample(x + self.bias1a)
        for i in range(1, self.n + 1):
            f = getattr(self, f'conv{i}')(f + getattr(self, f'bias{i}a'))
            f = f * self.scale if i == self.n else f
            f = f + getattr(self, f'bias{i}b')
            f = f.relu() if i < self.n else f
        return (f + h).relu()


class Official(OfficialNet):
    def __init__(self, depths: tuple[int, ...], large: bool, bottleneck: bool):
        super().__init__(lambda *site: OfficialBlock(*site, large=large), depths, large, bottleneck)
        self.bias1 = nn.Parameter(torch.zeros(1))
        self.bias2 = nn.Parameter(torch.zeros(1))
        self.randomize()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.conv1(x) + self.bias1).mean((2, 3)) + self.bias2)


@pytest.mark.parametrize('name', PARAMS)
def test_counts(name):
    measured = SIZES[name]
    assert measured['params'] == PARAMS[name]
    assert measured['macs'] == MACS.get(name, measured['macs'])


@pytest.mark.parametrize(
    ('name', 'depths', 'bottleneck'),
    [
        ('fixup_resnet50', (2, 1, 1, 1), True),
        ('fixup_resnet18', (1, 2, 1, 1), False),
        ('fixup_resnet20_cifar', (2, 1, 2), False),
    ],
)
def test_official_checkpoints(name, depths, bottleneck, tmp_path):
    theirs = Official(depths, not name.endswith('_cifar'), bottleneck)
    x = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    assert_same(adopted(name, theirs, tmp_path), theirs, x)


@pytest.mark.parametrize('name', ['fixup_resnet50', 'fixup_resnet20_cifar'])
def test_starts_as_the_identity_path_with_logits_zero(name):
    model = timm.create_model(name, depths=(2,) * (3 if 'cifar' in name else 4)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not model(x).any()
        x = model.stem(x)
        for block in (block for stage in model.stages for block in stage):
            h = x if block.downsample is None else block.downsample(x)
            x = block(x)
            assert torch.equal(x, h.relu()) and x.std() > 0


@pytest.mark.parametrize(('name', 'convs'), [('fixup_resnet50', 3), ('fixup_resnet18', 2)])
def test_init(name, convs):
    block = timm.create_model(name, depths=(2, 2, 1, 1)).stages[1][0]
    for i in range(1, convs):
        weight = getattr(block, f'conv{i}').weight
        he = (2 / weight[:, 0].numel()) ** 0.5
        assert weight.std().item() == pytest.approx(he * 6 ** (-1 / (2 * convs - 2)), rel=0.03)
    assert not getattr(block, f'conv{convs}').weight.any() and block.scale.item() == 1
    assert block.downsample.weight.std().item() == pytest.approx((2 / block.downsample.out_channels) ** 0.5, rel=0.03)


def test_scalars_and_biases_learn_at_a_tenth_of_the_rate():
    model = timm.create_model('fixup_resnet20_cifar', device='meta')
    groups = parameter_groups(model, 1e-4)
    slow = {id(p) for group in groups if group['lr_scale'] == 0.1 for p in group['params']}
    assert {name for name, p in model.named_parameters() if id(p) in slow} == {
        name for name, p in model.named_parameters() if p.numel() == 1 or name == 'head.fc.bias'
    }
    assert {group['weight_decay'] for group in groups} == {1e-4}


def test_the_scalar_follows_squeeze_excite():
    block = timm.create_model('fixup_resnet50', depths=(1, 1, 1, 1), attn_layer='se').stages[0][0].eval()
    with torch.no_grad():
        block.conv3.weight.normal_()
        x = torch.randn(1, 64, 8, 8)
        full, h = block(x), block.downsample(x)
        f = block.attn(block.conv3(block.conv2(block.conv1(x).relu()).relu()))
        torch.testing.assert_close(full, (h + f).relu())
        block.scale.fill_(-0.5)
        block.bias3b.fill_(0.25)
        torch.testing.assert_close(block(x), (h - 0.5 * f + 0.25).relu())


def test_keeps_less_for_backward_than_the_official_code():
    ours = timm.create_model('fixup_resnet50', depths=(2, 1, 1, 1))
    assert saved_bytes(ours, 32) < 0.65 * saved_bytes(Official((2, 1, 1, 1), True, True).float(), 32)
