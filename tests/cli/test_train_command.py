"""`nf-zoo train`: its options, a run without a recipe, and one line for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_folders import images  # noqa: F401
from safetensors.torch import load_file
from train_toys import toys  # noqa: F401

from nf_zoo.cli import train as command
from nf_zoo.cli.main import main
from nf_zoo.train.recipe import GROUPS, TYPES
from nf_zoo.train.run_folder import read_recipe
from nf_zoo.train.starter import starter_recipe

pytestmark = pytest.mark.usefixtures('toys')
SMALL = '--img-size 16 --batch-size 4 --workers 0 --device cpu'.split()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / 'recipe.yaml'
    path.write_text(
        'model: eunnet20_cifar\nmodel_kwargs: {depths: [1, 1, 1]}\ndataset: toys\nepochs: 1\nwarmup_epochs: 0\n'
        'batch_size: 8\ndevice: cpu\nmean: [0.5, 0.5, 0.5]\nstd: [0.25, 0.25, 0.25]\n'
    )
    return path


def failed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main(['train', *map(str, argv)]) == 2
    out, error = capsys.readouterr()
    assert error.startswith('nf-zoo: error: ') and error.count('\n') == 1 and 'Traceback' not in out
    return error


def test_every_key_is_an_option_in_a_group_with_its_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['train', '--help'])
    text = capsys.readouterr().out
    assert all(f'\n{title}:\n' in text for title in GROUPS.values())
    assert all(f'--{key.replace("_", "-")}' in text for key in TYPES)
    flat = ' '.join(text.split())
    assert 'label smoothing (at least 0, less than 1; 0 is off; default 0.1)' in flat
    assert 'what is clipped; agc leaves the classifier out (norm, value, agc; default norm)' in flat


def test_both_spellings_of_an_option(recipe: Path, tmp_path: Path) -> None:
    for run, option in (('a', '--batch-size'), ('b', '--batch_size')):
        assert main(['train', str(recipe), '--output', str(tmp_path / run), option, '4', '--no_amp']) == 0
        assert read_recipe(tmp_path / run).batch_size == 4


def test_a_run_goes_on_by_its_own_recipe(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / 'run')
    assert main(['train', str(recipe), '--output', str(tmp_path), '--experiment', 'run']) == 0
    first = (tmp_path / 'run' / 'result.json').read_bytes()
    assert main(['train', '--output', run, '--resume']) == 0
    assert (tmp_path / 'run' / 'result.json').read_bytes() == first
    (tmp_path / 'run').rename(tmp_path / 'moved')
    assert main(['train', '--output', str(tmp_path / 'moved'), '--resume']) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ['moved']
    run = str(tmp_path / 'moved')
    assert 'lr -> ' not in failed(capsys, '--output', run, '--resume', '--seed', 1)
    assert '--change allows it' in failed(capsys, '--output', run, '--resume', '--lr', 0.5)


def test_a_model_with_weights_is_fine_tuned_on_a_folder(
    images: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (images / 'validation').rename(images / 'val')
    argv = ['--model', 'eunnet20_cifar', '--data-dir', str(images), '--output', str(tmp_path / 'run'), *SMALL]
    assert main(['train', *argv, '--epochs', '2']) == 0
    said = capsys.readouterr().out
    assert 'eunnet20_cifar, without a recipe: fine-tuning its weights, batch_size 4, epochs 2, lr 0.01' in said
    found = read_recipe(tmp_path / 'run')
    assert (found.pretrained, found.val_split, found.dataset) == (True, 'val', 'folder')
    assert json.loads((tmp_path / 'run' / 'result.json').read_text())['classes'] == ['cat', 'dog']


def test_few_pictures_make_small_batches_of_which_an_epoch_has_four(images: Path) -> None:  # noqa: F811
    assert starter_recipe({'model': 'eunnet20_cifar', 'data_dir': str(images)})[0].batch_size == 2  # 10 pictures
    for number in range(118):
        (images / 'train' / 'cat' / f'more{number}.JPG').touch()
    assert starter_recipe({'model': 'eunnet20_cifar', 'data_dir': str(images)})[0].batch_size == 32
    given = {'model': 'eunnet20_cifar', 'data_dir': str(images), 'batch_size': 7}
    assert starter_recipe(given)[0].batch_size == 7


@pytest.mark.parametrize(('epochs', 'warmup'), [(1, 0), (4, 0), (5, 1), (60, 1)])
def test_a_short_run_has_no_warm_up(images: Path, epochs: int, warmup: int) -> None:  # noqa: F811
    options = {'model': 'eunnet20_cifar', 'data_dir': str(images), 'epochs': epochs}
    recipe, _ = starter_recipe(options)
    recipe.check()
    assert recipe.warmup_epochs == warmup
    assert starter_recipe(options | {'warmup_epochs': 3})[0].warmup_epochs == 3


def test_converted_weights_for_other_classes_start_on_a_folder(
    images: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the tutorial goes from a converted network to one's own pictures."""
    assert main(['convert', 'bn_resnet20_cifar.cifar10', '-o', str(tmp_path / 'wn')]) == 0
    command = ['train', '--model', 'wn_resnet20_cifar', '--initial-checkpoint', str(tmp_path / 'wn'), '--epochs', '1']
    assert main([*command, '--data-dir', str(images), '--output', str(tmp_path / 'run'), '--device', 'cpu']) == 0
    assert 'is for 10 classes, not 2: its classifier starts anew' in capsys.readouterr().out
    before, after = (load_file(tmp_path / run / 'model.safetensors') for run in ('wn', 'run'))
    moved = {key: (value - after[key]).abs().max().item() for key, value in before.items() if 'head' not in key}
    assert 0 < max(moved.values()) < 0.5 and len(after['head.fc.weight']) == 2


def test_a_model_without_weights_is_trained_on_a_folder(
    images: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ['--model', 'fixup_resnet110_cifar', '--model-kwargs', '{depths: [1, 1, 1]}', '--data-dir', str(images)]
    argv += ['--output', str(tmp_path / 'run'), '--epochs', '1', '--warmup-epochs', '0', *SMALL]
    assert main(['train', *argv]) == 0
    assert 'without a recipe: training from the beginning, batch_size 4, epochs 1' in capsys.readouterr().out
    assert not read_recipe(tmp_path / 'run').pretrained


@pytest.mark.parametrize('data', ['recipe', 'folder', 'digits'])
def test_grey_images(images: Path, recipe: Path, tmp_path: Path, data: str) -> None:  # noqa: F811
    options: dict[str, list[Any]] = {
        'recipe': [],
        'folder': ['--dataset', 'folder', '--data-dir', images, *SMALL],
        'digits': ['--dataset', 'digits', '--img-size', 8, '--batch-size', 512],
    }
    run = tmp_path / 'run'
    argv = ['train', recipe, '--output', run, '--in-chans', 1, *options[data]]
    assert main([str(word) for word in argv]) == 0
    result = json.loads((run / 'result.json').read_text())
    assert result['input_size'][0] == 1 and result['mean'] == [0.5] and result['std'] == [0.25]
    if data == 'folder':
        assert main(['evaluate', str(run), '--data-dir', str(images)]) == 0


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        ([], 'what should be trained? give a RECIPE'),
        (['--output', 'run'], 'what should be trained?'),
        (['--output', 'run', '--resume'], 'run holds no run: it has no recipe.yaml'),
        (['--model', 'eunnet20_cifar'], 'which pictures? give --data-dir DIR'),
        (['--model', 'eunnet20_cifar', '--data-dir', 'nowhere', '--output', 'run'], 'nowhere: no such folder'),
        (['RECIPE', '--change', '--output', 'run'], '--change is for a run that goes on'),
        (['RECIPE', '--model-kwargs', '{'], "'{' is no mapping such as '{depths: [1, 1, 1]}'"),
        (['RECIPE', '--model-kwargs', '7'], 'model_kwargs is 7, expected a mapping'),
        (['RECIPE', '--train-sizes', '{0: 8, 0: 9}'], 'is there twice'),
        (['RECIPE', '--batch_sise', '4'], "did you mean '--batch-size'?"),
        (['RECIPE', '--lr', 'nan', '--output', 'run'], 'lr is nan, expected finite numbers'),
        (['RECIPE', '--hflip', '5', '--output', 'run'], 'hflip is 5.0, expected 0 to 1'),
        (['RECIPE', '--epochs', '9' * 5000], 'invalid int value'),
        (['RECIPE', '--device', 'cuda:99', '--output', 'run'], "device 'cuda:99' is not there; use --device cpu"),
        (['RECIPE', '--dataset', 'torchvision/cifar10', '--data-dir', '.', '--output', 'run'], "mean 'torch/cifar10'?"),
        (['/dev/null', '--output', 'run'], 'is a device, not a file'),
        (['RECIPE', '--output', 'a\ud800b'], 'expected a text'),
    ],
    ids=lambda value: ' '.join(value)[:40] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in failed(capsys, *(str(recipe) if word == 'RECIPE' else word for word in argv))
    assert [path.name for path in tmp_path.iterdir()] == ['recipe.yaml']


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_evaluation_on_a_device_that_is_not_there_is_one_line(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['train', str(recipe), '--output', str(tmp_path / 'run')]) == 0
    capsys.readouterr()
    assert main(['evaluate', str(tmp_path / 'run'), '--device', 'cuda']) == 2
    assert capsys.readouterr().err == "nf-zoo: error: device 'cuda' is not there; use --device cpu\n"


def test_a_run_whose_output_nobody_reads_says_that_it_is_not_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*args: object, **kwargs: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(command, 'train', closed)
    assert main(['train', 'cifar10/eunnet20_cifar', '--output', str(tmp_path / 'run')]) == 1
    assert 'nothing reads the output any more' in capsys.readouterr().err
