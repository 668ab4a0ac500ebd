"""The tables of results say what the bundled manifests say, and each recipe that they name is there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nf_zoo.train.recipe import load_recipe
from tools.profile_step import table
from tools.results import ROOT, files, row_of, rows, unpublished


def test_the_tables_are_up_to_date() -> None:
    for path, text in files().items():
        assert path.read_text(encoding='utf-8') == text, f'{path.name}: make results'


PUBLISHED = [row for table in rows().values() for row in table]


@pytest.mark.parametrize('row', [row for row in PUBLISHED if row['recipe']], ids=lambda row: row['model'])
def test_the_recipe_is_the_one_that_it_was_trained_by(row: dict[str, Any]) -> None:
    committed = load_recipe(ROOT / row['recipe']).settings()
    trained = json.loads(json.dumps(row['manifest']['recipe']))
    committed = json.loads(json.dumps(committed))
    assert {key: committed[key] for key in trained} == trained


@pytest.mark.parametrize('row', [row for row in PUBLISHED if not row['recipe']], ids=lambda row: row['model'])
def test_what_has_no_recipe_is_converted_from_weights_with_the_same_accuracy(row: dict[str, Any]) -> None:
    note = re.match(r'Converted from (\S+), which has batch normalization\.', row['manifest']['note'])
    original = next(other for other in PUBLISHED if note and other['model'] == note[1])
    assert (row['top1'], row['top5']) == (original['top1'], original['top5'])


def test_a_run_is_listed_under_the_recipe_whose_settings_it_has(tmp_path: Path) -> None:
    recipe = 'configs/cifar10/eunnet20_cifar.l2.yaml'
    result = {
        'model': 'eunnet20_cifar',
        'num_classes': 10,
        'classes': list('abcdefghij'),
        'input_size': [3, 32, 32],
        'mean': [0.5, 0.5, 0.5],
        'std': [0.5, 0.5, 0.5],
        'interpolation': 'bicubic',
        'crop_pct': 1.0,
        'bytes': 1000,
        'dataset': 'cifar10',
        'recipe': load_recipe(ROOT / recipe).settings() | {'seed': 7},
        'seed': 7,
        'metrics': {'top1': 81.25, 'top5': 99.0, 'loss': 0.54321, 'n': 10000},
        'epochs': 8,
        'seconds': 600.4,
        'hardware': 'a processor',
        'sha256': 64 * 'a',
    }
    (tmp_path / 'result.json').write_text(json.dumps(result))
    row = row_of(tmp_path)
    assert (row['recipe'], row['seed'], row['top1'], row['loss'], row['minutes']) == (
        recipe,
        '7',
        '81.25',
        '0.5432',
        '10',
    )
    other_rate = result['recipe'] | {'lr': 2 * result['recipe']['lr']}
    one_size = {key: value for key, value in result['recipe'].items() if key != 'train_sizes'}  # the default, unsaid
    for settings in (other_rate, one_size):
        (tmp_path / 'result.json').write_text(json.dumps(result | {'recipe': settings}))
        with pytest.raises(SystemExit, match='no recipe in configs/cifar10 has its settings'):
            row_of(tmp_path)


def test_each_run_is_listed_once_and_is_as_long_as_its_recipe() -> None:
    keys = [(row['recipe'], row['seed']) for row in unpublished()]
    assert len(keys) == len(set(keys))
    for row in unpublished():
        assert load_recipe(ROOT / row['recipe']).epochs == int(row['epochs'])


def test_the_table_of_a_step_has_every_millisecond_once() -> None:
    times = {'net': {'conv': 800.0, 'norm': 150.0, 'small': 4.0, 'tiny': 2.0}, 'peer': {'conv': 700.0, 'relu': 20.0}}
    assert table(times)[2:] == [
        '| `conv` | 800 | 700 |',
        '| `norm` | 150 | 0 |',
        '| `relu` | 0 | 20 |',
        '| all others | 6 | 0 |',
        '| sum | 956 | 720 |',
    ]
