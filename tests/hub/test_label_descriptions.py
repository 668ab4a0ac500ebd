"""Weights of photographs in folders that are named by WordNet's numbers: their classes are shown in words."""

import json
from pathlib import Path
from typing import Any

import pytest
from hubs import NAME, make_run
from PIL import Image
from timm.data import ImageNetInfo

from nf_zoo import hub
from nf_zoo.cli import main as cli
from nf_zoo.hub.names import CARD, CONFIG
from nf_zoo.inference.loading import class_names, load_model
from nf_zoo.train.data.labels import label_descriptions
from nf_zoo.train.evaluation import evaluate

IDS = ['n01440764', 'n03417042', 'n03888257']
WORDS = ['tench', 'garbage truck', 'parachute']
NOTE = 'The photographs were squares.'


def test_classes_get_words_and_other_names_none() -> None:
    assert label_descriptions(IDS) == dict(zip(IDS, WORDS, strict=True))
    assert label_descriptions(['airplane', 'n03417042']) == label_descriptions(['n00000000']) == {}
    assert label_descriptions([]) == {}
    every = ImageNetInfo().label_names()
    assert list(label_descriptions(every)) == every and all(label_descriptions(every).values())


@pytest.fixture(params=['.', 'imagenette', 'imagenette2-160'])
def photographs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with Imagenette's validation split, two photographs a class, itself or in a folder inside."""
    for label, name in enumerate(IDS):
        folder = tmp_path / 'data' / request.param / 'val' / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.effect_noise((40, 32), 20.0 + label + number).convert('RGB').save(folder / f'{number}.png')
    return tmp_path / 'data'


def test_published_photographs(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts: dict[str, Any] = dict(classes=IDS, dataset='imagenette', note=NOTE)
    run, name = make_run(tmp_path / 'run'), f'{NAME}.imagenette'
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path / 'first'))
    hub.publish(run, tmp_path / 'first', name, **facts)
    facts['metrics'] = evaluate(load_model(name), 'imagenette', photographs)
    assert facts['metrics']['n'] == 6
    folder = Path(hub.publish(run, tmp_path / 'first', name, replace=True, **facts))

    config = json.loads((folder / CONFIG).read_text())
    assert config['label_names'] == IDS and list(config['label_descriptions'].values()) == WORDS
    assert NOTE in (folder / CARD).read_text() and 'Imagenette' in (folder / CARD).read_text()
    assert hub.verify(name, data_dir=photographs).measured == facts['metrics']
    assert class_names(load_model(name)) == WORDS

    picture = next(photographs.rglob('*.png')).rename(tmp_path / 'photo.png')
    assert cli.main(['predict', name, str(picture)]) in (None, 0)
    assert cli.main(['evaluate', name, '--data-dir', str(photographs), '--per-class']) in (None, 0)
    said = capsys.readouterr().out
    assert all(said.count(word) >= 2 for word in WORDS) and not any(number in said for number in IDS)


def test_a_run_says_its_classes_in_words_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / 'run')
    result = json.loads((run / 'result.json').read_text())
    (run / 'result.json').write_text(json.dumps(result | {'classes': IDS}))
    assert class_names(load_model(str(run))) == WORDS
