"""Fetching and verifying: what is returned was checked, and what was checked holds."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
from hubs import FACTS, NAME, contents_of, make_model, make_run, one_line
from safetensors.torch import load_file

from nf_zoo import hub
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.files import tensor_bytes
from nf_zoo.hub.index import index


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / 'run')


def test_fetch_gives_a_verified_folder(run: Path) -> None:
    folder = Path(hub.publish(run, run.parent / 'hub'))
    assert hub.fetch(f'{NAME}.toy', run.parent / 'hub') == hub.fetch(NAME, run.parent / 'hub') == folder
    (folder / 'curves.png').write_bytes(b'other')
    with pytest.raises(CheckFailed, match='curves.png'):
        hub.fetch(NAME, run.parent / 'hub')
    with pytest.raises(UserError, match='did you mean'):
        hub.fetch(f'{NAME}.toi', run.parent / 'hub')


def test_verify_reports_what_it_checked(run: Path) -> None:
    folder = Path(hub.publish(run, run.parent / 'hub'))
    report = hub.verify(f'{NAME}.toy', hub=run.parent / 'hub')
    assert report.path == folder and report.recorded == FACTS['metrics'] and report.measured is None
    assert set(report.files) == set(contents_of(folder)) - {'manifest.json'} and '62.50' in str(report)


@pytest.mark.parametrize(
    ('filename', 'old', 'new'),
    [
        ('README.md', 'value: 62.5', 'value: 99.5'),
        ('README.md', 'license: apache-2.0', 'license: mit'),
        ('README.md', '---\n', '\n'),
        ('README.md', '---\n', '---\n- [\n'),
        ('README.md', '---\n', f'---\nx: {"[" * 3000}\n'),
        ('README.md', 'license: apache-2.0', 'license: &a [*a]'),
        ('README.md', 'license: apache-2.0', 'license: "\\e[31m"'),
        ('manifest.json', '62.5', '99.5'),
        ('manifest.json', '"num_classes": 3', '"num_classes": 4'),
        ('config.json', '"license": "apache-2.0"', '"license": "mit"'),
        ('config.json', '"depths": [\n      1,', '"depths": [\n      2,'),
    ],
)
def test_verify_finds_what_contradicts(run: Path, filename: str, old: str, new: str) -> None:
    """Also where every hash is right."""
    folder = Path(hub.publish(run, run.parent / 'hub'))
    text = (folder / filename).read_text()
    assert old in text
    (folder / filename).write_text(text.replace(old, new))
    manifest = json.loads((folder / 'manifest.json').read_text())
    if filename != 'manifest.json':
        manifest['files'][filename] = hashlib.sha256((folder / filename).read_bytes()).hexdigest()
        (folder / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed) as error:
        hub.verify(NAME, hub=run.parent / 'hub')
    one_line(error)


def test_verify_finds_weights_of_another_shape(tmp_path: Path) -> None:
    folder = Path(hub.publish(make_model(), tmp_path, tag='toy'))
    state = load_file(folder / 'model.safetensors')
    state.pop('head.fc.bias')
    data = tensor_bytes(state)
    (folder / 'model.safetensors').write_bytes(data)
    manifest = json.loads((folder / 'manifest.json').read_text())
    sha = hashlib.sha256(data).hexdigest()
    manifest |= {'sha256': sha, 'bytes': len(data), 'files': manifest['files'] | {'model.safetensors': sha}}
    (folder / 'manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed, match='head.fc.bias') as error:
        hub.verify(NAME, hub=tmp_path)
    one_line(error)


def test_verify_measures_the_accuracy_again(tmp_path: Path) -> None:
    pytest.importorskip('sklearn')
    from nf_zoo.train import evaluate

    model = timm.create_model(NAME, depths=(1, 1, 1)).eval()
    measured = evaluate(model, 'digits')
    hub.publish(model, tmp_path, dataset='digits', metrics=measured)
    report = hub.verify(NAME, tmp_path, hub=tmp_path)
    assert report.measured == pytest.approx(measured)
    top1, top5 = measured['top1'] + 5, max(measured['top1'], measured['top5'] - 9)
    for wrong in ({'top1': top1, 'top5': 100.0}, {'n': 17}, {'top5': top5}):
        hub.publish(model, tmp_path, dataset='digits', metrics=measured | wrong, replace=True)
        with pytest.raises(CheckFailed, match='recorded') as error:
            hub.verify(NAME, tmp_path, hub=tmp_path)
        one_line(error)


def test_a_wide_tolerance_of_the_publishers_own_is_not_kept(tmp_path: Path) -> None:
    pytest.importorskip('sklearn')
    from nf_zoo.train import evaluate

    model = timm.create_model(NAME, depths=(1, 1, 1)).eval()
    measured = evaluate(model, 'digits')
    wrong = {**measured, 'top1': measured['top1'] + 20, 'top5': 100.0}
    folder = Path(hub.publish(model, tmp_path, dataset='digits', metrics=wrong))
    manifest = json.loads((folder / 'manifest.json').read_text())
    (folder / 'manifest.json').write_text(json.dumps(manifest | {'tolerance': {'top1': 100.0}}))
    with pytest.raises(CheckFailed, match='recorded'):
        hub.verify(NAME, tmp_path, hub=tmp_path)


def test_a_run_is_verified_as_published_weights_are(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = hub.verify(str(run))
    assert report.recorded == FACTS['metrics'] and report.path == run and 'verified' in str(report)
    pytest.importorskip('sklearn')
    result = json.loads((run / 'result.json').read_text())
    (run / 'result.json').write_text(json.dumps(result | {'dataset': 'toys'}))
    monkeypatch.setattr('nf_zoo.train.evaluate', lambda *args, **kwargs: FACTS['metrics'])
    assert hub.verify(str(run), tmp_path).measured == FACTS['metrics']
    monkeypatch.setattr('nf_zoo.train.evaluate', lambda *args, **kwargs: {**FACTS['metrics'], 'top1': 0.0})
    with pytest.raises(CheckFailed, match='recorded is 62.5 %'):
        hub.verify(str(run), tmp_path)


def test_bundle_publishes_into_the_package_and_pins(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / 'bundled'
    own.mkdir()
    (own / 'index.json').write_text('{}')
    monkeypatch.setattr('nf_zoo.hub.index._BUNDLED', own)
    folder = hub.bundle(run)
    assert list(index()) == [f'{NAME}.toy'] and hub.fetch(NAME) == folder
    assert hub.verify(NAME).place == str(own)
