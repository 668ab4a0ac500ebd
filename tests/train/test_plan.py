"""`--dry-run` tells what training then does, and `compare` what several runs have done."""

import json
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_toys import run_toy, toy_recipe, toys  # noqa: F401

from nf_zoo.cli.main import main
from nf_zoo.errors import UserError
from nf_zoo.train import Recipe, train
from nf_zoo.train.compare import by_recipe, read_runs
from nf_zoo.train.data.memory import size_at
from nf_zoo.train.plan import describe, spans

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
        'weight decay 0.1, learning rate x 0.1 (stem.bias.bias' in text
        and 'weight decay 0.1, learning rate x 1 (stem.conv.weight' in text
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


def test_without_a_folder_a_known_set_has_its_size_and_another_one_is_unknown() -> None:
    recipe = Recipe(model='eunnet20_cifar', model_kwargs={'depths': [1, 1, 1]}, dataset='torch/cifar100', device='cpu')
    first, *rest = describe(recipe)
    assert '50,000 training and 10,000 validation images; not read, because there is no --data-dir' in first
    assert any('updates: 390 an epoch' in line for line in rest)
    first, *rest = describe(recipe.with_options({'dataset': 'folder', 'train_sizes': {0: 16}}))
    assert 'the number of images and of classes is unknown; give --data-dir DIR' in first
    assert any('updates: unknown in 300 epochs' in line for line in rest)
    assert any('time: unknown; ' in line for line in rest) and not any('assumed' in line for line in rest)


@pytest.mark.parametrize(
    'options',
    [
        {'warmup_epochs': 2},
        {'batch_size': 64},
        {'model': 'eunnet20_cifarr'},
        {'model_kwargs': {'depths': 3}},
        {'model_kwargs': {'depths': []}},
        {'model_kwargs': {'checkpoint_path': 'x.pth'}},
        {'opt': 'sgdd'},
        {'aa': 'nonsense'},
        {'aa': 'rand-m9-x3'},
        {'img_size': 16, 'model': 'vit_tiny_patch16_224', 'model_kwargs': {'depth': 1}},
        {'img_size': 1, 'batch_size': 1, 'model': 'bn_resnet20_cifar'},
        {'train_sizes': {0: 65}},
        {'dataset': 'cifar10', 'data_dir': 'nowhere'},
        {'dataset': 'folder', 'data_dir': 'nowhere'},
        {'dataset': 'torch/cifar1', 'data_dir': 'nowhere'},
        {'dataset': 'torchvision/cifar10'},
        {'input_size': [2, 16, 16]},
        {'in_chans': 1, 'input_size': [3, 16, 16]},
        {'mixup': 1.0, 'batch_size': 5},
        {'torchcompile': 'inductr'},
        {'device': 'warp'},
        {'device': 'meta'},
        {'initial_checkpoint': 'none.safetensors'},
        {'output': '/dev/null'},
        {'experiment': '../elsewhere'},
        {'experiment': '/elsewhere'},
        {'dataset': 'folder', 'data_dir': '.', 'val_split': '../elsewhere'},
        {'output': '/dev/null/run'},
        {'output': 'x' * 300},
    ],
    ids=str,
)
def test_what_a_run_refuses_the_plan_refuses_with_the_same_line(tmp_path: Path, options: dict[str, Any]) -> None:
    recipe = toy_recipe(tmp_path / 'run').with_options(options)
    with pytest.raises(UserError) as run:
        train(recipe, log=lambda line: None, bar=False)
    with pytest.raises(UserError) as planned:
        list(describe(recipe))
    assert str(run.value) == str(planned.value) and '\n' not in str(run.value)
    assert not (tmp_path / 'run').exists()


def test_the_plan_of_a_run_that_goes_on_refuses_what_the_run_refuses(tmp_path: Path) -> None:
    run_toy(tmp_path, epochs=1)
    with pytest.raises(UserError, match='already holds a run'):
        list(describe(toy_recipe(tmp_path, epochs=1)))
    files = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    assert any('continuing at epoch 2' in line for line in describe(toy_recipe(tmp_path, epochs=1, resume=True)))
    with pytest.raises(UserError, match=r'other settings \(lr 0.05 -> 0.1\)'):
        list(describe(toy_recipe(tmp_path, epochs=1, resume=True, lr=0.1)))
    assert files == {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}


@given(st.dictionaries(st.integers(0, 40), st.integers(1, 64), max_size=5), st.integers(1, 30))
def test_the_epochs_at_each_size_are_those_of_the_run(train_sizes: dict[int, int], epochs: int) -> None:
    found = spans(train_sizes, 32, epochs)
    expected = Counter(size_at(train_sizes, epoch) or 32 for epoch in range(epochs))
    assert found == expected and min(found.values()) > 0


def test_a_huge_number_of_epochs_costs_no_loop(tmp_path: Path) -> None:
    text = plan(tmp_path, epochs=10**9, train_sizes={5: 12, 10**9: 9}, sched='step', decay_epochs=0.5)
    assert (
        'updates: 5 an epoch, 5,000,000,000 in 1,000,000,000 epochs' in text and '-' not in text.split('time:')[1][:40]
    )


def test_dry_run_is_an_option_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'recipe.yaml'
    path.write_text('model: eunnet20_cifar\ndataset: toys\nbatch_size: 8\nmodel_kwargs: {depths: [1, 1, 1]}\n')
    assert main(['train', str(path), '--dry-run', '--epochs', '2', '--warmup_epochs', '0']) == 0
    assert 'updates: 5 an epoch, 10 in 2 epochs' in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ['recipe.yaml']


@pytest.mark.usefixtures('rendered')
def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run_toy(tmp_path / 'plain', epochs=3)
    averaged = run_toy(tmp_path / 'averaged', epochs=2, model_ema=True, clip_grad=0.1)
    folders = [str(tmp_path / name) for name in ('plain', 'averaged')]
    assert main(['compare', *folders, '-o', str(tmp_path / 'both.png')]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5 and out[1].startswith('plain     eunnet20_cifar  toys')
    assert out[4] == 'warning: the runs differ in number of epochs (2, 3)'
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
    *_, head, line, _, warning = capsys.readouterr().out.splitlines()
    assert warning == 'warning: the runs differ in number of epochs (1, 2)'
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
