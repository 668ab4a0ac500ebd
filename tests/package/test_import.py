"""What `import nf_zoo` does in a process that has timm. One such process tells it to all tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nf_zoo

PROBE = """
import json, re, signal, sys, timm
from timm.models._registry import _model_has_pretrained, _model_pretrained_cfgs

compiler = re._compiler if sys.version_info >= (3, 11) else re.sre_compile

def registry():
    cfgs = {key: cfg.to_dict() for key, cfg in _model_pretrained_cfgs.items()}
    return cfgs, set(_model_has_pretrained), set(timm.list_models())

def counted(*args):
    patterns.append(args)
    return compile(*args)

(cfgs, tags, names), handler, modules = registry(), signal.getsignal(signal.SIGINT), set(sys.modules)
patterns, compile, compiler.compile = [], compiler.compile, counted
import nf_zoo
loaded, compiler.compile = set(sys.modules) - modules, compile
new_cfgs, new_tags, new_names = registry()
print(json.dumps({
    'loaded': sorted(loaded),
    'patterns': len(patterns),
    'same handler': signal.getsignal(signal.SIGINT) is handler,
    'names': nf_zoo.list_models(),
    'known': timm.is_model('eunnet50'),
    'same cfgs': all(new_cfgs[key] == cfg for key, cfg in cfgs.items()),
    'lost': sorted(tags - new_tags) + sorted(names - new_names),
    'foreign': sorted(new_names - names - set(nf_zoo.list_models())),
    'repository': timm.get_pretrained_cfg('nf_resnet50.ra2_in1k').hf_hub_id,
}))
"""


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp('probe')
    (folder / 'probe.py').write_text(PROBE)
    env = os.environ | {'PYTHONPATH': str(Path(nf_zoo.__file__).parents[1])}
    command = [sys.executable, '-W', 'error', '-m', 'probe']
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
    assert (done.returncode, done.stderr) == (0, ''), 'the import is silent'
    return json.loads(done.stdout)


def test_the_import_registers_every_name(found: dict[str, Any]) -> None:
    assert found['names'] == nf_zoo.list_models() and found['known']


def test_the_import_is_light(found: dict[str, Any]) -> None:
    """It loads the parts that register the models and fold them, and no library that timm hasn't loaded."""
    loaded = found['loaded']
    assert {name.partition('.')[0] for name in loaded} - set(sys.stdlib_module_names) == {'nf_zoo'}
    ours = {name.partition('.')[2] for name in loaded if name.startswith('nf_zoo.')}
    parts = {name.partition('.')[0] for name in ours}
    assert parts == {'_interrupt', 'errors', 'files', 'folding', 'hub', 'layers', 'models', 'net', 'text'}
    assert not ours & {f'hub.{name}' for name in ('card', 'organization', 'package', 'publishing', 'verification')}


def test_a_compiled_pattern_serves_all_registrations(found: dict[str, Any]) -> None:
    """A regular expression for each name took a fifth of the import's time."""
    assert found['patterns'] < len(nf_zoo.list_models()) / 2


def test_timms_names_tags_and_cfgs_stay(found: dict[str, Any]) -> None:
    assert found['same cfgs'] and found['lost'] == found['foreign'] == []
    assert found['repository'] == 'timm/nf_resnet50.ra2_in1k'


def test_a_library_import_leaves_ctrl_c_alone(found: dict[str, Any]) -> None:
    assert found['same handler']
