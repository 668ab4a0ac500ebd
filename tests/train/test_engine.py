"""The loop: the same as a plain one, its schedule is timm's, and what it leaves behind is true."""

import csv
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from train_toys import run_toy, toy_recipe, toy_set, toys  # noqa: F401

import nf_zoo  # noqa: F401
from nf_zoo.cli.train import main
from nf_zoo.train import Recipe, build, engine, evaluate, load_recipe, report, train
from nf_zoo.train.compare import read_runs
from nf_zoo.train.data.memory import MemoryData, seed_everything
from nf_zoo.train.groups import parameter_groups

pytestmark = pytest.mark.usefixtures('toys')


def rows(run: Path) -> list[dict[str, float]]:
    with open(run / 'summary.csv', newline='') as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def trained(run: Path, **options: Any) -> torch.nn.Module:
    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1], num_classes=3, **options)
    model.load_state_dict(load_file(run / 'model.safetensors'))
    return model


def test_it_computes_what_a_plain_loop_computes(tmp_path: Path) -> None:
    run_toy(tmp_path, sched='none', weight_decay=0.1, smoothing=0.0)
    seed_everything(42)
    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1], num_classes=3).to(memory_format=torch.channels_last)
    groups = [{'params': g['params'], 'lr': 0.05 * g['lr_scale']} for g in parameter_groups(model, 0.1)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=0.1)
    cfg = model.pretrained_cfg
    data = MemoryData(
        toy_set(None, True, False),
        toy_set(None, False, False),
        batch_size=8,
        val_batch_size=8,
        mean=cfg['mean'],
        std=cfg['std'],
        device=torch.device('cpu'),
        seed=42,
    )
    for epoch in range(2):
        total = 0.0
        for x, y in data.train_batches(epoch, 0):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        assert rows(tmp_path)[epoch]['train_loss'] == pytest.approx(total / 5, rel=1e-12)
    for name, value in load_file(tmp_path / 'model.safetensors').items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize('amp', [False, True])
def test_the_results_are_reproduced_by_the_saved_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: bool
) -> None:
    monkeypatch.setattr('nf_zoo.train.build._has_bf16', lambda device: True)
    result = run_toy(tmp_path, smoothing=0.0, amp=amp)
    assert json.loads((tmp_path / 'result.json').read_text()) == result
    weights = (tmp_path / 'model.safetensors').read_bytes()
    assert (result['sha256'], result['bytes']) == (hashlib.sha256(weights).hexdigest(), len(weights))
    assert (result['train_n'], result['metrics']['n'], result['steps']) == (41, 11, 10)
    assert result['classes'] == ['red', 'green', 'blue'] and result['input_size'] == [3, 16, 16]
    model = trained(tmp_path)
    model.pretrained_cfg['input_size'] = (3, 16, 16)
    found = evaluate(model, 'toys', batch_size=4)
    assert found['n'] == 11
    assert {key: found[key] for key in ('top1', 'top5')} == {key: result['metrics'][key] for key in ('top1', 'top5')}
    assert found['loss'] == pytest.approx(result['metrics']['loss'], rel=1e-5)


def test_it_learns(tmp_path: Path) -> None:
    result = run_toy(tmp_path, epochs=6, hflip=0.0)
    assert result['metrics']['top1'] == 100


@pytest.mark.usefixtures('rendered')
def test_the_folder_is_complete_and_the_recipe_in_it_repeats_the_run(tmp_path: Path) -> None:
    run_toy(tmp_path / 'a')
    names = {path.name for path in (tmp_path / 'a').iterdir()}
    files = 'recipe.yaml summary.csv times.csv checkpoints model.safetensors best.safetensors curves.png result.json'
    assert names == set(files.split())
    again = load_recipe(tmp_path / 'a' / 'recipe.yaml', {'output': str(tmp_path / 'b')})
    train(again, log=lambda line: None, bar=False)
    for name in ('summary.csv', 'model.safetensors'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_result_and_checkpoints_hold_no_path_of_the_machine(tmp_path: Path) -> None:
    run_toy(tmp_path, data_dir=str(tmp_path / 'somewhere'))
    for path in [tmp_path / 'result.json', *(tmp_path / 'checkpoints').glob('*.json')]:
        assert str(tmp_path) not in path.read_text()


def test_the_learning_rate_follows_timms_schedule(tmp_path: Path) -> None:
    run_toy(tmp_path, epochs=4, warmup_epochs=1, warmup_lr=0.01, min_lr=0.001, lr=0.05)
    # the rate of each epoch's last update; 5 updates an epoch, the first 5 a straight line from 0.01
    expected = [0.01 + 4 / 5 * 0.04]
    expected += [0.001 + 0.049 / 2 * (1 + math.cos(math.pi * u / 20)) for u in (9, 14, 19)]
    assert [row['lr'] for row in rows(tmp_path)] == pytest.approx(expected)


def test_accumulated_gradients_equal_a_large_batch(tmp_path: Path) -> None:
    options = {'sched': 'none', 'epochs': 1, 'lr': 0.01}
    run_toy(tmp_path / 'large', batch_size=8, **options)
    run_toy(tmp_path / 'parts', batch_size=4, grad_accum_steps=2, **options)
    large, parts = (load_file(tmp_path / name / 'model.safetensors') for name in ('large', 'parts'))
    for name in large:
        torch.testing.assert_close(parts[name], large[name], rtol=1e-4, atol=1e-5)


def test_the_moving_average_is_the_result(tmp_path: Path) -> None:
    plain = run_toy(tmp_path / 'plain')
    still = run_toy(tmp_path / 'still', model_ema=True, model_ema_decay=0.0)
    run_toy(tmp_path / 'slow', model_ema=True, model_ema_decay=0.9)
    weights = {name: load_file(tmp_path / name / 'model.safetensors') for name in ('plain', 'still', 'slow')}
    assert all(torch.equal(weights['plain'][k], weights['still'][k]) for k in weights['plain'])
    assert not all(torch.equal(weights['plain'][k], weights['slow'][k]) for k in weights['plain'])
    assert plain['metrics'] == still['metrics']
    last = rows(tmp_path / 'slow')[-1]
    assert {'eval_top1', 'ema_top1', 'ema_loss'} <= last.keys() and last['ema_loss'] != last['eval_loss']


def test_agc_leaves_the_classifier_alone(tmp_path: Path) -> None:
    frozen = {'sched': 'none', 'epochs': 1, 'weight_decay': 0.0}
    run_toy(tmp_path, clip_grad=1e-9, clip_mode='agc', **frozen)
    seed_everything(42)
    start = timm.create_model('eunnet20_cifar', depths=[1, 1, 1], num_classes=3).state_dict()
    for name, value in load_file(tmp_path / 'model.safetensors').items():
        moved = float((value - start[name]).abs().max())
        assert moved > 1e-4 if name.startswith('head.') else moved < 1e-6, name


def test_a_new_model_may_initialise_itself_from_the_first_batches_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    kind = type(timm.create_model('eunnet20_cifar', depths=[1, 1, 1]))
    monkeypatch.setattr(kind, 'init_from_data', lambda self, batches: seen.extend(batches), raising=False)
    run_toy(tmp_path / 'run')
    run_toy(tmp_path / 'run', resume=True)
    run_toy(tmp_path / 'tuned', epochs=1, initial_checkpoint=str(tmp_path / 'run' / 'model.safetensors'))
    assert [x.shape for x in seen] == 5 * [(8, 3, 16, 16)]


def test_gradient_norm_and_clipped_share_are_those_of_the_gradients(tmp_path: Path) -> None:
    def first_row(name: str, **options: Any) -> dict[str, float]:
        run_toy(tmp_path / name, epochs=1, **options)
        return rows(tmp_path / name)[0]

    plain, clipped = first_row('plain'), first_row('clipped', clip_grad=1.0)
    unclipped, agc = first_row('loose', clip_grad=1e6), first_row('agc', clip_grad=1e-6, clip_mode='agc')
    assert 'clipped' not in plain and plain['grad_norm'] > 0
    assert unclipped['clipped'] == 0 and unclipped['grad_norm'] == plain['grad_norm']
    assert 0 < clipped['clipped'] <= 1
    assert 0.8 < agc['clipped'] < 1, 'all but the classifier'


def test_best_so_far_is_the_first_epoch_with_the_highest_accuracy(tmp_path: Path) -> None:
    result = run_toy(tmp_path, epochs=5, lr=0.2)
    found = rows(tmp_path)
    top = max(row['eval_top1'] for row in found)
    epoch = [row['eval_top1'] for row in found].index(top)
    assert (result['best']['epoch'], result['best']['top1']) == (epoch, top)
    model = trained(tmp_path)
    model.load_state_dict(load_file(tmp_path / 'best.safetensors'))
    model.pretrained_cfg['input_size'] = (3, 16, 16)
    assert evaluate(model, 'toys', batch_size=4)['top1'] == top


@pytest.mark.usefixtures('rendered')
def test_evaluating_seldom_leaves_the_weights_as_they_are(tmp_path: Path) -> None:
    often, seldom = (run_toy(tmp_path / str(n), epochs=5, val_interval=n, model_ema=True) for n in (1, 2))
    assert often['sha256'] == seldom['sha256'] and often['metrics'] == seldom['metrics']
    assert [row['epoch'] for row in rows(tmp_path / '2') if math.isfinite(row['ema_top1'])] == [1, 3, 4]
    for row, same in zip(rows(tmp_path / '1'), rows(tmp_path / '2'), strict=True):
        assert all(row[key] == same[key] or math.isnan(same[key]) for key in row)
        assert row['train_loss'] == same['train_loss']
    found = {run.run: run for run in read_runs([tmp_path / '1', tmp_path / '2'])}
    assert found['1'].metric('top1') == found['2'].metric('top1') == seldom['metrics']['top1']
    assert found['2'].best['epoch'] == seldom['best']['epoch']


def test_a_models_own_clipping_rule_is_used_and_the_recipes_comes_first(tmp_path: Path) -> None:
    from nf_zoo.train.gradients import Gradients

    model = timm.create_model('wn_resnet18', depths=[1, 1, 1, 1], num_classes=3)

    def thresholds(**options: Any) -> list[float]:
        found = Gradients(model, Recipe(model='wn_resnet18', **options), torch.device('cpu')).threshold
        assert found
        return [found(epoch) for epoch in range(3)]

    rising = [1 + math.log(1 + epoch) for epoch in range(3)]
    assert thresholds() == pytest.approx([5 * r for r in rising])
    assert thresholds(clip_grad=2.0) == [2.0, 2.0, 2.0]
    assert thresholds(clip_grad=10.0, clip_sched='log') == pytest.approx([10 * r for r in rising])


def test_the_moving_average_warms_up_by_the_models_own_rule(tmp_path: Path) -> None:
    model = timm.create_model('dm_nf_regnet_b0', depths=[1, 1, 1, 1], num_classes=3)
    recipe = Recipe(model='x', model_ema=True, model_ema_decay=0.99, model_ema_warmup=True)
    ema = build.build_ema(recipe, model)
    assert ema
    assert [ema.get_decay(step) for step in (1, 2, 11, 10**6)] == pytest.approx([1 / 10, 2 / 11, 11 / 20, 0.99])


def test_initial_weights_are_taken_from_a_safetensors_file(tmp_path: Path) -> None:
    run_toy(tmp_path / 'a')
    weights = str(tmp_path / 'a' / 'model.safetensors')
    run_toy(tmp_path / 'b', initial_checkpoint=weights, lr=1e-60, epochs=1, sched='none')
    assert (tmp_path / 'b' / 'model.safetensors').read_bytes() == Path(weights).read_bytes()


def test_float32_is_used_where_bfloat16_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('nf_zoo.train.build._has_bf16', lambda device: False)
    said: list[str] = []
    train(toy_recipe(tmp_path / 'a', epochs=1, amp=True), log=said.append, bar=False)
    assert said[0] == 'cpu has no bfloat16 instructions: training in float32'
    monkeypatch.setattr('nf_zoo.train.build._has_bf16', lambda device: True)
    run_toy(tmp_path / 'b', epochs=1, amp=True)
    assert rows(tmp_path / 'a') != rows(tmp_path / 'b')


def test_the_bar_shows_loss_and_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(toy_recipe(tmp_path, epochs=1), log=lambda line: None, bar=True)
    shown = capsys.readouterr().err
    assert 'epoch 1/1' in shown and 'loss ' in shown and 'images/s' in shown and 'loader ' in shown


def test_a_loader_that_training_waits_for_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    whole = MemoryData.train_batches

    def slow(self: MemoryData, *args: int) -> Any:
        for batch in whole(self, *args):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(MemoryData, 'train_batches', slow)
    train(toy_recipe(tmp_path / 'short', epochs=1), log=said.append, bar=False)
    assert not any('the loader' in line for line in said), 'a second is not worth a word'
    monkeypatch.setattr(engine, 'SLOW_SECONDS', 0)
    train(toy_recipe(tmp_path / 'slow', epochs=1), log=said.append, bar=False)
    assert any(
        'the loader is too slow: training waited for it' in line and '--workers (now 4)' in line for line in said
    )


def test_the_command_line_overrides_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'recipe.yaml'
    path.write_text(
        'model: eunnet20_cifar\ndataset: toys\nepochs: 50\nbatch_size: 8\nmodel_kwargs: {depths: [1, 1, 1]}\n'
    )
    argv = '--epochs 1 --model-ema --mean 0.5 0.5 0.5 --warmup-epochs 0 --device cpu --train-sizes'.split()
    argv += ['{0: 12}']
    assert main([str(path), '--output', str(tmp_path / 'run'), *argv]) == 0
    found = load_recipe(tmp_path / 'run' / 'recipe.yaml')
    assert (found.epochs, found.model_ema, found.mean, found.train_sizes) == (1, True, (0.5, 0.5, 0.5), {0: 12})
    assert 'epoch 1/1' in capsys.readouterr().out


def test_a_result_names_the_weights_that_the_training_started_from(tmp_path: Path) -> None:
    first = run_toy(tmp_path / 'first', epochs=1)
    second = run_toy(tmp_path / 'second', epochs=1, initial_checkpoint=str(tmp_path / 'first'))
    assert first['note'] is None and second['note'].startswith('Fine-tuned from the weights `first`.')
    cfg = timm.create_model('eunnet20_cifar', pretrained=True).pretrained_cfg
    note = report.parent(Recipe(model='eunnet20_cifar', pretrained=True), cfg)
    assert note and '`eunnet20_cifar.cifar10` (licence: apache-2.0)' in note and str(tmp_path) not in second['note']


def test_pretrained_weights_for_other_classes_get_a_new_classifier() -> None:
    name, lines = 'eunnet20_cifar.cifar10', []
    own = timm.create_model(name, pretrained=True)
    recipe = Recipe().with_options({'model': name, 'pretrained': True})
    digits = build.build_model(recipe, [str(i) for i in range(10)], lines.append)
    same = build.build_model(recipe, own.pretrained_cfg['label_names'], lines.append)
    assert torch.equal(same.head.fc.weight, own.head.fc.weight)
    assert not torch.equal(digits.head.fc.weight, own.head.fc.weight)
    assert torch.equal(digits.stem.conv.weight, own.stem.conv.weight)
    assert len(lines) == 1 and 'classifier' in lines[0]
