from functools import partial

import pytest
import torch
from official import OfficialNet, adopted, assert_same, shapes
from torch import Tensor, nn


class EUNConv(nn.Conv2d):
    """The official code's form: one mean and one variance of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt())


def euconv(in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> EUNConv:
    return EUNConv(in_chs, out_chs, kernel, stride, kernel // 2)


class OfficialBlock(nn.Module):
    def __init__(self, in_chs: int, mid: int, out: int, stride: int, index: int, depth: int):
        super().__init__()
        k, self.beta = depth - 1 + index, depth**-0.5
        self.alpha = (k / (k + 1)) ** 0.5
        self.n = len(shapes(in_chs, mid, out, stride))
        for i, shape in enumerate(shapes(in_chs, mid, out, stride), 1):
            setattr(self, f'conv{i}', euconv(*shape))
        self._scale = nn.Parameter(torch.ones(1))
        self.downsample = nn.Identity()
        if in_chs != out:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.downsample = nn.Sequential(pool, euconv(in_chs, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        f = x
        for i in range(1, self.n + 1):
            f = getattr(self, f'conv{i}')(f.relu() if i > 1 else f)
        return (self.beta * self._scale * f + self.alpha * self.downsample(x)).relu()


class Official(OfficialNet):
    conv = staticmethod(euconv)

    def __init__(self, depths: tuple[int, ...], bottleneck: bool):
        super().__init__(partial(OfficialBlock, depth=sum(depths)), depths, True, bottleneck)
        self.randomize()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.conv1(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ('name', 'depths', 'bottleneck'), [('eunnet50', (2, 1, 1, 1), True), ('eunnet18', (1, 2, 1, 1), False)]
)
def test_official_checkpoints(name, depths, bottleneck, tmp_path):
    theirs = Official(depths, bottleneck)
    ours = adopted(name, theirs, tmp_path, norm='tensor')
    assert_same(ours, theirs, torch.randn(2, 3, 64, 64, dtype=torch.float64))
