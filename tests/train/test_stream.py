"""Data that are read from their start: each image in its share, exact resume, and one line for what can't be read."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import HERE, ranks
from picture_folders import CONFIG, equal
from PIL import Image
from train_toys import outcome, run_toy, stop_at, toy_recipe

from nf_zoo.errors import UserError
from nf_zoo.inference.scoring import load
from nf_zoo.train import Recipe, evaluate, train
from nf_zoo.train.build import read_sets
from nf_zoo.train.data.stream import StreamData
from nf_zoo.train.data.timm_sets import open_named
from nf_zoo.train.plan import describe

pytestmark = pytest.mark.timeout(300)  # many processes
SHARDS = {'train': 4, 'validation': 3}
IMAGES = 6  # in a shard
FACTS: dict[str, Any] = {'dataset': 'wds/toys', 'num_classes': 3, 'workers': 2, 'batch_size': 4, 'img_size': 16}


def png(label: int, number: int) -> bytes:
    """Noise, and ``number`` in the first pixel's red: no two images are the same."""
    pixels = np.random.default_rng(number).integers(0, 160, (20, 18, 3), dtype=np.uint8)
    pixels[..., label] += 95
    pixels[0, 0, 0] = number
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


@pytest.fixture(scope='module')
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('wds')
    number, splits = 0, {}
    for split, count in SHARDS.items():
        names = [f'{split}-{i:02d}.tar' for i in range(count)]
        for name in names:
            with tarfile.open(folder / name, 'w') as archive:
                for _ in range(IMAGES):
                    label = number % 3
                    for extension, data in (('png', png(label, number)), ('cls', str(label).encode())):
                        member = tarfile.TarInfo(f'{number:04d}.{extension}')
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
                    number += 1
        splits[split] = {
            'name': split,
            'num_samples': count * IMAGES,
            'filenames': names,
            'shard_lengths': [IMAGES] * count,
        }
    (folder / '_info.json').write_text(json.dumps({'splits': splits}))
    return folder


def recipe_of(folder: Path | None, **options: Any) -> Recipe:
    return Recipe().with_options({'model': 'x', 'data_dir': folder and str(folder), **FACTS, **options})


def make(folder: Path, **options: Any) -> StreamData:
    recipe = recipe_of(folder, **options)
    return StreamData(*read_sets(recipe), recipe, CONFIG, torch.device('cpu'))


def options_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {**FACTS, 'data_dir': str(folder), 'recovery_interval': 1, **more}


def numbers(batches: Any) -> list[int]:
    """The images by the number in their first pixel, where nothing is cropped, mirrored or resized."""
    return [round((value.item() * 0.5 + 0.5) * 255) for x, _ in batches for value in x[:, 0, 0, 0]]


WHOLE: dict[str, Any] = {'scale': [1.0, 1.0], 'ratio': [0.9, 0.9], 'hflip': 0.0, 'color_jitter': 0.0}


@pytest.mark.parametrize('workers', [0, 1, 2, 3])
def test_an_epoch_gives_the_announced_number_of_full_batches_in_another_order_each_time(
    shards: Path, workers: int
) -> None:
    config = {**CONFIG, 'input_size': (3, 20, 18)}
    recipe = recipe_of(shards, workers=workers, batch_size=2, **WHOLE)
    data = StreamData(*read_sets(recipe), recipe, config, torch.device('cpu'))
    found = [list(data.train_batches(epoch, 0)) for epoch in (0, 1, 1)]
    assert (data.train_n, data.val_n) == (24, 18) and [len(batches) for batches in found] == [12] * 3
    assert all(x.shape == (2, 3, 20, 18) for x, _ in found[0])
    first, second, again = (numbers(batches) for batches in found)
    assert second == again and first != second
    if 4 % data.workers == 0:  # else a worker with few shards begins again
        assert sorted(first) == sorted(second) == list(range(24))
    labels = [y for _, ys in found[0] for y in ys.tolist()]
    assert labels == [number % 3 for number in first]


def test_validation_is_every_image_once(shards: Path) -> None:
    config = {**CONFIG, 'input_size': (3, 20, 18)}
    for workers in (1, 2, 3):
        recipe = recipe_of(shards, workers=workers, validation_batch_size=5)
        data = StreamData(*read_sets(recipe), recipe, config, torch.device('cpu'))
        assert sorted(numbers(data.val_batches())) == list(range(24, 42))
        assert equal(list(data.val_batches()), list(data.val_batches()))


@pytest.mark.parametrize('start', [1, 2, 3, 5, 6])
def test_a_start_within_an_epoch_gives_the_rest_of_it(shards: Path, start: int) -> None:
    options: dict[str, Any] = {'aa': 'rand-m9-n2', 'reprob': 0.5}
    whole = list(make(shards, **options).train_batches(1, 0))
    assert equal(list(make(shards, **options).train_batches(1, start)), whole[start:])
    assert not equal(list(make(shards, seed=1, **options).train_batches(1, 0)), whole)


REGULARISED: dict[str, Any] = {'mixup': 0.5, 'drop': 0.2}


@pytest.fixture(scope='module')
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('whole')
    run_toy(folder, **options_of(shards, **REGULARISED))
    return folder


@pytest.mark.parametrize('where', ['epoch 1/2: update 2/6', 'epoch 2/2: update 1/6'])
def test_ctrl_c_and_resume_equal_the_uninterrupted_run(shards: Path, whole: Path, tmp_path: Path, where: str) -> None:
    options = options_of(shards, **REGULARISED)
    stop_at(toy_recipe(tmp_path, **options), where)
    said: list[str] = []
    train(toy_recipe(tmp_path, resume=True, **options), log=said.append, bar=False)
    assert outcome(tmp_path) == outcome(whole)
    done = 4 * int(where.split()[-1].partition('/')[0])
    assert f'wds/toys is read from its start: the first {done} images of this epoch are read again and dropped' in said


def test_another_number_of_workers_is_said(shards: Path, tmp_path: Path) -> None:
    stop_at(toy_recipe(tmp_path, **options_of(shards, epochs=1)), 'epoch 1/1: update 2/6')
    said: list[str] = []
    train(toy_recipe(tmp_path, resume=True, **options_of(shards, epochs=1, workers=1)), log=said.append, bar=False)
    assert 'wds/toys: 1 x 1 workers instead of 1 x 2, so its images come in another order from here on' in said


def test_what_was_read_is_what_the_result_says(shards: Path, tmp_path: Path) -> None:
    options = options_of(shards, val_num_samples=500, epochs=1)
    result = run_toy(tmp_path, **options)
    assert result['metrics']['n'] == 18 and result['train_n'] == 24
    assert result == run_toy(tmp_path, **options, resume=True)


def test_a_split_without_a_list_of_shards_needs_the_number_of_images(shards: Path) -> None:
    split = {'train_split': 'train-{00..03}.tar|24', 'val_split': 'validation-{00..02}.tar'}
    with pytest.raises(UserError, match='does not say how many images .* has; give --val-num-samples N'):
        read_sets(recipe_of(shards, **split))
    sets = read_sets(recipe_of(shards, **split, val_num_samples=18))
    assert [len(images) for images in sets] == [24, 18]


def test_the_plan_and_the_evaluation_know_streams(shards: Path) -> None:
    recipe = toy_recipe(Path(), **FACTS, data_dir=str(shards))
    assert 'wds/toys: 24 training and 18 validation images' in next(describe(recipe))
    import timm

    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1], num_classes=3)
    assert evaluate(model, 'wds/toys', shards, batch_size=5)['n'] == 18


def rewritten(shards: Path, folder: Path, **split: Any) -> Path:
    for file in shards.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    info = json.loads((shards / '_info.json').read_text())
    info['splits']['train'] |= split
    (folder / '_info.json').write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize('name', ['pipe:touch x', '../train-00.tar', '/train-00.tar', "a';touch x;'.tar", 'none.tar'])
def test_names_of_shards_are_looked_at_before_they_are_opened(shards: Path, tmp_path: Path, name: str) -> None:
    folder = rewritten(shards, tmp_path, filenames=['train-00.tar', name])
    with pytest.raises(UserError, match='is missing' if name == 'none.tar' else 'is no name of a shard') as caught:
        read_sets(recipe_of(folder))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'data_dir': None}, 'wds/toys needs its folder: --data-dir DIR'),
        ({'num_classes': None}, 'does not name its classes; say how many with --num-classes'),
        ({'val_split': 'test'}, 'cannot be read from .*: split test not found'),
        ({'dataset': 'tfds/mnist'}, r'need tensorflow and tensorflow-datasets: pip install tensorflow tensorflow-data'),
    ],
)
def test_a_stream_that_cannot_be_opened_is_one_line(shards: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read_sets(recipe_of(shards, **options))
    assert '\n' not in str(caught.value)


def test_a_missing_package_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('nf_zoo.train.data.timm_sets.find_spec', lambda name: None)
    for name, package in (('wds', 'webdataset'), ('hfids', 'datasets'), ('hfds', 'datasets')):
        with pytest.raises(UserError, match=f'{name}/ data sets need {package}: pip install {package}$'):
            open_named(recipe_of(shards, dataset=f'{name}/x'), 'train')


def test_labels_beyond_the_classes_and_empty_shards_end_the_epoch_with_one_line(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='^wds/toys: there is a label 2, but there are 2 classes$'):
        list(make(shards, num_classes=2).train_batches(0, 0))
    folder = rewritten(shards, tmp_path)
    for file in folder.glob('train*.tar'):
        tarfile.open(file, 'w').close()
    with pytest.raises(UserError, match='^wds/toys: train ended after 0 of 6 batches$'):
        list(make(folder).train_batches(0, 0))


@pytest.mark.filterwarnings('ignore:This DataLoader will create 3 worker processes')
def test_hugging_face_sets_as_streams_and_with_random_access(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    tmp_path = tmp_path_factory.mktemp('parquet')  # datasets looks for names of splits in the path
    datasets.disable_progress_bars()
    features = datasets.Features({'picture': datasets.Image(), 'kind': datasets.ClassLabel(names=['r', 'g', 'b'])})
    for name, first in (('train-0-of-2', 0), ('train-1-of-2', 12), ('validation-0-of-1', 24)):
        rows = [{'picture': {'bytes': png(n % 3, n), 'path': None}, 'kind': n % 3} for n in range(first, first + 12)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / f'{name}.parquet')
    options = {'dataset': f'hfids/{tmp_path}', 'input_key': 'picture', 'target_key': 'kind', 'val_num_samples': 12}
    with pytest.raises(UserError, match='Dataset length is unknown, give --train-num-samples N'):
        make(tmp_path / 'cache', **options)
    data = make(tmp_path / 'cache', **options, train_num_samples=24)
    whole = list(data.train_batches(1, 0))
    assert len(whole) == 6 and not equal(list(data.train_batches(0, 0)), whole)
    assert equal(list(make(tmp_path / 'cache', **options, train_num_samples=24).train_batches(1, 3)), whole[3:])
    assert sum(len(y) for _, y in data.val_batches()) == 12
    data.workers = 3
    with pytest.raises(UserError, match=r'^hfids/.* reports 2 shard\(s\) .* the loader has 3 workers') as caught:
        next(data.train_batches(0, 0))
    assert '\n' not in str(caught.value)

    train, val = read_sets(recipe_of(tmp_path / 'cache', **options | {'dataset': f'hfds/{tmp_path}'}))
    assert (len(train), len(val), val.classes) == (24, 12, ['r', 'g', 'b'])
    assert val[2][1] == 26 % 3 and np.asarray(val[2][0])[0, 0, 0] == 26


def test_two_processes_have_a_share_each_and_resume_exactly(shards: Path, tmp_path: Path) -> None:
    options = options_of(shards, batch_size=2)
    said = ranks(HERE / 'ddp_toys.py', str(tmp_path), yaml.safe_dump(options), 'whole', 'pieces').stdout
    assert outcome(tmp_path / 'pieces') == outcome(tmp_path / 'whole')
    assert 'the first 8 images of this epoch are read again and dropped' in said
    result = json.loads((tmp_path / 'whole' / 'result.json').read_text())
    assert (result['steps'], result['metrics']['n'], result['processes']) == (12, 18, 2)
    # of three shards, one process has two: each image counts once all the same
    alone = evaluate(load(str(tmp_path / 'whole'))[0], 'wds/toys', shards)
    assert alone == pytest.approx(result['metrics'], rel=1e-5)
