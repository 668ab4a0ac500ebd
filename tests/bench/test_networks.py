"""What the benches of networks measure."""

import pytest
import torch

from nf_zoo.bench import imports, networks
from nf_zoo.bench.imports import bench_import
from nf_zoo.bench.memory import bench_memory, peak_bytes
from nf_zoo.bench.networks import against_line, bench_depth, bench_inference, bench_training
from nf_zoo.bench.settings import Settings
from nf_zoo.errors import UserError

SMALL = dict(batch_size=2, img_size=16, rounds=2)


def test_inference_has_rows_of_the_network_and_of_its_folded_form() -> None:
    rows = list(bench_inference(['eunnet20_cifar'], Settings(**SMALL, peers=('bn', 'floor'))))
    assert [(row.what, row.peer) for row in rows] == [
        (f'eunnet20_cifar{form}: inference, batch 2', peer)
        for form in (', folded', '')
        for peer in ('BN twin', 'floor')
    ]
    assert all(len(row.values) == len(row.peer_values) == 2 and row.unit == 'ms' for row in rows)


def test_a_network_of_timms_is_not_folded() -> None:
    (row,) = bench_inference(['resnet18'], Settings(batch_size=1, img_size=32, rounds=1, peers=('eunnet18',)))
    assert (row.what, row.peer) == ('resnet18: inference, batch 1', 'eunnet18')


def test_without_a_batch_size_inference_takes_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, 'interleaved', lambda calls, *_, **__: {name: [1.0] for name in calls})
    rows = bench_inference(['nf_resnet20_cifar'], Settings())
    assert [row.what.partition(': ')[2] for row in rows] == [f'inference, batch {n}' for n in (1, 1, 8, 8)]


@pytest.mark.parametrize('options', [{}, {'bfloat16': True}, {'channels_last': False}])
def test_a_training_step_changes_the_weights(options: dict[str, bool]) -> None:
    done = []
    settings = Settings(**SMALL, **options, advance=lambda: done.append(1))
    (row,) = bench_training(['wn_resnet20_cifar'], settings)
    assert (row.what, row.peer) == ('wn_resnet20_cifar: training step, batch 2', 'BN twin')
    assert len(done) == 2 * 3  # two networks, two rounds and the one that isn't counted


def test_the_peer_eager_is_the_network_and_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda model: compiled.append(model) or model)
    settings = Settings(**SMALL, compiled=True, peers=('bn', 'eager'))
    for bench in (bench_training, bench_memory):
        assert {row.peer for row in bench(['wn_resnet20_cifar'], settings)} == {'BN twin', 'eager'}
        assert len(compiled) == 2 and len(set(compiled)) == 2  # the network and its twin
        compiled.clear()
    *_, row = bench_inference(['wn_resnet20_cifar'], settings)
    assert row.peer == 'eager' and len(compiled) == 3  # the network, folded too, and its twin


def test_a_step_updates_and_keeps_its_gradients_on_request() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    step = networks.Step(model, torch.ones(2, 3, 2, 2), torch.tensor([0, 1]), Settings(), keep=True)
    step.optimizer.param_groups[0]['lr'] = 0.1
    before = model[1].weight.clone()
    step()
    assert not torch.equal(model[1].weight, before) and not model[1].weight.grad.any()
    step.keep = False
    step()
    assert model[1].weight.grad is None


def test_memory_per_image_and_at_the_peak() -> None:
    kept, peak = bench_memory(['eunnet20_cifar'], Settings(**SMALL))
    assert (kept.what, kept.unit) == ('eunnet20_cifar: kept for backward, per image', 'MiB') and kept.ratio < 0.6
    assert peak.what == "eunnet20_cifar: activations' peak, batch 2"
    assert peak.value > kept.value and peak.unit == 'MiB'


def test_the_peak_is_the_most_at_once() -> None:
    def function() -> None:
        for _ in range(3):
            first = torch.ones(1 << 18)
            del first
        second = torch.ones(1 << 18)
        second.add_(1)
        del second
        third = torch.ones(1 << 18)
        third = third + third
        del third

    assert peak_bytes(function, torch.device('cpu')) == 2 * 4 * (1 << 18)


def test_depth_is_compared_with_a_straight_line() -> None:
    rows = against_line('{} layers', [50, 100, 600], [[5.0], [10.0, 10.0], [60.0]], 'ms', 'net')
    assert [row.what for row in rows] == ['50 layers', '100 layers', '600 layers']
    assert [row.ratio for row in rows] == pytest.approx([1, 1, 1])
    bent = against_line('{}', [1, 2, 3], [[1.0], [4.0], [9.0]], 'ms', 'net')
    assert max(row.ratio for row in bent) > 1.1


def test_depth_builds_networks_of_so_many_layers() -> None:
    rows = list(
        bench_depth(['eunnet20_cifar'], Settings(batch_size=1, img_size=8, rounds=1), layers=(8, 20), width=0.5)
    )
    assert [row.what for row in rows] == [
        f'eunnet20_cifar, {n} layers: {what}' for what in ('training step', 'kept for backward') for n in (8, 20)
    ]
    with pytest.raises(UserError, match='resnet18: the depth'):
        list(bench_depth(['resnet18'], Settings()))


def test_the_import_is_measured_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, '_CODE', 'print(0.5, 0.25)')
    (row,) = bench_import(rounds=2)
    assert (row.values, row.peer_values, row.unit) == ([250.0] * 2, [500.0] * 2, 'ms')
    monkeypatch.setattr(imports, '_CODE', 'import nosuchmodule')
    with pytest.raises(UserError, match='nosuchmodule'):
        bench_import(rounds=1)


def test_an_unknown_network_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'eunnet20_cifar'"):
        list(bench_training(['eunnet20_cifer'], Settings()))
