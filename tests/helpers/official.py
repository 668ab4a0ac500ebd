"""Small networks under the names that the papers' own code gives its parts, to load from and compare with."""

from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

MIDS = {True: (64, 128, 256, 512), False: (16, 32, 64)}


class OfficialNet(nn.Module):
    """conv1, layer1 ..., fc, in float64 and general position; a method's subclass gives the rest and forward.

    ``block(in_chs, mid_chs, out_chs, stride, index)`` makes a block; ``large``: the ImageNet layout.
    """

    def __init__(self, block: Callable[..., nn.Module], depths: tuple[int, ...], large: bool, bottleneck: bool):
        super().__init__()
        mids = MIDS[large]
        self.large = large
        self.depths = depths
        self.conv1 = self.conv(3, mids[0], 7 if large else 3, 2 if large else 1)
        chs, index = mids[0], 0
        for i, (mid, depth) in enumerate(zip(mids, depths, strict=True)):
            out, blocks = (4 * mid if bottleneck else mid), []
            for j in range(depth):
                blocks.append(block(chs, mid, out, 2 if i > 0 and j == 0 else 1, index))
                chs, index = out, index + 1
            setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(chs, 1000 if large else 10)

    @staticmethod
    def conv(in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> nn.Module:
        return nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)

    def body(self, x: Tensor) -> Tensor:
        """All layers, after the stem's convolution and what it adds."""
        x = x.relu()
        if self.large:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for i in range(len(self.depths)):
            x = getattr(self, f'layer{i + 1}')(x)
        return x

    def randomize(self) -> 'OfficialNet':
        self.double().eval()
        with torch.no_grad():
            for p in self.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return self


def shapes(in_chs: int, mid: int, out: int, stride: int) -> list[tuple[int, int, int, int]]:
    """(in, out, kernel, stride) of a block's convolutions."""
    if out == mid:
        return [(in_chs, out, 3, stride), (out, out, 3, 1)]
    return [(in_chs, mid, 1, 1), (mid, mid, 3, stride), (mid, out, 1, 1)]


def adopted(name: str, theirs: OfficialNet, folder: Path, **kwargs) -> nn.Module:
    """Our model with the other's weights, through timm and a file. Loading is strict."""
    path = folder / 'official.safetensors'
    save_file(theirs.state_dict(), path)
    overlay = dict(file=str(path))
    kwargs = dict(depths=theirs.depths, dtype=torch.float64, **kwargs)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def assert_same(ours: nn.Module, theirs: OfficialNet, x: Tensor) -> None:
    """Equal logits, and equal gradients of every parameter."""
    logits = ours(x), theirs(x)
    torch.testing.assert_close(*logits, rtol=1e-6, atol=1e-6)
    for y in logits:
        (y * torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)).sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    grads |= {name: torch.zeros_like(b) for name, b in theirs.named_buffers()}
    renamed = ours.checkpoint_filter(grads, ours)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, renamed[name].view_as(p), rtol=1e-6, atol=1e-6)
