"""Networks against their peers: inference, a training step, and the bytes kept for backward.

The peers: "BN" is timm's resnet50, "timm nf" timm's own nf_resnet50, "floor" the same network with plain convolutions.
"""

import itertools
from collections.abc import Callable

import timm
import torch
from timm.models import nfnet
from torch import Tensor, nn
from torch.nn import functional as F

from ..folding.network import fold
from ..saved_memory import saved_bytes
from .measure import BenchRow, floor_of, interleaved


def bench_inference(rounds: int = 15) -> list[BenchRow]:
    """Folded nf_resnet50 against timm's, and EUNNet-50 against its floor, at batch 1 and 8."""
    nf, eun = timm.create_model('nf_resnet50').eval(), timm.create_model('eunnet50').eval()
    folded = fold(eun)
    # Each by itself with its peer: more networks in turn share the caches, and the times scatter.
    rivals = [
        {'nf_resnet50, folded': fold(nf), 'timm nf': nfnet.nf_resnet50().eval()},
        {'eunnet50, folded': folded, 'eunnet50': eun, 'floor': floor_of(folded)},
    ]
    rows = []
    for models, batch in itertools.product(rivals, (1, 8)):
        x = torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
        calls = {name: _forward(model.to(memory_format=torch.channels_last), x) for name, model in models.items()}
        with torch.inference_mode():
            times = interleaved(calls, rounds)
        *ours, peer = times
        rows += [BenchRow(f'{name}: inference, batch {batch}', peer, times[name], times[peer], 'ms') for name in ours]
    return rows


def bench_training(rounds: int = 5) -> list[BenchRow]:
    """Bytes that autograd keeps for backward, and the time of a step, at 224 pixels against batch normalization."""
    models = {name: timm.create_model(name).train() for name in ('resnet50', 'eunnet50', 'nf_resnet50')}
    kept = {name: saved_bytes(model) / 2**20 for name, model in models.items()}
    x, y = torch.randn(8, 3, 224, 224).to(memory_format=torch.channels_last), torch.randint(0, 1000, (8,))
    calls = {name: _step(model.to(memory_format=torch.channels_last), x, y) for name, model in models.items()}
    times = interleaved(calls, rounds)
    rows = []
    for name in ('eunnet50', 'nf_resnet50'):
        rows.append(BenchRow(f'{name}: kept for backward, per image', 'BN', kept[name], kept['resnet50'], 'MiB'))
        rows.append(BenchRow(f'{name}: training step, batch 8', 'BN', times[name], times['resnet50'], 'ms'))
    return rows


def _forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: model(x)


def _step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad(set_to_none=True)

    return step
