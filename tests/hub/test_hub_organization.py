"""Publishing into an organization on the Hugging Face Hub, and loading from it, however its files travel."""

import json
from pathlib import Path

import pytest
from hub_client import TOKEN, environment, run_child
from hub_server import serve
from hubs import NAME, contents_of

_CHILD = """
import json, sys
from pathlib import Path
import nf_zoo, timm, torch
from nf_zoo.errors import CheckFailed, UserError
from hubs import NAME, make_model
from nf_zoo import hub
from nf_zoo.hub import places, weights
def attempt(work):
    try:
        return str(work())
    except (CheckFailed, UserError) as error:
        return f'{type(error).__name__}: {error}'
place = places.HfPlace('org')
facts = dict(tag='toy', dataset='toy', metrics={'top1': 50.0, 'n': 4}, classes=['a', 'b', 'c'])
out = {
    'missing': attempt(lambda: hub.fetch(f'{NAME}.toy', 'hf://org')),
    'dry': attempt(lambda: hub.publish(make_model(), 'hf://org', dry_run=True, **facts)),
    'first': attempt(lambda: hub.publish(make_model(), 'hf://org', private=True, **facts)),
    'again': attempt(lambda: hub.publish(make_model(), 'hf://org', **facts)),
    'other': attempt(lambda: hub.publish(make_model(1), 'hf://org', **facts)),
    'dry other': attempt(lambda: hub.publish(make_model(1), 'hf://org', dry_run=True, **facts)),
    'untagged': attempt(lambda: hub.fetch(NAME, 'hf://org')),  # nothing is cached yet
    'fetched': attempt(lambda: hub.fetch(f'{NAME}.toy', 'hf://org')),
}
pin = Path(out['fetched']).name
out['pinned'] = attempt(lambda: hub.publish(make_model(1), f'hf://org@{pin}', **facts))
out['replaced'] = attempt(lambda: hub.publish(make_model(1), 'hf://org', replace=True, **facts))
states = [weights.load(NAME, 'toy', places.HfPlace('org', revision)).state_dict for revision in (pin, None)]
for i, state in enumerate(states):
    out[f'equal{i}'] = all(torch.equal(state[k], v) for k, v in make_model(i).state_dict().items())
out['branch'] = attempt(lambda: hub.publish(make_model(2), 'hf://org@v2', replace=True, **facts))
x = torch.randn(2, 3, 32, 32)
logits = make_model(1)(x)
names = (f'{NAME}.toy', f'hf-hub:org/{NAME}.toy', f'local-dir:{hub.fetch(NAME + ".toy", "hf://org")}')
out['logits'] = [torch.equal(timm.create_model(n, pretrained=True).eval()(x), logits) for n in names]
out['tags'] = [places.HfPlace('org').names_offline(), places.HfPlace('org').names()]
out['verified'] = attempt(lambda: hub.verify(f'{NAME}.toy', hub='hf://org'))
cached = Path(hub.fetch(f'{NAME}.toy', 'hf://org')) / 'model.safetensors'
data = bytearray(cached.read_bytes())
data[-1] ^= 1
cached.resolve().write_bytes(data)
out['blob'] = str(cached.resolve())
out['flipped'] = attempt(lambda: weights.load(NAME, 'toy', place))
out['old'] = attempt(lambda: hub.fetch(f'{NAME}.toy', f'hf://org@{pin}'))
cached.resolve().unlink()
out['mended'] = attempt(lambda: hub.verify(f'{NAME}.toy', hub='hf://org'))
out['in directory'] = attempt(lambda: hub.publish(make_model(1), sys.argv[1], **facts))
print(json.dumps(out))
"""


@pytest.mark.parametrize('storage', ['regular', 'lfs', 'xet'])
def test_an_organization_on_the_hub(storage: str, tmp_path: Path) -> None:
    with serve(storage=storage, store=tmp_path / 'xet', token=TOKEN) as server:
        env = environment(server, tmp_path / 'hf', HF_TOKEN=TOKEN, NF_ZOO_HUB='hf://org')
        out = run_child(_CHILD, env, str(tmp_path / 'hub'))
    repo = server.repos[f'org/{NAME}.toy']
    assert out['missing'].startswith('UserError: there are no weights') and 'hf://org' in out['missing']
    assert {out[key] for key in ('dry', 'first', 'again', 'replaced', 'branch')} == {
        f'{server.endpoint}/org/{NAME}.toy'
    }
    for key in ('other', 'dry other'):
        assert 'other weights' in out[key] and '--replace' in out[key]
    assert 'is a commit' in out['pinned']
    assert out['equal0'] and out['equal1'] and out['logits'] == [True] * 3
    assert out['tags'] == [[f'{NAME}.toy']] * 2 and 'verified' in out['verified']
    assert out['flipped'].startswith('CheckFailed') and f'delete {out["blob"]}' in out['flipped']
    assert '\n' not in out['flipped'] and 'verified' in out['mended']
    assert out['old'] == out['fetched'] == out['untagged']
    assert len(repo.commits) == 4 and repo.private  # created, published, replaced, v2: a publish is one commit
    assert not any('nf-zoo/' in request for request in server.requests)
    assert server.token_seen_by == {'127.0.0.1'}
    # The same bytes as a publish into a directory, whatever the way.
    files = repo['main']
    manifest = json.loads(files['manifest.json'])
    assert set(files) == {'.gitattributes', 'README.md', 'config.json', 'manifest.json', 'model.safetensors'}
    for name, data in contents_of(Path(out['in directory'])).items():
        assert data == files[name] or (name == 'manifest.json' and json.loads(data) == manifest), name
    large = [name for name, file in repo.commits[repo.branches['main']].items() if file.large]
    assert large == ([] if storage == 'regular' else ['model.safetensors'])
    assert bool(server.count('PUT /lfs')) == (storage == 'lfs')
    assert bool(server.count('xet-write-token')) == (storage == 'xet')
