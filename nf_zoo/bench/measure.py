"""Speed and memory, as ratios to a named peer. Everything in one run is interleaved round by round; medians count.

The peers: "BN" is timm's resnet50, "timm nf" timm's own nf_resnet50, "floor" the same network with plain convolutions.
"""

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.models import nfnet
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError, nearest
from ..layers.input_norm import InputNormConv2d, Standardize
from ..layers.std_conv import plain_conv
from ..saved_memory import saved_bytes


@dataclass(frozen=True)
class Row:
    """``ratio`` is ``value / peer_value``; values in ``unit``."""

    what: str
    peer: str
    value: float
    peer_value: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.value / self.peer_value

    def __str__(self) -> str:
        return (
            f'{self.what:42s} {self.value:9.2f} {self.unit:3s} {self.ratio:6.3f} x {self.peer} ({self.peer_value:.2f})'
        )


def interleaved(
    functions: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = False,
) -> dict[str, float]:
    """Median milliseconds of each function; every round calls all of them in turn, the first is not counted.

    ``warm``: each is called once more before its counted call, so that it follows itself, as in a service.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for count in range(rounds + 1):
        for name, function in functions.items():
            if warm and count:
                function()
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if count:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def floor_of(model: nn.Module) -> nn.Module:
    """A copy, also of a folded network, in which nothing is normalised and every convolution is a plain one.

    The weights are the same ones: where copies happen to lie makes a difference of some percent.
    """
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, InputNormConv2d):
                setattr(module, name, _Plain(child))
            elif isinstance(child, Standardize):
                setattr(module, name, nn.Identity())
    return model


class _Plain(nn.Module):
    def __init__(self, conv: InputNormConv2d):
        super().__init__()
        self.conv = plain_conv(conv, conv.weight, conv.bias)
        self.conv.weight, self.conv.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        return self.conv(x)


# ---- the engine against a bare loop


def bench_engine(rounds: int = 7, model: str = 'eunnet20_cifar', steps: int = 20) -> list[Row]:
    """One epoch of the training engine and of a bare loop over the same model and batches, in turn."""
    from ..train import allocator
    from ..train.data.memory import MemorySet
    from ..train.engine import Run
    from ..train.progress import StopSignal
    from ..train.recipe import Recipe

    n = steps * 128
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    sets = (MemorySet(images, torch.randint(0, 10, (n,)), [str(i) for i in range(10)]),) * 2
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe().with_options(
            dict(model=model, output=folder, smoothing=0.0, lr=0.01, log_interval=steps, sched_on_updates=True)
        )
        run = Run(recipe, Path(folder), lambda line: None, False, sets=sets)
        bare = run.model  # the same one: where another one's weights happen to lie makes a difference of some percent
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        epoch = iter(range(10**6))

        def engine() -> None:
            run.updates = 0
            run.model.train()
            with StopSignal() as stop:
                run.train_epoch(0, stop)

        def loop() -> None:
            for x, y in run.data.train_batches(next(epoch), 0):
                loss = F.cross_entropy(bare(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        with allocator.keep_freed():  # for both, as in a run
            times = interleaved({'engine': engine, 'loop': loop}, rounds)
    return [Row(f'{model}: training step', 'bare loop', times['engine'] / steps, times['loop'] / steps, 'ms')]


# ---- networks against their peers


def bench_inference(rounds: int = 15) -> list[Row]:
    """Folded nf_resnet50 against timm's, and EUNNet-50 against its floor, at batch 1 and 8."""
    from ..folding.network import fold

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
        rows += [Row(f'{name}: inference, batch {batch}', peer, times[name], times[peer], 'ms') for name in ours]
    return rows


def bench_training(rounds: int = 5) -> list[Row]:
    """Bytes that autograd keeps for backward, and the time of a step, at 224 pixels against batch normalization."""
    models = {name: timm.create_model(name).train() for name in ('resnet50', 'eunnet50', 'nf_resnet50')}
    kept = {name: saved_bytes(model) / 2**20 for name, model in models.items()}
    x, y = torch.randn(8, 3, 224, 224).to(memory_format=torch.channels_last), torch.randint(0, 1000, (8,))
    calls = {name: _step(model.to(memory_format=torch.channels_last), x, y) for name, model in models.items()}
    times = interleaved(calls, rounds)
    rows = []
    for name in ('eunnet50', 'nf_resnet50'):
        rows.append(Row(f'{name}: kept for backward, per image', 'BN', kept[name], kept['resnet50'], 'MiB'))
        rows.append(Row(f'{name}: training step, batch 8', 'BN', times[name], times['resnet50'], 'ms'))
    return rows


def _forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: model(x)


def _step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad(set_to_none=True)

    return step


def _bench_export() -> list[Row]:
    from .exports import bench_export

    return bench_export()


def _epoch() -> list[Row]:
    from .epoch import bench_epoch

    return bench_epoch()


BENCHES: dict[str, Callable[[], list[Row]]] = {
    'engine': bench_engine,
    'epoch': _epoch,
    'inference': bench_inference,
    'training': bench_training,
    'export': _bench_export,
}


def bench(what: str) -> list[Row]:
    """Run one bench, or ``all``. Raises UserError: no such bench."""
    if what != 'all' and what not in BENCHES:
        raise UserError(f"no bench '{what}': use {', '.join(BENCHES)} or all{nearest(what, BENCHES)}")
    return [row for name, run in BENCHES.items() if what in (name, 'all') for row in run()]
