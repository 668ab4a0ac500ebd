"""A run that was stopped, killed or damaged continues to exactly the files of the uninterrupted run."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import HERE, Forked, python
from picture_folders import images  # noqa: F401
from train_toys import outcome, run_toy, stop_at, toy_recipe, toys  # noqa: F401

from nf_zoo.errors import UserError
from nf_zoo.train import Interrupted, train

pytestmark = pytest.mark.usefixtures('toys')

VARIANTS: dict[str, dict[str, Any]] = {
    'plain': {},
    'everything': {
        'model': 'test_resnet',  # batch normalization: buffers too
        'model_kwargs': {},
        'drop': 0.2,
        'opt': 'adamw',
        'lr': 1e-3,
        'mixup': 0.5,
        'cutmix': 1.0,
        'model_ema': True,
        'model_ema_decay': 0.8,
        'grad_accum_steps': 2,
        'batch_size': 4,
        'train_sizes': {0: 12, 1: 16, 9: 16, 18: 16},  # as JSON's keys 18 is before 9
        'clip_grad': 0.1,
        'clip_mode': 'agc',
    },
    'epoch schedule': {'sched_on_updates': False, 'sched': 'step', 'decay_epochs': 1, 'channels_last': False},
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The uninterrupted run of a variant, made once."""

    @cache
    def run(variant: str) -> Path:
        folder = tmp_path_factory.mktemp('whole')
        run_toy(folder, **VARIANTS[variant])
        return folder

    return run


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('where', ['epoch 1/2: update 2/5', 'epoch 1/2: update 4/5', 'epoch 2/2: update 1/5'])
def test_ctrl_c_and_resume_equal_the_uninterrupted_run(
    whole: Callable[[str], Path], tmp_path: Path, variant: str, where: str
) -> None:
    options = VARIANTS[variant]
    stop_at(toy_recipe(tmp_path, **options), where)
    run_toy(tmp_path, resume=True, **options)
    assert outcome(tmp_path) == outcome(whole(variant))


def test_sigterm_saves_too_and_the_old_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def log(line: str) -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(toy_recipe(tmp_path), log=log, bar=False)
    assert [p.name for p in (tmp_path / 'checkpoints').glob('*.json')] == ['00000001.json']
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sigterm_to_the_workers_too_loses_nothing(images: Path, tmp_path: Path) -> None:  # noqa: F811
    argv = ['--model', 'eunnet20_cifar', '--model-kwargs', '{depths: [1, 1, 1]}', '--no-pretrained', '--device', 'cpu']
    argv += ['--data-dir', str(images), '--output', str(tmp_path / 'run'), '--img-size', '16', '--batch-size', '2']
    argv += ['--workers', '1', '--epochs', '1000', '--log-interval', '1']
    with Forked('-m', 'nf_zoo', 'train', *argv) as run:
        while 'epoch 2/1000: update 1/' not in run.said()[0]:
            assert run.process.is_alive(), run.said()
            time.sleep(0.05)
        os.killpg(run.process.pid, signal.SIGTERM)
        found = run.wait()
    said = found.stderr
    assert found.returncode == 130, said
    assert 'stopped; everything is saved in' in said and said.count('\n') == 1
    assert list((tmp_path / 'run' / 'checkpoints').glob('*.json'))


def kill(folder: Path, options: dict[str, Any], plans: list[list[int]]) -> str:
    command = [str(folder), yaml.safe_dump(options), json.dumps(plans)]
    env = {**os.environ, 'PYTHONWARNINGS': 'error'}
    return python(str(HERE / 'kill_toys.py'), *command, env=env, limit=60 + 15 * len(plans)).stdout


@pytest.mark.parametrize('runs', [3, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_kill_9_anywhere_and_resume_equal_the_uninterrupted_run(tmp_path: Path, runs: int) -> None:
    options = VARIANTS['everything'] | {'epochs': 3, 'recovery_interval': 2}
    events = int(kill(tmp_path / 'whole', options, []))
    assert events > 60
    rng = random.Random(0)
    # A child that resumes late may have fewer events left than the number it waits for: it ends the run.
    plans = [[rng.randrange(events) for _ in range(rng.randint(1, 3))] for _ in range(runs)]
    kill(tmp_path, options, plans)
    whole = outcome(tmp_path / 'whole')
    for number, plan in enumerate(plans):
        assert outcome(tmp_path / str(number)) == whole, plan


@pytest.mark.parametrize(
    'damage',
    [
        lambda folder: (folder / '00000010.safetensors').write_bytes(b''),
        lambda folder: flip(folder / '00000010.safetensors', -5),
        lambda folder: flip(folder / '00000010.json', -60),
        lambda folder: (folder / '00000010.json').write_text('{'),
        lambda folder: (folder / '00000010.safetensors').unlink(),
    ],
    ids=['empty', 'flipped tensor', 'flipped json', 'torn json', 'missing'],
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    whole: Callable[[str], Path], tmp_path: Path, damage: Any
) -> None:
    run = shutil.copytree(whole('plain'), tmp_path / 'run')
    damage(run / 'checkpoints')
    said: list[str] = []
    train(toy_recipe(run, resume=True), log=said.append, bar=False)
    assert said[0] == 'checkpoint 00000010 is damaged: going back to the one before'
    assert outcome(run) == outcome(whole('plain'))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path: Path) -> None:
    run_toy(tmp_path)
    for file in (tmp_path / 'checkpoints').glob('*.json'):
        file.write_text('')
    summary = (tmp_path / 'summary.csv').read_bytes()
    with pytest.raises(UserError, match='every checkpoint is damaged'):
        run_toy(tmp_path, resume=True)
    assert (tmp_path / 'summary.csv').read_bytes() == summary


def test_a_run_is_not_overwritten_and_not_continued_with_other_settings(tmp_path: Path) -> None:
    run_toy(tmp_path, epochs=1)
    with pytest.raises(UserError, match='already holds a run: continue it with --resume'):
        run_toy(tmp_path, epochs=1)
    with pytest.raises(UserError, match=r'other settings \(lr 0.05 -> 0.1\)'):
        run_toy(tmp_path, epochs=1, lr=0.1, resume=True)


def test_resume_of_a_finished_run_repeats_its_result(tmp_path: Path) -> None:
    first = run_toy(tmp_path, epochs=1)
    files = outcome(tmp_path)
    assert run_toy(tmp_path, epochs=1, resume=True) == first
    assert outcome(tmp_path) == files


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    said: list[str] = []
    train(toy_recipe(tmp_path / 'run', epochs=1, resume=True), log=said.append, bar=False)
    assert 'no checkpoint yet' in said[0]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run_toy(tmp_path, epochs=4, checkpoint_hist=3)
    names = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
    assert names == [f'{n:08d}.{kind}' for n in (10, 15, 20) for kind in ('json', 'safetensors')]
