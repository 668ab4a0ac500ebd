"""A run's folder belongs to one run, with one data set; nothing else in it is overwritten; a lost run can go on."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from picture_folders import images  # noqa: F401
from safetensors.torch import load_file
from train_toys import outcome, run_toy, toy_recipe, toy_set, toys  # noqa: F401

import nf_zoo
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.train import MemorySet, train
from nf_zoo.train.data import memory as data_module
from nf_zoo.train.gradients import Gradients
from nf_zoo.train.run_folder import claimed

pytestmark = pytest.mark.usefixtures('toys')


def hold(folder: Path, ready: Any) -> None:
    with claimed(folder, resume=True):
        ready.set()
        signal.pause()


def test_a_second_run_in_a_folder_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context('fork')
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / 'run', ready))
    other.start()
    assert ready.wait(60)
    for resume in (False, True):
        with pytest.raises(UserError, match='another run is training into .* now'):
            run_toy(tmp_path / 'run', epochs=1, resume=resume)
    assert not list((tmp_path / 'run').iterdir())
    assert other.pid
    os.kill(other.pid, signal.SIGKILL)  # the system releases the lock of a process that dies
    other.join()
    run_toy(tmp_path / 'run', epochs=1)


def test_a_worker_that_outlives_its_run_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context('fork')
    with claimed(tmp_path, resume=False):
        worker = context.Process(target=signal.pause)
        worker.start()
    with claimed(tmp_path, resume=False):
        with pytest.raises(UserError, match='another run is training into'), claimed(tmp_path, resume=False):
            pass
    worker.kill()
    worker.join()


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        run_toy(tmp_path / 'a' / 'b', dataset='nothing')
    assert not (tmp_path / 'a').exists()
    (tmp_path / 'a').mkdir()
    with pytest.raises(UserError):
        run_toy(tmp_path / 'a' / 'b', dataset='nothing')
    assert (tmp_path / 'a').is_dir() and not (tmp_path / 'a' / 'b').exists()


@pytest.mark.parametrize('resume', [False, True])
def test_weights_that_are_no_runs_are_never_overwritten(tmp_path: Path, resume: bool) -> None:
    (tmp_path / 'foreign').mkdir()
    (tmp_path / 'foreign' / 'model.safetensors').write_bytes(b'mine')
    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1])
    published = Path(
        nf_zoo.publish(model, tmp_path / 'hub', 'eunnet20_cifar.mine', dataset='x', classes=list('abcdefghij'))
    )
    for folder in (tmp_path / 'foreign', published):
        before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
        with pytest.raises(UserError, match='has a model.safetensors, but is not the folder of a run'):
            run_toy(folder, resume=resume)
        assert {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()} == before


def other_set(change: str) -> Any:
    def load(data_dir: object, train: bool, download: bool) -> MemorySet:
        found = toy_set(data_dir, train, download)
        if change == 'classes':
            return MemorySet(found.images, found.labels, ['blue', 'green', 'red'])
        if change == 'one more class':
            return MemorySet(found.images, found.labels, [*found.classes, 'black'])
        if change == 'fewer images':
            return MemorySet(found.images[1:], found.labels[1:], found.classes)
        return MemorySet(found.images, found.labels.flip(0), found.classes)

    return load


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ('classes', r'other training data \(classes red, green, blue -> blue, green, red\)'),
        ('one more class', r'other training data \(classes red, green, blue -> red, green, blue, black\)'),
        ('fewer images', r'other training data \(41 images -> 40\)'),
        ('labels', r'other training data \(other files, other names or other labels\)'),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    run_toy(tmp_path, epochs=1)
    before = outcome(tmp_path)
    monkeypatch.setitem(data_module._LOADERS, 'toys', other_set(change))
    with pytest.raises(UserError, match=said):
        run_toy(tmp_path, epochs=1, resume=True)
    assert outcome(tmp_path) == before


def test_a_class_folder_that_was_renamed_or_lost_a_file_is_noticed(images: Path, tmp_path: Path) -> None:  # noqa: F811
    options = {'dataset': 'folder', 'data_dir': str(images), 'epochs': 1, 'img_size': 16, 'workers': 0, 'batch_size': 4}
    run_toy(tmp_path / 'run', **options)
    (tmp_path / 'moved').mkdir()
    for split in ('train', 'validation'):
        (images / split).rename(tmp_path / 'moved' / split)
    options['data_dir'] = str(tmp_path / 'moved')
    run_toy(tmp_path / 'run', resume=True, **options)  # where the folder lies doesn't count
    train_folder = tmp_path / 'moved' / 'train'
    (train_folder / 'cat' / '0.png').rename(train_folder / 'cat' / '9.png')
    with pytest.raises(UserError, match='other files, other names or other labels'):
        run_toy(tmp_path / 'run', resume=True, **options)
    for split in ('train', 'validation'):
        (tmp_path / 'moved' / split / 'cat').rename(tmp_path / 'moved' / split / 'eel')
    with pytest.raises(UserError, match=r'classes cat, dog -> dog, eel'):
        run_toy(tmp_path / 'run', resume=True, **options)


def test_no_checkpoint_ever_holds_nan_or_infinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.SGD.step

    def spoil(self: Any, *args: Any) -> None:
        step(self, *args)
        with torch.no_grad():
            self.param_groups[0]['params'][0].fill_(float('nan'))

    # The last update of the only epoch before the evaluation: no loss has shown it yet.
    monkeypatch.setattr(Gradients, 'clip', lambda self, epoch: torch.zeros(()))
    monkeypatch.setattr('nf_zoo.train.engine.Run._mean_loss', lambda self, total, done: 1.0)
    monkeypatch.setattr(torch.nn.CrossEntropyLoss, 'forward', lambda self, x, y: 0 * x.nan_to_num().sum())
    monkeypatch.setattr(torch.optim.SGD, 'step', spoil)
    with pytest.raises(CheckFailed) as caught:
        run_toy(tmp_path, epochs=2, val_interval=2, smoothing=0.0)
    message = str(caught.value)
    assert 'a weight or a state of the optimizer is no longer finite' in message and 'holds NaN or infinity' in message
    assert 'no checkpoint was written yet: repeat the command with --resume and a smaller --lr' in message
    assert not list(tmp_path.glob('checkpoints/*'))


def test_after_a_loss_that_is_no_number_the_advice_can_be_followed(tmp_path: Path) -> None:
    """A first epoch that goes well, a second one whose rate is far too large."""
    bad = {'model': 'fixup_resnet20_cifar', 'epochs': 3, 'lr': 900.0, 'warmup_epochs': 1, 'warmup_lr': 0.0}
    bad |= {'sched_on_updates': False, 'smoothing': 0.0}
    with pytest.raises(CheckFailed) as caught:
        run_toy(tmp_path, **bad)
    assert 'is kept: repeat the command with --resume --change and a smaller --lr' in str(caught.value)
    better = bad | {'lr': 0.01, 'clip_grad': 1.0}
    with pytest.raises(UserError, match='lr 900.0 -> 0.01.*--change allows it'):
        run_toy(tmp_path, resume=True, **better)
    with pytest.raises(UserError, match='other settings .seed 42 -> 1.: give the same ones, or choose'):
        train(toy_recipe(tmp_path, resume=True, **better, seed=1), log=lambda line: None, bar=False, change=True)
    said: list[str] = []
    result = train(toy_recipe(tmp_path, resume=True, **better), log=said.append, bar=False, change=True)
    assert said[1] == 'changed from here on: clip_grad None -> 1.0, lr 900.0 -> 0.01'
    assert result['changes'] == [{'update': 5, 'clip_grad': [None, 1.0], 'lr': [900.0, 0.01]}]
    assert result['recipe']['lr'] == 0.01 and json.loads((tmp_path / 'result.json').read_text()) == result
    assert all(value.isfinite().all() for value in load_file(tmp_path / 'model.safetensors').values())
    rates = [line.split(',')[1] for line in (tmp_path / 'summary.csv').read_text().splitlines()[1:]]
    run_toy(tmp_path / 'straight', **better)
    straight = [line.split(',')[1] for line in (tmp_path / 'straight' / 'summary.csv').read_text().splitlines()[1:]]
    assert rates[1:] == straight[1:], 'the rates are those of the new schedule'
    assert train(toy_recipe(tmp_path, resume=True, **better), log=said.append, bar=False) == result
