"""What the benches measure and how; never how fast."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from nf_zoo.bench import engine, epoch, exports
from nf_zoo.bench.exports import bench_export
from nf_zoo.bench.measure import BenchRow, interleaved
from nf_zoo.bench.settings import Settings
from nf_zoo.net.network import ResNet
from nf_zoo.saved_memory import saved_bytes


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    calls: list[str] = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in 'ab'}, rounds=3)
    assert calls == list('ab') * 4
    assert set(times) == {'a', 'b'} and all(len(found) == 3 and min(found) >= 0 for found in times.values())
    calls.clear()
    interleaved({name: lambda name=name: calls.append(name) for name in 'ab'}, rounds=2, warm=True)
    assert calls == list('ab') + list('aabb') * 2
    calls.clear()
    interleaved({'a': lambda: calls.append('a')}, rounds=2, advance=lambda: calls.append('|'))
    assert calls == list('a|a|a|')


def test_a_row_is_the_median_of_the_ratios_of_its_rounds() -> None:
    row = BenchRow('x', 'peer', [3.0, 3.0, 9.0], [2.0, 2.0, 2.0], 'ms', 'net')
    assert (row.value, row.peer_value, row.ratio) == (3.0, 2.0, 1.5)
    assert row.ratios == (1.5, 1.5, 3.0) and '1.500 [1.500, 3.000] x peer' in str(row)
    assert BenchRow('x', 'line', [3.0, 5.0], [2.0], 'ms').ratios == pytest.approx((1.75, 2.0, 2.25))
    slow = BenchRow('x', 'peer', [1.0, 5.0, 6.0], [1.0, 2.0, 3.0], 'ms')  # not 5 / 2: each round has its own speed
    assert slow.ratio == 2.0
    single = BenchRow('x', 'peer', [3.0], [2.0], 'MiB')
    assert '1.500 x peer' in str(single) and single.as_dict()['n'] == 1
    assert row.as_dict() | {'values': [], 'peer_values': []} == {
        'network': 'net', 'what': 'x', 'peer': 'peer', 'unit': 'ms', 'n': 3, 'ratio': 1.5,
        'ratio_quartiles': [1.5, 3.0], 'value': 3.0, 'quartiles': [3.0, 6.0],
        'peer_value': 2.0, 'peer_quartiles': [2.0, 2.0], 'values': [], 'peer_values': [],
    }  # fmt: skip


def test_saved_bytes_counts_each_storage_once():
    """A convolution keeps its input, ReLU its output, which is the next convolution's input."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1))
    assert saved_bytes(net, 16) == 4 * 16 * 16 * (3 + 8 + 4)


class Watch:
    """In the place of `interleaved`: calls each function once, and writes down the images that networks train on."""

    def __init__(self, times: dict[str, float]):
        self.times = times
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def __call__(
        self, functions: dict[str, Callable[[], object]], *args: object, **kwargs: object
    ) -> dict[str, list[float]]:
        for name, function in functions.items():
            seen = self.shapes.setdefault(name, [])

            def note(module: nn.Module, args: tuple, seen: list = seen) -> None:
                if isinstance(module, ResNet):
                    assert module.training
                    seen.append(tuple(args[0].shape))

            with register_module_forward_pre_hook(note):
                function()
        return {name: [self.times[name]] for name in functions}


TINY = {'model_kwargs': {'depths': [1, 1, 1]}, 'batch_size': 4}


def test_the_engine_and_the_bare_loop_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch({'engine': 6.0, 'loop': 4.0})
    monkeypatch.setattr(engine, 'interleaved', watch)
    (row,) = engine.bench_engine(steps=2, **TINY)
    assert watch.shapes == {'engine': [(4, 3, 32, 32)] * 2, 'loop': [(4, 3, 32, 32)] * 2}
    assert (row.what, row.peer, row.unit) == ('eunnet20_cifar: training step', 'bare loop', 'ms')
    assert (row.value, row.peer_value, row.ratio) == (3.0, 2.0, 1.5)


def test_an_epoch_is_that_of_the_recipe_and_of_timms_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates of 16 pixels take 1 ms, of 32 pixels 4 ms: two thirds of the recipe's epochs are small ones."""
    watch = Watch({'16': 1.0, '32': 4.0, 'timm': 8.0})
    monkeypatch.setattr(epoch, 'interleaved', watch)
    full, mean = epoch.bench_epoch(steps=2, workers=0, **TINY, train_sizes={0: 16, 20: 32}, epochs=30)
    assert watch.shapes == {name: [(4, 3, side, side)] * 2 for name, side in (('16', 16), ('32', 32), ('timm', 32))}
    assert full.peer == mean.peer == "timm's loader and loop"
    updates = 50_000 / 4
    assert full.value == pytest.approx(0.004 / 2 * updates) and full.ratio == pytest.approx(0.5)
    assert mean.value == pytest.approx((2 / 3 * 0.001 + 1 / 3 * 0.004) / 2 * updates)
    assert full.peer_value == mean.peer_value == pytest.approx(0.008 / 2 * updates)


def test_a_session_of_the_bench_leaves_onnx_runtime_as_it_was(tmp_path: Path) -> None:
    """A thread pool for all sessions would stay, and refuse every session that has its own."""
    onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ('input', 'output')]
    node = onnx.helper.make_node('Relu', ['input'], ['output'])
    graph = onnx.helper.make_graph([node], 'relu', values[:1], values[1:])
    file = tmp_path / 'relu.onnx'
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid('', 18)]), file)
    x = torch.tensor([-1.0, 2.0])
    (mine,) = exports._load('relu ONNX', file)(x)
    (plain,) = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider']).run(None, {'input': x.numpy()})
    assert mine.tolist() == plain.tolist() == [0.0, 2.0]


def test_every_format_stands_beside_pytorch_and_onnx_beside_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(exports, 'bench_kits', lambda *_: [])
    name, done = 'convshort_resnet20_cifar', []
    settings = Settings(batch_size=2, rounds=2, peers=('floor', 'eager'), advance=lambda: done.append(1))
    rows = list(bench_export([name], settings, formats=('TorchScript',)))
    assert {row.network for row in rows} == {name}
    found = {(row.what.removeprefix(f'{name} '), row.peer): row for row in rows}
    assert len(found) == len(rows)
    latency = 'latency, batch 2'
    assert {key for key in found if latency in key[0]} == {
        (f'ONNX: {latency}', 'floor'),
        (f'ONNX: {latency}', 'eager'),
        (f'TorchScript: {latency}', 'eager'),
    }
    assert len(done) == 3 * 4  # eager, two formats and the floor, in two rounds and the one that isn't counted
    # Folded, the network has the floor's convolutions and nothing else.
    assert found['ONNX: nodes', 'floor'].ratio == found['ONNX: nodes after ONNX Runtime', 'floor'].ratio == 1
    assert found['ONNX: file', 'floor'].ratio == pytest.approx(1, abs=0.01)
    assert all(0 < row.ratio < 1 for (what, _), row in found.items() if 'largest difference' in what)


@pytest.mark.soak
def test_exports_of_large_networks_and_the_programs_that_run_them():
    pytest.importorskip('onnxruntime')
    formats, rows = ('ONNX', 'TorchScript'), {}
    for name, peers in (('nf_resnet50', ('bn', 'timm')), ('eunnet50', ('floor',))):
        for row in bench_export([name], Settings(img_size=32, rounds=1, peers=peers), formats):
            rows[f'{row.what}, {row.peer}'] = row
    assert rows['nf_resnet50 ONNX: nodes, timm nf_resnet50'].value == 125
    assert rows['nf_resnet50 ONNX: nodes after ONNX Runtime, BN resnet50'].value <= 75
    assert all(0 < row.ratio < 1 for what, row in rows.items() if 'largest difference' in what)
    assert {
        'python kit, nf_resnet50: start to first prediction, PyTorch eager',
        'python kit, eunnet50: one more picture, PyTorch eager',
    } <= set(rows)
    assert {what.partition(',')[0] for what in rows if 'latency' in what} == {
        f'{name} {format}: latency' for name in ('nf_resnet50', 'eunnet50') for format in formats
    }
