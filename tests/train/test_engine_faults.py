"""What ends a run: wrong settings, damaged weights, a full disk, a number that is lost. Each is one line."""

import errno
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from train_toys import run_toy, toy_recipe, toy_set, toys  # noqa: F401

import nf_zoo  # noqa: F401
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.files import tensor_bytes
from nf_zoo.train import build, train
from nf_zoo.train.data import memory as data_module

pytestmark = pytest.mark.usefixtures('toys')


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed) as caught:
        run_toy(tmp_path, model='fixup_resnet20_cifar', lr=1000.0, weight_decay=1000.0, sched='none')
    message = str(caught.value)
    assert 'epoch 1, update' in message and 'lr 1000' in message and '--clip-grad' in message and '\n' not in message
    assert 'no checkpoint was written yet' in message
    assert not (tmp_path / 'model.safetensors').exists()
    assert not list(tmp_path.glob('checkpoints/*'))


@pytest.mark.parametrize(
    ('name', 'hook', 'said'),
    [
        ('stages.1.0.conv1', lambda m, x, y: y * math.inf, 'stages.1.0.conv1 overflows'),
        ('stages.1.0', lambda m, x, y: y + math.nan, 'stages.1.0 overflows'),
        ('head.fc', None, None),
    ],
)
def test_the_layer_where_a_number_was_lost_is_named_and_the_last_good_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hook: Any, said: str | None
) -> None:
    run_toy(tmp_path, epochs=1)
    good = (tmp_path / 'checkpoints' / '00000005.safetensors').read_bytes()
    monkeypatch.setattr('nf_zoo.train.engine.changed_settings', lambda *given: {})
    made = build.build_model

    def sabotaged(*args: Any) -> torch.nn.Module:
        model = made(*args)
        if said:
            model.get_submodule(name).register_forward_hook(hook)
        else:
            model.get_parameter(f'{name}.weight').register_hook(lambda gradient: gradient * math.inf)
        return model

    monkeypatch.setattr('nf_zoo.train.build.build_model', sabotaged)
    with pytest.raises(CheckFailed) as caught:
        run_toy(tmp_path, resume=True)
    message = str(caught.value)
    assert (said or 'the gradient of head.fc.weight overflows') in message
    assert 'epoch 2, update 1 of 5' in message and 'the checkpoint of update 5 is kept' in message
    assert (tmp_path / 'checkpoints' / '00000005.safetensors').read_bytes() == good


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(UserError, match='cannot write .*; free space or choose another folder'):
        run_toy(tmp_path / 'file' / 'run')
    with pytest.raises(UserError, match='give --output RUN'):
        train(toy_recipe(tmp_path).with_options({'output': ''}))
    assert (tmp_path / 'file').read_text() == 'mine'


def test_a_full_disk_is_one_line_and_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.fsync, []

    def fsync(number: int) -> None:
        written.append(number)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(UserError, match='No space left on device'):
        run_toy(tmp_path / 'run')
    monkeypatch.undo()
    assert not list((tmp_path / 'run').rglob('.*'))
    monkeypatch.setitem(data_module._LOADERS, 'toys', toy_set)
    run_toy(tmp_path / 'whole')
    run_toy(tmp_path / 'run', resume=True)
    assert (tmp_path / 'run/summary.csv').read_bytes() == (tmp_path / 'whole/summary.csv').read_bytes()


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'model': 'eunnet20_cifarr', 'model_kwargs': {}}, "did you mean 'eunnet20_cifar'"),
        ({'model_kwargs': {'dephts': [1]}}, 'dephts'),
        ({'dataset': 'toy'}, "unknown data set 'toy'"),
        ({'opt': 'sgdd'}, "unknown optimizer 'sgdd'; did you mean"),
        ({'opt_kwargs': {'nestrov': True}}, 'nestrov'),
        ({'batch_size': 64}, 'lower batch_size'),
        ({'batch_size': 5, 'mixup': 1.0}, 'even batch_size'),
        ({'train_sizes': {0: 25}}, 'train_sizes: 25'),
        ({'train_sizes': {0: 65}, 'img_size': 32}, 'padded image'),
        ({'num_classes': 2}, 'leave num_classes out'),
        ({'initial_checkpoint': 'weights.pth'}, 'only .safetensors'),
        ({'initial_checkpoint': 'none.safetensors'}, 'initial_checkpoint none.safetensors: no such file'),
        ({'device': 'warp'}, "device 'warp' is not there"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_nothing(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        run_toy(tmp_path / 'run', **options)
    assert said in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'run').exists()


def test_initial_weights_that_are_damaged_or_no_numbers_are_one_line(tmp_path: Path) -> None:
    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1], num_classes=3)
    whole = tensor_bytes(model.state_dict())
    with torch.no_grad():
        model.head.fc.weight[0, 0] = math.inf
    for name, data in {'torn': whole[:-7], 'empty': b'', 'inf': tensor_bytes(model.state_dict())}.items():
        (tmp_path / f'{name}.safetensors').write_bytes(data)
        with pytest.raises(UserError, match='head.fc.weight holds NaN' if name == 'inf' else 'not a valid safetensors'):
            run_toy(tmp_path / 'run', initial_checkpoint=str(tmp_path / f'{name}.safetensors'))
    with pytest.raises(UserError, match='is a folder, not a file'):
        (tmp_path / 'x.safetensors').mkdir()
        run_toy(tmp_path / 'run', initial_checkpoint=str(tmp_path / 'x.safetensors'))
    assert not (tmp_path / 'run').exists()


def test_without_matplotlib_a_line_says_so_and_the_run_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    said: list[str] = []
    train(toy_recipe(tmp_path, epochs=1), log=said.append, bar=False)
    assert any("pip install 'nf-zoo[plot]'" in line for line in said)
    assert (tmp_path / 'result.json').exists() and not (tmp_path / 'curves.png').exists()


def test_without_tensorboard_log_tensorboard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    with pytest.raises(UserError, match=r"pip install 'nf-zoo\[train\]'"):
        run_toy(tmp_path / 'run', log_tensorboard=True)
    assert not (tmp_path / 'run').exists()
