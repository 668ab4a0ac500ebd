"""The folder of a run: what the engine writes is read back as it was, and anything else is one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import run_toy, toys  # noqa: F401

from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.train.run_folder import Result, is_run, load_run, read_recipe, read_result, write_result

RESULT = Result(
    model='eunnet20_cifar',
    dataset='toys',
    num_classes=3,
    classes=['red', 'green', 'blue'],
    input_size=[3, 16, 16],
    mean=[0.5, 0.5, 0.5],
    std=[0.2, 0.2, 0.2],
    interpolation='bicubic',
    crop_pct=1.0,
    metrics={'top1': 50.0, 'top5': 100.0, 'loss': 0.7, 'n': 11},
    sha256=64 * 'a',
    bytes=10,
)


def test_a_finished_run_is_read_back(tmp_path: Path, toys: None) -> None:  # noqa: F811
    found = run_toy(tmp_path, epochs=1, model='eunnet20_cifar.cifar10', in_chans=3)
    assert is_run(tmp_path) and dataclasses.asdict(read_result(tmp_path)) == found
    assert read_recipe(tmp_path).settings() == read_result(tmp_path).recipe
    model, data, result = load_run(tmp_path)
    assert result.architecture == 'eunnet20_cifar' and len(data) == result.bytes
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)

    (tmp_path / 'model.safetensors').write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckFailed, match='has changed since training'):
        load_run(tmp_path)


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT)
    assert read_result(tmp_path) == RESULT


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'model': None}, 'has no model; train the run again'),
        ({'sha256': 7}, 'sha256 cannot be of type int'),
        ({'epochs': True}, 'epochs cannot be of type bool'),
        ({'classes': 'abc'}, 'classes cannot be of type str'),
    ],
)
def test_a_result_of_another_form_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / 'result.json').write_text(json.dumps(dataclasses.asdict(RESULT) | change))
    with pytest.raises(UserError, match=said):
        read_result(tmp_path)


def test_what_is_no_finished_run_is_one_line(tmp_path: Path) -> None:
    assert not is_run(tmp_path) and not is_run('\0')
    with pytest.raises(UserError, match='is not a finished run'):
        load_run(tmp_path)
    (tmp_path / 'result.json').write_text('{"epochs": NaN}')
    with pytest.raises(UserError, match='is not valid JSON'):
        read_result(tmp_path)
