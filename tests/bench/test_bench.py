"""What the benches measure and how; never how fast."""

import pytest
import timm
import torch
from torch import nn

from nf_zoo import fold
from nf_zoo.bench.engine import bench_engine
from nf_zoo.bench.epoch import bench_epoch
from nf_zoo.bench.exports import bench_export
from nf_zoo.bench.measure import BenchRow, floor_of, interleaved
from nf_zoo.cli.bench import BENCHES, bench
from nf_zoo.errors import UserError
from nf_zoo.layers.input_norm import InputNormConv2d, Standardize
from nf_zoo.saved_memory import saved_bytes


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    calls: list[str] = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in 'ab'}, rounds=3)
    assert calls == list('ab') * 4
    assert set(times) == {'a', 'b'} and all(t >= 0 for t in times.values())
    calls.clear()
    interleaved({name: lambda name=name: calls.append(name) for name in 'ab'}, rounds=2, warm=True)
    assert calls == list('ab') + list('aabb') * 2


def test_a_row_is_a_ratio():
    assert BenchRow('x', 'peer', 3.0, 2.0, 'ms').ratio == 1.5
    assert '1.500 x peer' in str(BenchRow('x', 'peer', 3.0, 2.0, 'ms'))


@pytest.mark.parametrize('folded', [False, True])
def test_floor_is_the_same_network_without_normalisation(folded):
    model = timm.create_model('eunnet50', depths=(1, 1, 1, 1), num_classes=10)
    model = fold(model) if folded else model
    floor = floor_of(model)
    assert not any(isinstance(m, InputNormConv2d | Standardize) for m in floor.modules())
    assert any(isinstance(m, InputNormConv2d | Standardize) for m in model.modules())
    count = [sum(p.numel() for p in m.parameters()) for m in (model, floor)]
    assert count[0] == count[1]
    assert floor(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_saved_bytes_counts_each_storage_once():
    """A convolution keeps its input, ReLU its output, which is the next convolution's input."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 1))
    assert saved_bytes(net, 16) == 4 * 16 * 16 * (3 + 8 + 4)


def test_the_engine_runs_beside_a_bare_loop():
    (row,) = bench_engine(rounds=1, steps=2)
    assert row.peer == 'bare loop' and row.value > 0 and row.peer_value > 0


def test_an_epoch_runs_beside_timms():
    options = {'model_kwargs': {'depths': [1, 1, 1]}, 'batch_size': 4, 'train_sizes': {0: 16, 20: 32}, 'epochs': 30}
    full, mean = bench_epoch(rounds=1, steps=2, workers=0, **options)
    assert full.peer == mean.peer == "timm's loader and loop"
    assert full.value > 0 and mean.value > 0 and full.peer_value == mean.peer_value > 0


def test_unknown_bench_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'engine'"):
        bench('engin')
    assert set(BENCHES) == {'engine', 'epoch', 'inference', 'training', 'export'}


@pytest.mark.soak
def test_exports_beside_their_peers():
    pytest.importorskip('onnxruntime')
    rows = {f'{row.what}, {row.peer}': row for row in bench_export(rounds=1, side=32, formats=('ONNX', 'TorchScript'))}
    assert rows['nf_resnet50 ONNX: nodes, timm nf'].value == 125
    assert rows['nf_resnet50 ONNX: nodes after ONNX Runtime, BN'].value <= 75
    assert all(0 < row.ratio < 1 for what, row in rows.items() if 'largest difference' in what)
    assert {
        'python kit, nf_resnet50: start to first answer, PyTorch eager',
        'python kit, eunnet50: one more picture, PyTorch eager',
    } <= set(rows)
    assert {what.partition(',')[0] for what in rows if 'latency' in what} == {
        f'{name} {format}: latency' for name in ('nf_resnet50', 'eunnet50') for format in ('ONNX', 'TorchScript')
    }
