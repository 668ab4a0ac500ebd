"""An independent reader: olah, a caching mirror of the Hugging Face Hub, between our hub and our client."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_client import environment, run_child
from hub_server import Hub, serve
from hubs import NAME

pytestmark = [pytest.mark.kit, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
OLAH = shutil.which('olah-cli', path=os.pathsep.join([str(ROOT / '.venv/olah/bin'), os.environ['PATH']]))

_PUBLISH = """
import json
from hubs import make_model
from nf_zoo import hub
facts = dict(tag='toy', dataset='toy', metrics={'top1': 50.0, 'n': 4}, classes=['a', 'b', 'c'])
print(json.dumps(hub.publish(make_model(), 'hf://org', **facts)))
"""
_READ = """
import json
import nf_zoo, timm, torch
from hubs import NAME, make_model
from nf_zoo import hub
folder = hub.fetch(f'{NAME}.toy', 'hf://org')
report = hub.verify(f'{NAME}.toy', hub='hf://org')
x = torch.randn(2, 3, 32, 32)
names = (f'{NAME}.toy', f'hf-hub:org/{NAME}.toy')
equal = [torch.equal(timm.create_model(n, pretrained=True).eval()(x), make_model()(x)) for n in names]
print(json.dumps([str(folder), str(report), equal]))
"""


@contextmanager
def mirror(hub: Hub, folder: Path) -> Iterator[str]:
    assert OLAH
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        own = f'127.0.0.1:{free.getsockname()[1]}'
    upstream, cdn = (url.removeprefix('http://') for url in (hub.endpoint, hub.cdn))
    options = {'host': '127.0.0.1', 'port': own.partition(':')[2]} | {'repos-path': f'{folder}/repos'}
    options |= {'log-path': f'{folder}/logs', 'hf-scheme': 'http', 'hf-netloc': upstream, 'hf-lfs-netloc': cdn}
    options |= {'mirror-scheme': 'http', 'mirror-netloc': own, 'mirror-lfs-netloc': own}
    env = {key: value for key, value in os.environ.items() if not key.startswith('HF_')}
    folder.mkdir()
    with open(folder / 'out', 'wb') as out:
        process = subprocess.Popen(
            [OLAH, *(text for key, value in options.items() for text in (f'--{key}', value))],
            cwd=folder,
            env=env | {'NO_PROXY': '127.0.0.1,localhost'},
            stdout=out,
            stderr=out,
        )
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(('127.0.0.1', int(options['port']))) == 0:
                    break
            time.sleep(0.2)
        assert process.poll() is None, (folder / 'out').read_text()
        yield f'http://{own}'
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize('storage', ['regular', 'lfs', 'xet'])
def test_what_was_published_is_read_through_a_mirror(storage: str, tmp_path: Path) -> None:
    if OLAH is None:
        pytest.skip('olah is not installed: make kit-test installs it')
    with serve(storage=storage, store=tmp_path / 'store') as server, mirror(server, tmp_path / 'olah') as endpoint:
        run_child(_PUBLISH, environment(server, tmp_path / 'writer'))
        files = server.repos[f'org/{NAME}.toy']['main']
        server.requests.clear()
        for home in ('first', 'second'):  # the second finds everything in the mirror
            env = environment(server, tmp_path / home, HF_ENDPOINT=endpoint, NF_ZOO_HUB='hf://org')
            folder, report, equal = run_child(_READ, env)
            assert {name: (Path(folder) / name).read_bytes() for name in files if name != '.gitattributes'} == {
                name: data for name, data in files.items() if name != '.gitattributes'
            }
            assert 'verified' in report and equal == [True, True]
        assert server.count('GET /lfs' if storage == 'lfs' else 'GET .*model.safetensors') == 1
