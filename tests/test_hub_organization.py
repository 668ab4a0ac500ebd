"""Publishing into an organization on the Hugging Face Hub, and loading from it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, serve
from hubs import NAME

_CHILD = """
import json, sys
from pathlib import Path
import nf_zoo, timm, torch
from nf_zoo.errors import CheckFailed, UserError
sys.path.insert(0, sys.argv[1])
from hubs import NAME, make_model
from nf_zoo import hub, weights
def attempt(work):
    try:
        return str(work())
    except (CheckFailed, UserError) as error:
        return f'{type(error).__name__}: {error}'
place = weights.HfPlace('org')
out = {
    'missing': attempt(lambda: hub.fetch(f'{NAME}.toy', 'hf://org')),
    'first': attempt(lambda: hub.publish(make_model(), 'hf://org', tag='toy', dataset='toy')),
    'again': attempt(lambda: hub.publish(make_model(), 'hf://org', tag='toy', dataset='toy')),
    'other': attempt(lambda: hub.publish(make_model(1), 'hf://org', tag='toy', dataset='toy')),
    'fetched': attempt(lambda: hub.fetch(f'{NAME}.toy', 'hf://org')),
}
pin = Path(out['fetched']).name
out['replaced'] = attempt(lambda: hub.publish(make_model(1), 'hf://org', tag='toy', dataset='toy', replace=True))
states = [weights.load(NAME, 'toy', weights.HfPlace('org', revision)).state_dict for revision in (pin, None)]
for i, state in enumerate(states):
    out[f'equal{i}'] = all(torch.equal(state[k], v) for k, v in make_model(i).state_dict().items())
out['tags'] = weights.HfPlace('org').names()
out['verified'] = attempt(lambda: hub.verify(f'{NAME}.toy', hub='hf://org'))
cached = Path(hub.fetch(f'{NAME}.toy', 'hf://org')) / 'model.safetensors'
data = bytearray(cached.read_bytes())
data[-1] ^= 1
cached.resolve().write_bytes(data)
out['flipped'] = attempt(lambda: weights.load(NAME, 'toy', place))
print(json.dumps(out))
"""


@pytest.fixture
def server() -> Iterator[Hub]:
    with serve() as found:
        yield found


def test_an_organization_on_the_hub(server: Hub, tmp_path: Path) -> None:
    tests = str(Path(__file__).parent)
    env = os.environ | {
        'HF_ENDPOINT': server.endpoint,
        'HF_HOME': str(tmp_path / 'hf'),
        'HF_TOKEN': 'hf_test',
        'HF_HUB_OFFLINE': '0',
        'HF_HUB_DISABLE_XET': '1',
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'NF_ZOO_HUB': 'hf://org',
        'NO_PROXY': '127.0.0.1',
    }
    done = subprocess.run([sys.executable, '-c', _CHILD, tests], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    repo = f'org/{NAME}.toy'
    assert out['missing'].startswith('UserError: there are no weights') and 'hf://org' in out['missing']
    assert out['first'] == out['again'] == out['replaced'] == f'{server.endpoint}/{repo}'
    assert 'other weights' in out['other'] and '--replace' in out['other']
    assert out['equal0'] and out['equal1'] and out['tags'] == [f'{NAME}.toy'] and 'verified' in out['verified']
    assert out['flipped'].startswith('CheckFailed') and 'delete' in out['flipped'] and '\n' not in out['flipped']
    assert len(server.repos[repo]) == 3  # created, published, replaced: a publish is one commit
    assert set(server.repos[repo][-1][1]) >= {'README.md', 'config.json', 'manifest.json', 'model.safetensors'}
    assert not any('nf-zoo/' in request for request in server.requests)
