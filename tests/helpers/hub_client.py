"""The real huggingface_hub client against the test server: in this process, or in one of its own."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import python
from hub_server import File, Hub, Repo
from hubs import NAME, TAG, toy

TESTS = Path(__file__).parent
TOKEN = 'hf_thisTokenMustNeverBeSeen1234567890'
REPO = f'org/{NAME}.{TAG}'
WEIGHTS = 'GET /lfs/'
# huggingface_hub's own use of httpx when it uploads by LFS
UPLOADS = pytest.mark.filterwarnings('ignore:Use .content=:DeprecationWarning')


def put(server: Hub) -> None:
    """The toy weights, as if they had been published there."""
    files = {name: File(data, name.endswith('.safetensors')) for name, data in toy().files.items()}
    server.repos[REPO] = Repo()
    server.repos[REPO].commit('main', files)
    server.objects |= {file.sha256: file.data for file in files.values() if file.large}


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """Of a child process whose Hub is ``hub``, with its caches in ``home``."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('HF_', 'NF_ZOO_'))}
    return kept | {
        'HF_ENDPOINT': hub.endpoint,
        'HF_HOME': str(home),
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_HUB_DISABLE_XET': '0' if hub.storage == 'xet' else '1',
        'NO_PROXY': '127.0.0.1,localhost',
        'PYTHONPATH': os.pathsep.join([str(TESTS), str(TESTS.parents[1])]),
        **more,
    }


def run_child(code: str, env: dict[str, str], *args: str) -> Any:
    """What ``code`` prints as JSON in its last line."""
    return json.loads(python('-c', code, *args, env=env, anew=True).stdout.splitlines()[-1])


def connect(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Point this process's huggingface_hub to ``hub``, without Xet; returns the pauses it would have made."""
    from huggingface_hub import constants

    values = {
        'ENDPOINT': hub.endpoint,
        'HUGGINGFACE_CO_URL_TEMPLATE': hub.endpoint + '/{repo_id}/resolve/{revision}/{filename}',
        'HF_HUB_CACHE': str(home / 'hub'),
        'HF_HUB_OFFLINE': False,
        'HF_HUB_DISABLE_XET': True,
        'HF_TOKEN_PATH': str(home / 'token'),
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1,localhost')
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    pauses: list[float] = []
    clock = SimpleNamespace(**{**vars(time), 'sleep': pauses.append})
    for module in ('huggingface_hub.utils._http', 'huggingface_hub.file_download', 'nf_zoo.hub.huggingface'):
        monkeypatch.setattr(f'{module}.time', clock)
    return pauses
