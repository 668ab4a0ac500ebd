"""What a private training promises: publish takes it from the run, manifest and card say it, half of it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hubs import FACTS, make_model

import nf_zoo
from nf_zoo.errors import UserError
from nf_zoo.train.data.config import data_config
from nf_zoo.train.recipe import Recipe
from nf_zoo.train.run_folder import write_run

PROMISE: dict[str, Any] = {'epsilon': 2.998, 'delta': 1e-4, 'clip': 1.0, 'noise': 2.25, 'sample_rate': 0.178}
PROMISE |= {'steps': 30, 'accountant': 'prv'}


def written(folder: Path, **facts: Any) -> Path:
    model = make_model()
    recipe = Recipe().with_options({'model': 'eunnet20_cifar'})
    known = {key: FACTS[key] for key in ('dataset', 'classes', 'metrics', 'recipe')} | facts
    write_run(folder, model, recipe, data_config(model), num_classes=3, **known)
    return folder


def published(run: Path, hub: Path) -> tuple[dict[str, Any], str]:
    folder = Path(nf_zoo.publish(run, hub))
    assert nf_zoo.verify(folder.name, hub=hub).name_tag == folder.name
    return json.loads((folder / 'manifest.json').read_text()), (folder / 'README.md').read_text()


def test_the_promise_of_a_run_is_in_manifest_and_card(tmp_path: Path) -> None:
    manifest, card = published(written(tmp_path / 'run', privacy=PROMISE), tmp_path / 'hub')
    assert manifest['privacy'] == PROMISE
    (row,) = [line for line in card.splitlines() if line.startswith('| Differential privacy')]
    for text in ('epsilon 2.998 at delta 0.0001', 'clipped at 1', 'noise of 2.25', '0.178', '30 steps', 'prv'):
        assert text in row


def test_a_copy_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(written(tmp_path / 'run', privacy=PROMISE), tmp_path / 'hub')
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path / 'hub'))
    folder = Path(nf_zoo.publish('eunnet20_cifar.toy', tmp_path / 'other', dtype='float16'))
    assert json.loads((folder / 'manifest.json').read_text())['privacy'] == PROMISE


def test_a_training_without_it_says_nothing_of_it(tmp_path: Path) -> None:
    manifest, card = published(written(tmp_path / 'run'), tmp_path / 'hub')
    assert 'privacy' not in manifest and 'Differential privacy' not in card


@pytest.mark.parametrize(
    'privacy',
    [
        {'epsilon': 3.0},
        {'epsilon': 3.0, 'delta': 2.0},
        {'epsilon': -1.0, 'delta': 1e-4},
        {'epsilon': '3', 'delta': 1e-4},
        {**PROMISE, 'epsilom': 3.0},
    ],
    ids=str,
)
def test_half_a_promise_is_refused(privacy: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match='privacy'):
        nf_zoo.publish(written(tmp_path / 'run', privacy=privacy), tmp_path / 'hub')
    assert not list(tmp_path.glob('hub/*'))
