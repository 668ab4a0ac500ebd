"""What a network, a server or a disk can do: weights come whole or one line says why not, and the token stays here."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from hub_client import REPO, TOKEN, UPLOADS, WEIGHTS, connect, put
from hub_server import Fault, File, Hub
from hubs import NAME, TAG, full_disk, make_hub, make_model, one_line, toy

from nf_zoo import hub
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.hub import places, weights
from nf_zoo.hub.huggingface import Unreachable

pytestmark = UPLOADS


@pytest.fixture
def pauses(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    from huggingface_hub.utils import close_session

    yield connect(server, tmp_path / 'hf', monkeypatch)
    close_session()


def fetch() -> Path:
    folder = hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    assert all((folder / name).read_bytes() == data for name, data in toy().files.items())
    return folder


def publish(seed: int = 0, **options: Any) -> str:
    return str(hub.publish(make_model(seed), 'hf://org', tag=TAG, dataset='toy', **options))


# --- Reading ---


@pytest.mark.parametrize(
    'cut', [0, 1, 50_000, pytest.param(range(0, 330_000, 7_000), marks=pytest.mark.soak)], ids=str
)  # fmt: skip
@pytest.mark.parametrize('reset', [False, True])
def test_a_cut_transfer_goes_on(
    server: Hub, pauses: list[float], cut: int | range, reset: bool, tmp_path: Path
) -> None:
    put(server)
    size = len(toy().files['model.safetensors'])
    for number, at in enumerate([cut] if isinstance(cut, int) else cut):
        server.repos[f'org{number}/{NAME}.{TAG}'] = server.repos[REPO]
        server.faults = [Fault(WEIGHTS, cut=min(at, size - 1), reset=reset, times=2)]
        folder = hub.fetch(f'{NAME}.{TAG}', f'hf://org{number}')
        assert (folder / 'model.safetensors').read_bytes() == toy().files['model.safetensors']
        assert not server.faults[0].times and not list((tmp_path / 'hf').rglob('*.incomplete'))
    assert pauses


def test_a_transfer_is_resumed_not_repeated(server: Hub, pauses: list[float]) -> None:
    put(server)
    server.faults = [Fault(WEIGHTS, cut=100_000)]
    with_range = []
    real = Hub.fault
    server.fault = lambda request: with_range.append(request) or real(server, request)  # type: ignore[method-assign]
    fetch()
    assert sum(WEIGHTS in request for request in with_range) == 2


@pytest.mark.parametrize('status', [429, 500, 503])
@pytest.mark.parametrize('where', ['HEAD .*manifest', WEIGHTS, 'GET .*manifest'])
def test_what_passes_is_tried_again(server: Hub, pauses: list[float], status: int, where: str) -> None:
    put(server)
    server.faults = [Fault(where, status, headers={'Retry-After': '7'}, times=2)]
    fetch()
    assert server.faults[0].times == 0
    assert [pause for pause in pauses if pause >= 7], pauses


@pytest.mark.parametrize(
    'headers',
    [{'Retry-After': '61'}, {'Retry-After': '100000'}, {'Retry-After': '9' * 300}, {'ratelimit': '"api";r=0;t=100000'}],
    ids=['61', '100000', 'long', 'ratelimit'],
)
@pytest.mark.parametrize('where', ['.*', 'HEAD .*manifest', WEIGHTS])
@pytest.mark.parametrize('status', [429, 503])
def test_a_pause_of_more_than_a_minute_is_not_obeyed(
    server: Hub, pauses: list[float], where: str, status: int, headers: dict[str, str]
) -> None:
    put(server)
    server.faults = [Fault(where, status, headers=headers, times=99)]
    with pytest.raises(Unreachable, match='later|again') as error:
        hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    one_line(error)
    if where != WEIGHTS:
        with pytest.raises(Unreachable, match='later|again') as error:
            publish(1, replace=True)
        one_line(error)
    assert sum(pauses) < 60


def test_a_minute_is_waited_and_what_is_cached_needs_no_wait(server: Hub, pauses: list[float]) -> None:
    put(server)
    server.faults = [Fault('GET .*manifest', 503, headers={'Retry-After': '60'})]
    fetch()
    assert max(pauses) >= 60
    pauses.clear()
    server.faults = [Fault('.*', 429, headers={'Retry-After': '100000'}, times=99)]
    fetch()
    assert sum(pauses) < 60


@pytest.mark.parametrize('name', ['manifest.json', 'config.json', 'README.md'])
@pytest.mark.parametrize('announced', [True, False])
def test_a_file_beyond_its_limit_is_not_downloaded(
    server: Hub, pauses: list[float], name: str, announced: bool, tmp_path: Path
) -> None:
    """Whether the server says how large the file is, or says that it is small and goes on sending."""
    put(server)
    repo = server.repos[REPO]
    files = {**repo.commits[repo.branches['main']], name: File(b' ' * (40 << 20))}
    repo.commit('main', files)
    if not announced:
        server.faults = [
            Fault(f'HEAD .*{name}', longer=100 - (40 << 20), times=9),
            Fault(f'GET .*{name}', unsized=True, times=9),
        ]
    with pytest.raises(UserError, match=rf'{name} has more than') as error:
        hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    one_line(error)
    kept = [p for p in (tmp_path / 'hf').rglob('*') if p.is_file() and p.stat().st_size > 5 << 20]
    assert kept == [] and server.sent < 24 << 20  # huggingface_hub takes ten megabytes at once


def test_weights_longer_than_the_manifest_says_are_not_downloaded(server: Hub, pauses: list[float]) -> None:
    put(server)
    repo = server.repos[REPO]
    large = File(toy().files['model.safetensors'] + bytes(20 << 20), True)
    repo.commit('main', {**repo.commits[repo.branches['main']], 'model.safetensors': large})
    server.objects[large.sha256] = large.data
    with pytest.raises(CheckFailed, match=r'model\.safetensors has more than') as error:
        hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    one_line(error)
    assert server.sent < 12 << 20


def test_a_damaged_manifest_of_the_hub_can_be_replaced(server: Hub, pauses: list[float]) -> None:
    for data in (b'{', b'[]', b'{"files": []}'):
        put(server)
        repo = server.repos[REPO]
        repo.commit('main', {**repo.commits[repo.branches['main']], 'manifest.json': File(data)})
        with pytest.raises(UserError, match='--replace') as error:
            publish(1)
        one_line(error)
        publish(1, replace=True)
        assert hub.verify(f'{NAME}.{TAG}', hub='hf://org')


def test_a_hub_s_text_reaches_no_terminal_raw(
    server: Hub, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    from nf_zoo.cli import main as cli

    server.faults = [Fault('.*', 403, headers={'X-Error-Message': 'no\x1b[31m red\x07'}, times=99)]
    assert cli.main(['fetch', f'{NAME}.{TAG}', '--hub', 'hf://org']) == 2
    shown = capsys.readouterr()
    assert shown.err.strip().isprintable() and 'red' in shown.err


@pytest.mark.parametrize(
    ('status', 'word'),
    [
        (401, 'HF_TOKEN'),
        (403, 'right'),
        (404, 'no weights'),
        (409, '409'),
        (500, "can't be reached"),
        (429, "can't be"),
    ],
)
def test_what_does_not_pass_is_one_line(server: Hub, pauses: list[float], status: int, word: str) -> None:
    put(server)
    headers = {'X-Error-Message': 'Invalid credentials in Authorization header'} if status == 401 else {}
    headers |= {'X-Error-Code': 'RepoNotFound'} if status == 404 else {}
    server.faults = [Fault('.*', status, headers=headers, times=99)]
    with pytest.raises(UserError, match=word) as error:
        hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    one_line(error)


@pytest.mark.parametrize('longer', [-1, -100_000, 1, 100_000])
@pytest.mark.parametrize('where', [WEIGHTS, 'GET .*config'])
def test_a_wrong_length_is_refused(server: Hub, pauses: list[float], longer: int, where: str, tmp_path: Path) -> None:
    put(server)
    server.faults = [Fault(where, longer=max(longer, -500) if 'config' in where else longer, times=99)]
    with pytest.raises((CheckFailed, UserError)) as error:
        hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    one_line(error)
    server.faults = []
    bad = re.search(r'delete (\S+) and', str(error.value))
    if bad:  # of a length that the server itself gave
        Path(bad[1]).unlink()
    fetch()


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'manifest.json', 'README.md'])
def test_a_byte_that_changes_on_the_way_is_refused(server: Hub, pauses: list[float], name: str) -> None:
    put(server)
    server.faults = [Fault(WEIGHTS if name == 'model.safetensors' else f'GET .*{name}', flip=True)]
    with pytest.raises((CheckFailed, UserError), match=name) as error:
        hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    one_line(error)


def test_a_full_disk_is_one_line_and_leaves_no_torn_file(server: Hub, pauses: list[float], tmp_path: Path) -> None:
    put(server)
    with full_disk(), pytest.raises(UserError, match='HF_HOME') as error:
        hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    assert 'cache' in one_line(error)
    assert not list((tmp_path / 'hf').rglob('*.incomplete'))
    fetch()


def test_a_hub_that_is_down_is_passed_over(
    server: Hub,
    pauses: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(server)
    server.repos[f'second/{NAME}.{TAG}'] = server.repos.pop(REPO)
    server.faults = [Fault(' /org/', 503, times=99)]
    monkeypatch.setenv('NF_ZOO_HUB', 'hf://org:hf://second')
    found = weights.find(NAME, TAG)
    assert found is not None and str(found.place) == 'hf://second' and 'hf://org is passed over' in caplog.text
    assert weights.load(NAME, TAG).folder.manifest['sha256'] == toy().manifest['sha256']
    monkeypatch.setenv('NF_ZOO_HUB', 'hf://org')
    with pytest.raises(Unreachable, match='later|again') as error:  # not: "there are none"
        weights.load(NAME, TAG)
    one_line(error)
    monkeypatch.setenv('NF_ZOO_HUB', f'hf://org:{make_hub(tmp_path / "folder")}')
    assert weights.load(NAME, TAG).folder.place == places.DirPlace(tmp_path / 'folder')


def test_what_was_fetched_is_there_when_the_hub_is_not(server: Hub, pauses: list[float]) -> None:
    put(server)
    fetch()
    server.faults = [Fault('.*', 500, times=999)]
    fetch()


def test_offline_only_the_cache_is_asked(
    server: Hub, pauses: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    put(server)
    monkeypatch.setenv('NF_ZOO_HUB', 'hf://org')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UserError, match='no weights') as error:
        weights.load(NAME, TAG)
    assert one_line(error) and 'HF_HUB_OFFLINE' in caplog.text
    with pytest.raises(UserError, match='HF_HUB_OFFLINE'):
        publish()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    fetch()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    server.requests.clear()
    assert fetch() and timm.create_model(f'{NAME}.{TAG}', pretrained=True)
    assert places.HfPlace('org').names() == [f'{NAME}.{TAG}']
    assert server.requests == []


@pytest.mark.parametrize('bad', ['model.safetensors', 'config.json', 'manifest.json'])
def test_a_bad_revision_leaves_the_good_copy_of_another(server: Hub, pauses: list[float], bad: str) -> None:
    put(server)
    good = fetch()
    files = {name: File(data + b' ', name.endswith('.safetensors')) for name, data in toy().files.items()}
    repo = server.repos[REPO]
    repo.commit('main', {**repo.commits[repo.branches['main']], bad: files[bad]})
    server.objects |= {file.sha256: file.data for file in files.values() if file.large}
    if bad != 'manifest.json':  # whose last blank changes nothing
        with pytest.raises(CheckFailed, match=bad) as error:
            hub.fetch(f'{NAME}.{TAG}', 'hf://org')
        one_line(error)
    assert hub.fetch(f'{NAME}.{TAG}', f'hf://org@{good.name}') == good
    server.faults = [Fault('.*', 500, times=999)]
    assert hub.verify(f'{NAME}.{TAG}', hub=f'hf://org@{good.name}').path == good


# --- Writing ---


@pytest.mark.parametrize('where', ['POST .*create', 'POST .*preupload', 'POST .*batch', 'PUT', 'POST .*commit', 'GET'])
@pytest.mark.parametrize('status', [429, 503])
def test_a_publish_gets_through_what_passes(server: Hub, pauses: list[float], where: str, status: int) -> None:
    server.faults = [Fault(where, status, headers={'Retry-After': '7'}, times=2)]
    publish()
    assert server.faults[0].times == 0 and max(pauses) >= 7
    assert len(server.repos[REPO].commits) == 2
    assert hub.verify(f'{NAME}.{TAG}', hub='hf://org')


def test_the_same_weights_with_another_licence_are_refused_or_replaced(server: Hub, pauses: list[float]) -> None:
    publish()
    assert publish() and len(server.repos[REPO].commits) == 2  # created, published
    with pytest.raises(UserError, match=r"license \('apache-2.0' there, 'mit' here\).*--replace") as error:
        publish(license='mit')
    one_line(error)
    publish(license='mit', replace=True)
    assert b'mit' in server.repos[REPO]['main']['README.md']


def test_a_commit_whose_answer_is_lost_is_not_made_twice(server: Hub, pauses: list[float]) -> None:
    server.faults = [Fault('POST .*commit', cut=0)]
    publish()
    assert len(server.repos[REPO].commits) == 2 and server.count('POST .*commit') == 1


@pytest.mark.parametrize(
    ('status', 'word'), [(401, 'HF_TOKEN'), (403, 'right'), (404, '404'), (409, 'again'), (412, 'again'), (413, 'size')]
)
@pytest.mark.parametrize('where', ['POST .*create', 'POST .*preupload', 'POST .*batch', 'POST .*commit'])
def test_a_refused_publish_is_one_line(server: Hub, pauses: list[float], where: str, status: int, word: str) -> None:
    server.faults = [Fault(where, status, times=99)]
    if 'create' in where and status == 409:  # which is no refusal, but the answer lacks the address
        word = 'as a Hub does'
    with pytest.raises(UserError, match=word) as error:
        publish()
    one_line(error)
    assert len(server.repos[REPO].commits if REPO in server.repos else []) < 2


def test_of_two_publishes_one_is_refused(server: Hub, pauses: list[float]) -> None:
    """The other one commits between our look and our commit."""
    publish()
    real = Hub.fault

    def race(request: str) -> Fault | None:
        if re.search('POST .*preupload', request):
            server.fault = lambda r: real(server, r)  # type: ignore[method-assign]
            publish(2, replace=True)
        return real(server, request)

    server.fault = race  # type: ignore[method-assign]
    with pytest.raises(UserError, match='meanwhile') as error:
        publish(1, replace=True)
    one_line(error)
    assert weights.load(NAME, TAG, places.HfPlace('org')).folder.manifest['sha256'] != toy().manifest['sha256']


# --- The token ---


def test_the_token_is_never_shown(
    server: Hub,
    pauses: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nf_zoo.cli import main as cli

    caplog.set_level(logging.INFO)  # below it, httpcore traces what the server answers
    for name in ('nf_zoo', 'huggingface_hub'):
        caplog.set_level(logging.DEBUG, logger=name)
    server.token = TOKEN
    publish()
    fetch_dir = hub.fetch(f'{NAME}.{TAG}', 'hf://org')
    echo = f'{{"error": "no such token: {TOKEN}"}}'.encode()
    for status in (401, 403, 400, 500):
        headers = {'X-Error-Message': f'Bearer {TOKEN} is bad'}
        server.faults = [Fault('.*', status, headers=headers, body=echo, times=99)]
        for argv in (['fetch', f'{NAME}.x', '--hub', 'hf://org'], ['publish', f'{NAME}.cifar10', '--to', 'hf://org']):
            assert cli.main([*argv, *(['--name', f'{NAME}.x'] if argv[0] == 'publish' else [])]) == 2
    shown = capsys.readouterr()
    assert 'nf-zoo: error' in shown.err
    for text in (shown.out, shown.err, caplog.text, *(p.read_bytes().decode('latin1') for p in fetch_dir.iterdir())):
        assert TOKEN not in text
    assert server.token_seen_by == {'127.0.0.1'}  # LFS is at another host, to which no token goes


def test_a_token_in_the_facts_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    with pytest.raises(UserError, match='token') as error:
        hub.publish(make_model(), tmp_path / 'hub', tag=TAG, recipe={'hub_token': TOKEN})
    assert TOKEN not in one_line(error) and not (tmp_path / 'hub').exists()
