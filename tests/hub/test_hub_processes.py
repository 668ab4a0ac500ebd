"""Several processes at one Hub, killed ones, a disk that is really full, and Xet: in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from forked import Forked, python
from hub_client import REPO, TOKEN, UPLOADS, WEIGHTS, environment, put, run_child
from hub_server import Fault, Hub, serve
from hubs import NAME, TAG, toy

pytestmark = UPLOADS


_FETCH = """
import json, sys
import nf_zoo
from nf_zoo import hub
folder = hub.fetch(sys.argv[1], 'hf://org')
print(json.dumps([str(folder), (folder / 'model.safetensors').read_bytes().hex()[-64:]]))
"""


@pytest.mark.parametrize('count', [2, pytest.param(20, marks=pytest.mark.soak)])
@pytest.mark.parametrize('storage', ['lfs', pytest.param('xet', marks=pytest.mark.soak)])
def test_many_processes_share_one_download(count: int, storage: str, tmp_path: Path) -> None:
    with serve(storage=storage, store=tmp_path / 'xet') as server:
        env = environment(server, tmp_path / 'hf')
        if storage == 'xet':
            code = 'from hubs import *; import nf_zoo; nf_zoo.publish(make_model(), "hf://org", tag=TAG)'
            python('-c', code, env=env, anew=True)
            env['HF_HOME'] = str(tmp_path / 'cold')
            expected = server.repos[REPO]['main']['model.safetensors']
        else:
            put(server)
            expected = toy().files['model.safetensors']
        with ExitStack() as stack:
            command = '-c', _FETCH, f'{NAME}.{TAG}'
            all_of_them = [stack.enter_context(Forked(*command, env=env, anew=True)) for _ in range(count)]
            ended = [process.wait() for process in all_of_them]
    assert [done.returncode for done in ended] == [0] * count, ended
    assert {json.loads(done.stdout)[1] for done in ended} == {expected.hex()[-64:]}
    assert len({json.loads(done.stdout)[0] for done in ended}) == 1
    cache = Path(env['HF_HOME'])
    assert not list(cache.rglob('*.incomplete'))
    blobs = [p for p in (cache / 'hub').rglob('blobs/*') if p.stat().st_size == len(expected)]
    assert len(blobs) == 1 and blobs[0].read_bytes() == expected
    if storage == 'lfs':
        assert server.count(WEIGHTS) == 1


@pytest.mark.parametrize('cuts', [[100_000], pytest.param(range(0, 320_000, 16_000), marks=pytest.mark.soak)], ids=str)
def test_kill_9_during_a_fetch(server: Hub, tmp_path: Path, cuts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(server)
    env = environment(server, tmp_path / 'hf')
    command = ['-c', _FETCH, f'{NAME}.{TAG}']
    for at in cuts:
        reached, go = threading.Event(), threading.Event()
        server.faults = [Fault(WEIGHTS, cut=at, reached=reached, go=go)]
        with Forked(*command, env=env, anew=True) as child:
            assert reached.wait(60), child.said()
            child.process.kill()
            assert child.wait().returncode == -signal.SIGKILL
        go.set()
        assert not list((tmp_path / 'hf').rglob('model.safetensors'))
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1] == toy().files['model.safetensors'].hex()[-64:]


@pytest.mark.soak
def test_a_disk_that_is_really_full(server: Hub, tmp_path: Path) -> None:
    """A file system of its own, as small as half of the weights, in a namespace of this user's."""
    if subprocess.run(['unshare', '-Urm', 'true'], capture_output=True).returncode:
        pytest.skip('no user namespaces here')
    put(server)
    code = """
import os, sys
import nf_zoo
from nf_zoo import hub
from nf_zoo.errors import UserError
from hubs import *
for work in (
    lambda: hub.fetch(f'{NAME}.{TAG}', 'hf://org'),
    lambda: hub.publish(make_model(), os.environ['SMALL'] + '/own', tag=TAG),
):
    try:
        work()
    except UserError as error:
        print(error)
left = [p for p in __import__('pathlib').Path(os.environ['SMALL']).rglob('*') if p.suffix == '.incomplete']
print(left, os.listdir(os.environ['SMALL'] + '/own'))
"""
    small = tmp_path / 'small'
    small.mkdir()
    env = environment(server, small, SMALL=str(small))
    script = f'mount -t tmpfs -o size=160k none {small} && exec {sys.executable} -c "$CODE"'
    done = subprocess.run(
        ['unshare', '-Urm', 'sh', '-c', script], env=env | {'CODE': code}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second, left = done.stdout.splitlines()
    assert 'No space left' in first and 'HF_HOME' in first and 'No space left' in second
    assert left == '[] []' and os.path.isdir(small)


_XET = """
import json
from hubs import NAME, TAG, make_model
from nf_zoo import hub
from nf_zoo.errors import CheckFailed, UserError
import sys
def attempt(work):
    try:
        return str(work())
    except (CheckFailed, UserError) as error:
        return f'{type(error).__name__}: {error}'
work = {
    'publish': lambda: hub.publish(make_model(), 'hf://org', tag=TAG, dataset='toy'),
    'fetch': lambda: hub.fetch(f'{NAME}.{TAG}', 'hf://org'),
}
print(json.dumps(attempt(work[sys.argv[1]])))
"""


@pytest.mark.soak
def test_xet_that_fails_is_one_line_and_can_be_done_without(tmp_path: Path) -> None:
    with serve(storage='xet', store=tmp_path / 'xet', token=TOKEN) as server:
        env = environment(server, tmp_path / 'hf', HF_TOKEN=TOKEN)
        # else hf_xet asks for many minutes
        env |= {'HF_XET_CLIENT_RETRY_MAX_ATTEMPTS': '1', 'HF_XET_CLIENT_RETRY_BASE_DELAY': '10ms'}

        def attempt(what: str, **more: str) -> str:
            said = run_child(_XET, env | more, what)
            assert '\n' not in said and len(said) < 1000 and TOKEN not in said
            return str(said)

        for status in (401, 403, 500):
            server.faults = [Fault('xet-write-token', status, times=99)]
            assert attempt('publish').startswith('UserError: hf://org'), status
            assert len(server.repos[REPO].commits) == 1
        server.faults = []
        assert attempt('publish') == f'{server.endpoint}/{REPO}'
        for status in (403, 404):
            server.faults = [Fault('xet-read-token', status, times=99)]
            assert attempt('fetch').startswith('UserError: hf://org'), status
        server.faults = []
        moved = (tmp_path / 'xet').rename(tmp_path / 'moved')
        server.store = moved  # the server knows its hashes, but sends the client where nothing is
        server.elsewhere = tmp_path / 'nothing'
        assert attempt('fetch').startswith('UserError: hf://org')
        assert not list((tmp_path / 'hf').rglob('model.safetensors'))
        folder = Path(attempt('fetch', HF_HUB_DISABLE_XET='1'))
        expected = server.repos[REPO]['main']['model.safetensors']
        assert (folder / 'model.safetensors').read_bytes() == expected
