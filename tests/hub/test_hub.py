"""Publishing, fetching and verifying: a folder is there whole or not at all, and says the truth about its weights."""

import errno
import hashlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hubs import FACTS, NAME, SMALL, contents_of, full_disk, make_model, make_run, one_line

from nf_zoo import hub
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.hub import directory, package, places, weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / 'run')


# --- What is published ---


def test_a_run_becomes_a_folder_that_timm_and_the_registry_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = run.parent / 'hub'
    folder = hub.publish(run, place)
    assert folder == place / f'{NAME}.toy'
    assert set(contents_of(place / f'{NAME}.toy')) == {
        'README.md',
        'config.json',
        'curves.png',
        'manifest.json',
        'model.safetensors',
    }
    assert (place / f'{NAME}.toy' / 'model.safetensors').read_bytes() == (run / 'model.safetensors').read_bytes()
    monkeypatch.setenv('NF_ZOO_HUB', str(place))
    by_name = timm.create_model(f'{NAME}.toy', pretrained=True).eval()
    by_folder = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(by_name(x), make_model()(x)) and torch.equal(by_folder(x), by_name(x))
    for model in (by_name, by_folder):
        config = timm.data.resolve_model_data_config(model)
        assert tuple(config['mean']) == (0.1, 0.2, 0.3) and config['interpolation'] == 'bilinear'
        assert tuple(model.pretrained_cfg['label_names']) == ('a', 'b', 'c')


def test_manifest_and_card_say_what_the_run_said(run: Path) -> None:
    folder = Path(hub.publish(run, run.parent / 'hub', tag='v2', license='cc0-1.0'))
    manifest = json.loads((folder / 'manifest.json').read_text())
    for key in ('dataset', 'metrics', 'seed', 'epochs', 'seconds', 'hardware', 'versions'):
        assert manifest[key] == FACTS[key]
    assert (manifest['architecture'], manifest['tag'], manifest['license']) == (NAME, 'v2', 'cc0-1.0')
    assert manifest['parameters'] == sum(p.numel() for p in make_model().parameters())
    assert manifest['recipe']['lr'] == 0.1 and manifest['model_args']['depths'] == [1, 1, 1]
    card = (folder / 'README.md').read_text()
    for part in (
        f"create_model('{NAME}.v2', pretrained=True)",
        'local-dir:',
        '62.50',
        'lr: 0.1',
        '(curves.png)',
        'cc0-1.0',
    ):
        assert part in card
    assert card.index('import nf_zoo') < card.index('timm.create_model')
    assert not any(str(run.parent) in text or '/home/me' in text for text in (card, json.dumps(manifest)))


def test_a_model_is_published_as_a_run_is(run: Path, tmp_path: Path) -> None:
    model = hub.publish(make_model(), tmp_path / 'a', tag='toy', **FACTS)
    sha = weights.load(NAME, 'toy', places.DirPlace(tmp_path / 'a')).folder.manifest['sha256']
    assert Path(model).name == f'{NAME}.toy' and sha == json.loads((run / 'result.json').read_text())['sha256']


def test_half_precision_halves_the_file_and_loads(tmp_path: Path) -> None:
    model = make_model()
    full = Path(hub.publish(model, tmp_path, f'{NAME}.full'))
    half = Path(hub.publish(model, tmp_path, f'{NAME}.half', dtype='float16', metrics=FACTS['metrics']))
    sizes = [(folder / 'model.safetensors').stat().st_size for folder in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = weights.load(NAME, 'half', places.DirPlace(tmp_path))
    assert loaded.folder.manifest['dtype'] == 'float16' and all(
        t.dtype == torch.float16 for t in loaded.state_dict.values()
    )
    again = timm.create_model(NAME, **SMALL)
    again.load_state_dict(loaded.state_dict)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=1e-3, atol=1e-6)
    assert hub.verify(f'{NAME}.half', hub=tmp_path)


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        (dict(name='resnet50'), 'not of resnet50'),
        (dict(name='../x'), 'not a model name'),
        (dict(tag='a/b'), 'not a model name'),
        (dict(name=f'{NAME}.a', tag='b'), 'two tags'),
        (dict(dtype='int8'), 'float16'),
        (dict(metric={}), "did you mean 'metrics'"),
        (dict(classes=['a']), '3 classes'),
        (dict(num_classes=5), '3 classes'),
        (dict(mean=(0.5,), std=(0.0,)), 'std'),
    ],
)
def test_what_no_reader_would_take_is_not_published(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as error:
        hub.publish(make_model(), tmp_path / 'hub', **({'tag': 'toy'} if 'name' not in options else {}) | options)
    one_line(error)
    assert not (tmp_path / 'hub').exists()


def test_weights_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.head.fc.weight[0, 0] = float('nan')
    with pytest.raises(UserError, match='head.fc.weight'):
        hub.publish(model, tmp_path, tag='toy')


def test_a_run_that_is_none_or_has_changed(run: Path, tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='not a finished run'):
        hub.publish(tmp_path / 'empty', tmp_path / 'hub')
    data = bytearray((run / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (run / 'model.safetensors').write_bytes(data)
    with pytest.raises(CheckFailed, match='sha256'):
        hub.publish(run, tmp_path / 'hub')
    for text in ('{}', '[]', json.dumps({'sha256': hashlib.sha256(data).hexdigest()})):
        (run / 'result.json').write_text(text)
        with pytest.raises((CheckFailed, UserError)) as error:
            hub.publish(run, tmp_path / 'hub')
        one_line(error)
    assert not (tmp_path / 'hub').exists()


# --- Into a directory ---


def test_the_same_weights_twice_change_nothing_and_others_are_refused(tmp_path: Path) -> None:
    folder = Path(hub.publish(make_model(), tmp_path, tag='toy'))
    before, inode = contents_of(tmp_path), folder.stat().st_ino
    assert hub.publish(make_model(), tmp_path, tag='toy') == folder
    with pytest.raises(UserError, match='--replace') as error:
        hub.publish(make_model(1), tmp_path, tag='toy')
    one_line(error)
    assert contents_of(tmp_path) == before and folder.stat().st_ino == inode
    hub.publish(make_model(1), tmp_path, tag='toy', replace=True)
    assert contents_of(tmp_path).keys() == before.keys() and contents_of(tmp_path) != before
    assert hub.verify(f'{NAME}.toy', hub=tmp_path)


@pytest.mark.parametrize(
    ('options', 'word'),
    [
        (dict(license='mit'), r"license \('apache-2.0' there, 'mit' here\)"),
        (dict(metrics={'top1': 50.0, 'n': 4}), 'metrics'),
        (dict(classes=['x', 'y', 'z']), 'classes'),
        (dict(std=(1.0, 1.0, 1.0)), 'preprocessing'),
        (dict(seed=8), 'seed'),
    ],
)
def test_the_same_weights_with_other_facts_are_refused_or_replaced(
    tmp_path: Path, options: dict[str, Any], word: str
) -> None:
    folder = Path(hub.publish(make_model(), tmp_path, tag='toy', **FACTS))
    before = contents_of(folder)
    for dry_run in (True, False):
        with pytest.raises(UserError, match=word) as error:
            hub.publish(make_model(), tmp_path, tag='toy', dry_run=dry_run, **FACTS | options)
        assert '--replace' in one_line(error) and contents_of(folder) == before
    hub.publish(make_model(), tmp_path, tag='toy', replace=True, **FACTS | options)
    assert contents_of(folder)['model.safetensors'] == before['model.safetensors']
    changed = {name for name, data in contents_of(folder).items() if data != before[name]}
    assert {'manifest.json'} <= changed and hub.verify(f'{NAME}.toy', hub=tmp_path)


@pytest.mark.parametrize(
    'metrics',
    [{'top1': -5.0}, {'top1': 101}, {'top5': 100.5}, {'loss': -1.0}, {'n': 0}, {'n': 2.5}, {'n': True}, {'top1': '9'}]
    + [{'top1': 60.0, 'top5': 50.0}, {'loss': float('nan')}, {'loss': float('inf')}, [1], {'top1': {}}, 'top1'],
    ids=str,
)
def test_metrics_that_cannot_be_are_not_published(tmp_path: Path, metrics: Any) -> None:
    with pytest.raises(UserError) as error:
        hub.publish(make_model(), tmp_path / 'hub', tag='toy', metrics=metrics)
    one_line(error)
    assert not (tmp_path / 'hub').exists()


@pytest.mark.parametrize(
    'facts', [{'recipe': {'lr': Path('x')}}, {'seed': 'x'}, {'classes': 3}, {'mean': 0.5}], ids=str
)
def test_facts_of_the_wrong_type_are_one_line(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        hub.publish(make_model(), tmp_path / 'hub', tag='toy', **facts)
    one_line(error)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert hub.publish(make_model(), tmp_path / 'hub', tag='toy', dry_run=True) == tmp_path / 'hub' / f'{NAME}.toy'
    assert not (tmp_path / 'hub').exists()
    with pytest.raises(UserError):
        hub.publish(make_model(), tmp_path / 'hub', tag='a b', dry_run=True)


@pytest.mark.parametrize('filename', ['model.safetensors', 'README.md', 'manifest.json'])
def test_a_damaged_folder_is_named_and_can_be_replaced(tmp_path: Path, filename: str) -> None:
    folder = Path(hub.publish(make_model(), tmp_path, tag='toy'))
    intact = contents_of(tmp_path)
    (folder / filename).write_bytes(b'x')
    with pytest.raises(CheckFailed, match='damaged') as error:
        hub.publish(make_model(), tmp_path, tag='toy')
    assert filename in one_line(error)
    hub.publish(make_model(), tmp_path, tag='toy', replace=True)
    assert contents_of(tmp_path) == intact


@pytest.mark.parametrize('kind', ['file', 'folder', 'empty folder', 'broken link'])
def test_a_users_own_file_or_folder_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / f'{NAME}.toy'
    if kind == 'file':
        target.write_text('mine')
    elif kind == 'broken link':
        target.symlink_to('nowhere')
    else:
        target.mkdir()
    if kind == 'folder':
        (target / 'notes.txt').write_text('mine')
    before = contents_of(tmp_path)
    for replace in (False, True):
        with pytest.raises(UserError, match='move it away|is a link') as error:
            hub.publish(make_model(), tmp_path, tag='toy', replace=replace)
        one_line(error)
    assert contents_of(tmp_path) == before and list(tmp_path.iterdir()) == [target]


def test_a_linked_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'hub').mkdir()
    (tmp_path / 'hub' / f'{NAME}.toy').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match='link'):
        hub.publish(make_model(), tmp_path / 'hub', tag='toy', replace=True)
    assert not list((tmp_path / 'elsewhere').iterdir())


def test_a_hub_that_cannot_be_written_to_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(make_model(), tmp_path / 'hub', tag='toy')
    before = contents_of(tmp_path / 'hub')
    for replace in (False, True):
        with full_disk(), pytest.raises(UserError, match='hub') as error:
            hub.publish(make_model(1), tmp_path / 'hub', tag='toy' if replace else 'new', replace=replace)
        one_line(error)

    real = os.mkdir

    def read_only(path: Any, *args: Any) -> None:
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, 'Read-only file system')
        real(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'mkdir', read_only)
        with pytest.raises(UserError, match='Read-only'):
            hub.publish(make_model(1), tmp_path / 'hub', tag='new')
    assert contents_of(tmp_path / 'hub') == before and len(list((tmp_path / 'hub').iterdir())) == 1
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='hub') as error:
        hub.publish(make_model(1), tmp_path / 'file', tag='new')
    one_line(error)


def in_a_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; its exit status: 0 done, 1 an error, negative the signal that killed it."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # a fork beside threads, which the child doesn't use
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize('replace', [False, True])
@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux can exchange two folders in one step')
def test_kill_9_leaves_the_hub_as_it_was_or_complete(tmp_path: Path, replace: bool) -> None:
    old, new = (package.gather(make_model(seed), None, 'toy', None, 'mit', {}) for seed in (0, 1))
    target = tmp_path / f'{NAME}.toy'

    def publish(kill_at: int) -> None:
        count = 0

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            if event.startswith(('open', 'os.', 'shutil.', 'ctypes.')):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        directory._write_folder(tmp_path, new, replace)

    seen = set()
    for kill_at in range(1, 200):
        if replace:
            directory._write_folder(tmp_path, old, replace=target.exists())
        status = in_a_child(lambda k=kill_at: publish(k))
        found = contents_of(target) if target.exists() else {}
        assert found in ([old.files if replace else {}, new.files])
        seen.add(found == new.files)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if found == new.files and not replace:
            break
    assert seen == {False, True} and kill_at > 5
    assert weights.load(NAME, 'toy', places.DirPlace(tmp_path))
    left = [p for p in tmp_path.iterdir() if p != target]
    assert left and all(p.name.startswith('.') for p in left) and places.DirPlace(tmp_path).names() == [f'{NAME}.toy']
    for path in left:
        os.utime(path, (0, 0))
    directory._write_folder(tmp_path, old, replace=True)
    assert list(tmp_path.iterdir()) == [target]


def test_of_two_publishes_at_once_one_wins(tmp_path: Path) -> None:
    drafts = [package.gather(make_model(seed), None, 'toy', None, 'mit', {}) for seed in (0, 1)]
    real, folder = os.rename, tmp_path / f'{NAME}.toy'

    def race(source: Any, target: Any) -> None:  # the other one comes between the look and the rename
        os.rename = real
        directory._write_folder(tmp_path, drafts[1], replace=False)
        real(source, target)

    os.rename = race
    try:
        with pytest.raises(UserError, match='other weights'):
            hub.publish(make_model(0), tmp_path, tag='toy', license='mit')
    finally:
        os.rename = real
    assert contents_of(folder) == drafts[1].files and list(tmp_path.iterdir()) == [folder]
