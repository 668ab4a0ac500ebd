"""Several processes: the same gradients as one, exact resume, another number of processes, the end of one of them."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from forked import HERE, ranks
from hypothesis import given
from hypothesis import strategies as st
from picture_folders import images  # noqa: F401
from safetensors.torch import load_file
from torchrun import torchrun
from train_toys import outcome, run_toy, toy_recipe, toys  # noqa: F401

from nf_zoo.errors import UserError
from nf_zoo.train import Recipe, train
from nf_zoo.train.build import learning_rate
from nf_zoo.train.processes import share_out

pytestmark = pytest.mark.timeout(300)


def test_one_batch_two_in_turn_and_two_processes_give_the_same_gradients_without_batch_normalization(
    tmp_path: Path,
) -> None:
    found = json.loads(ranks(HERE / 'ddp_families.py', str(tmp_path)).stdout)
    assert len(found) > 12
    for name, differences in found.items():
        for difference in differences:
            assert difference > 1e-3 if name.startswith('bn_') else difference < 1e-10, name


TOYS = {'model_ema': True, 'model_ema_decay': 0.8, 'mixup': 0.5, 'batch_size': 4, 'clip_grad': 0.5, 'drop': 0.2}


@pytest.fixture(scope='module')
def in_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two processes, whole, and as a part that was stopped and continued; a part that was only stopped."""
    folder = tmp_path_factory.mktemp('two')
    return folder, ranks(HERE / 'ddp_toys.py', str(folder), yaml.safe_dump(TOYS), 'whole', 'pieces', 'stopped').stdout


def test_two_processes_with_half_the_batch_train_as_one(in_two: tuple[Path, str], tmp_path: Path, toys: None) -> None:  # noqa: F811
    folder, _ = in_two
    # mixup pairs the images of a batch, so the one process takes the batches of the two in turn
    run_toy(tmp_path, **TOYS, grad_accum_steps=2)
    one, two = (load_file(run / 'model.safetensors') for run in (tmp_path, folder / 'whole'))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    assert json.loads((folder / 'whole' / 'result.json').read_text())['processes'] == 2


def test_two_processes_resume_exactly(in_two: tuple[Path, str]) -> None:
    folder, said = in_two
    assert outcome(folder / 'pieces') == outcome(folder / 'whole')
    assert said.count('epoch 2/2: train loss') == 2, 'one process speaks for all'


def test_another_number_of_processes_continues_and_says_what_changes(in_two: tuple[Path, str], toys: None) -> None:  # noqa: F811
    folder, _ = in_two
    said: list[str] = []
    result = train(toy_recipe(folder / 'stopped', **TOYS, resume=True), log=said.append, bar=False)
    assert said[1] == (
        'processes: 1 instead of 2; an update still takes 8 images, now as 2 x 4 in each process; '
        'sums are rounded in another order'
    )
    one, two = (load_file(folder / run / 'model.safetensors') for run in ('stopped', 'whole'))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    assert result['steps'] == 10


def test_when_a_process_dies_every_other_says_so_and_the_run_can_continue(tmp_path: Path, toys: None) -> None:  # noqa: F811
    options = yaml.safe_dump(TOYS)
    found = ranks(HERE / 'ddp_toys.py', str(tmp_path), options, 'dying', processes=3, check=False)
    assert found.returncode != 0
    lines = sorted(set(re.findall(r'process \d of 3: another process of this run has ended.*--resume.*', found.stderr)))
    assert [line[8] for line in lines] == ['0', '2'], found.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(HERE) not in found.stderr
    said: list[str] = []
    train(toy_recipe(tmp_path / 'dying', **TOYS, resume=True), log=said.append, bar=False)
    assert said[0] == 'continuing at epoch 2, update 0 of 3' and '1 instead of 3' in said[1]


def test_torchrun_starts_the_command_itself(tmp_path: Path, images: Path) -> None:  # noqa: F811
    recipe = {'model': 'eunnet20_cifar', 'model_kwargs': {'depths': [1, 1, 1]}, 'data_dir': str(images), 'epochs': 1}
    recipe |= {'dataset': 'folder', 'batch_size': 2, 'img_size': 16, 'workers': 0, 'device': 'cpu', 'warmup_epochs': 0}
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(recipe))
    run = ['-m', 'nf_zoo', 'train', str(tmp_path / 'recipe.yaml'), '--output', str(tmp_path / 'run')]
    said = torchrun(*run).stdout
    assert said.count('written to') == 1
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert (result['processes'], result['steps']) == (2, result['train_n'] // 4)


@given(batch=st.integers(1, 40), accumulate=st.integers(1, 4), before=st.integers(1, 6), after=st.integers(1, 6))
def test_the_images_of_an_update_are_shared_out_whole_or_refused(
    batch: int, accumulate: int, before: int, after: int
) -> None:
    whole = batch * accumulate * before
    if whole % after:
        with pytest.raises(UserError, match=f'takes {whole} images, which {after} processes cannot share; use 1'):
            share_out(whole, batch, after, even=False)
        return
    size, times = share_out(whole, batch, after, even=False)
    assert size * times * after == whole and 1 <= size <= batch
    assert (size, times) == (batch, accumulate) or before != after


def test_pairs_for_mixup_stay_pairs() -> None:
    assert share_out(24, 8, 4, even=True) == (6, 1)
    assert share_out(12, 6, 2, even=True) == (6, 1)
    assert share_out(18, 6, 1, even=True) == (6, 3)
    with pytest.raises(UserError):
        share_out(12, 6, 4, even=True)


def test_lr_base_scales_with_the_images_of_all_processes() -> None:
    recipe = Recipe(model='x', lr_base=0.1, batch_size=64)
    assert learning_rate(recipe, 4 * 64) == pytest.approx(0.1)
