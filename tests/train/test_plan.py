"""`--dry-run` tells what training then does, and `compare` what several runs have done."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from train_toys import run_toy, toy_recipe, toys  # noqa: F401

from nf_zoo.cli.main import main
from nf_zoo.errors import UserError
from nf_zoo.train import Recipe
from nf_zoo.train.compare import by_recipe, read_runs
from nf_zoo.train.plan import describe

pytestmark = pytest.mark.usefixtures('toys')


def plan(tmp_path: Path, **options: Any) -> str:
    text = '\n'.join(describe(toy_recipe(tmp_path / 'run', **options)))
    assert not (tmp_path / 'run').exists()
    return text


def test_groups_updates_schedule_time_and_memory(tmp_path: Path) -> None:
    text = plan(
        tmp_path, model='fixup_resnet20_cifar', epochs=4, weight_decay=0.1, warmup_epochs=1, train_sizes={0: 12}
    )
    assert 'fixup_resnet20_cifar on toys: 41 training and 11 validation images' in text
    assert (
        'weight decay 0.1, rate x 0.1 (stem.bias.bias' in text
        and 'weight decay 0.1, rate x 1 (stem.conv.weight' in text
    )
    assert 'updates: 5 an epoch, 20 in 4 epochs, each of 8 images (8 x 1 in 1 process)' in text
    assert 'epoch    1: lr 1e-05, 12 pixels' in text and 'time: about' in text and 'memory: about' in text


def test_the_rates_shown_are_those_of_the_run(tmp_path: Path) -> None:
    options = {'epochs': 3, 'sched': 'multistep', 'decay_milestones': [1, 2], 'sched_on_updates': False, 'lr': 0.04}
    text = plan(tmp_path, **options)
    run_toy(tmp_path / 'done', **options)
    rows = (tmp_path / 'done' / 'summary.csv').read_text().splitlines()[1:]
    for epoch, row in enumerate(rows):
        assert f'epoch {epoch + 1:>4}: lr {float(row.split(",")[1]):.4g}' in text


def test_a_models_rising_threshold_is_shown(tmp_path: Path) -> None:
    text = plan(tmp_path, model='wn_resnet18', model_kwargs={'depths': [1, 1, 1, 1]})
    assert 'clipped at 5' in text and 'clipped at 8.466' in text


def test_without_its_data_a_known_set_is_assumed_and_an_unknown_one_refused(tmp_path: Path) -> None:
    recipe = Recipe(model='eunnet20_cifar', model_kwargs={'depths': [1, 1, 1]}, dataset='torch/cifar100', device='cpu')
    first, *rest = describe(recipe)
    assert '50,000 training and 10,000 validation images (assumed: CIFAR100 needs its folder' in first
    assert any('updates: 390 an epoch' in line for line in rest)
    with pytest.raises(UserError):
        list(describe(recipe.with_options({'dataset': 'torch/places365'})))


def test_dry_run_is_an_option_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'recipe.yaml'
    path.write_text('model: eunnet20_cifar\ndataset: toys\nbatch_size: 8\nmodel_kwargs: {depths: [1, 1, 1]}\n')
    assert main(['train', str(path), '--dry-run', '--epochs', '2']) == 0
    assert 'updates: 5 an epoch, 10 in 2 epochs' in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ['recipe.yaml']


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run_toy(tmp_path / 'plain', epochs=3)
    averaged = run_toy(tmp_path / 'averaged', epochs=2, model_ema=True, clip_grad=0.1)
    folders = [str(tmp_path / name) for name in ('plain', 'averaged')]
    assert main(['compare', *folders, '-o', str(tmp_path / 'both.png')]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and out[1].startswith('plain     eunnet20_cifar  toys')
    assert (tmp_path / 'both.png').read_bytes().startswith(b'\x89PNG')
    assert main(['compare', *folders, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    for row, result in zip(found, (plain, averaged), strict=True):
        assert row['top1'] == result['metrics']['top1'] and row['best']['top1'] == result['best']['top1']
        assert row['best']['epoch'] == result['best']['epoch'] and row['epochs'] == result['epochs']


def test_runs_that_differ_in_their_seed_have_a_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = (0, 1, 2)
    found = [run_toy(tmp_path / f'a1.4{seed}', epochs=2, seed=seed)['metrics'] for seed in seeds]
    run_toy(tmp_path / 'b', epochs=1, lr=0.5)
    unfinished = tmp_path / 'a1.43'
    run_toy(unfinished, epochs=2, seed=3)
    summary = unfinished / 'summary.csv'
    summary.write_text(''.join(summary.read_text().splitlines(keepends=True)[:2]))
    folders = [str(tmp_path / name) for name in ('a1.40', 'b', 'a1.41', 'a1.42', 'a1.43')]
    assert [len(group) for group in by_recipe(read_runs(folders)).values()] == [4, 1]
    unlike = [replace(run, run=name) for run, name in zip(read_runs(folders[2:4]), ('x', 'y'), strict=True)]
    assert list(by_recipe(unlike)) == ['eunnet20_cifar (2 runs)']
    assert main(['compare', *folders, '-o', str(tmp_path / 'all.png')]) == 0
    *_, head, line = capsys.readouterr().out.splitlines()
    values = [run[key] for key in ('top1', 'loss') for run in found]
    expected = [f(part) for part in (values[:3], values[3:]) for f in (statistics.fmean, min, max)]
    assert head.split()[:2] == ['recipe', 'top'] and line.startswith('a1 (3 runs) ')
    assert [float(cell) for cell in line.split()[3:]] == pytest.approx(expected, abs=0.0051)


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='is no run'):
        read_runs([tmp_path])
    run_toy(tmp_path / 'a', epochs=1)
    (tmp_path / 'a' / 'summary.csv').write_text('epoch,lr\n0,much\n')
    with pytest.raises(UserError, match='is no run that can be read'):
        read_runs([tmp_path / 'a'])


def test_a_run_that_has_not_been_evaluated_yet_is_one_line(tmp_path: Path) -> None:
    run_toy(tmp_path, epochs=3, val_interval=2)
    header, *lines = (tmp_path / 'summary.csv').read_text().splitlines()
    (tmp_path / 'summary.csv').write_text(f'{header}\n{lines[0]}\n')
    with pytest.raises(UserError, match='no epoch has been evaluated yet'):
        read_runs([tmp_path])


def test_runs_of_one_name_keep_their_paths(tmp_path: Path) -> None:
    for place in ('x', 'y'):
        run_toy(tmp_path / place / 'run', epochs=1)
    assert [run.run for run in read_runs([tmp_path / place / 'run' for place in ('x', 'y')])] == [
        str(tmp_path / place / 'run') for place in ('x', 'y')
    ]
