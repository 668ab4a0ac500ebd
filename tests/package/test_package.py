"""The package as a user meets it: light to import, complete when installed, and documented truthfully."""

import ast
import fnmatch
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest
import timm
from forked import python
from PIL import Image

import nf_zoo
from nf_zoo.analysis.catalogue import SIZES_FILE
from nf_zoo.cli import main as cli
from nf_zoo.cli import train as train_command
from nf_zoo.errors import UserError
from nf_zoo.train import recipes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / 'nf_zoo').rglob('*.py'))
EXTRAS = {'onnx', 'onnxscript', 'onnxruntime', 'matplotlib', 'tensorboard', 'sklearn', 'opacus'}
DOCUMENTS = [
    ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'CHANGELOG', 'RESULTS', 'SECURITY', 'docs/methods')
]
METHODS = DOCUMENTS[-1]


def test_extras_are_imported_inside_functions() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        outside = [node for node in ast.walk(tree) if id(node) not in inside]
        names = {alias.name for node in outside if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or '' for node in outside if isinstance(node, ast.ImportFrom)}
        assert not {name.partition('.')[0] for name in names} & EXTRAS, path


def test_the_public_names_exist() -> None:
    for name in nf_zoo.__all__:
        assert getattr(nf_zoo, name) is not None
    for name in ('list_models', 'fold', 'export_onnx', 'export_torchscript', 'publish', 'fetch', 'verify'):
        # Twice, as importing a submodule of the same name puts the module in the function's place.
        assert all(inspect.isfunction(getattr(nf_zoo, name)) for _ in range(2)), name
    with pytest.raises(AttributeError, match='no attribute'):
        _ = nf_zoo.no_such_name  # type: ignore[attr-defined]


def test_the_installed_metadata() -> None:
    found = metadata('nf-zoo')
    assert found['Version'] == nf_zoo.__version__
    assert set(found.get_all('Provides-Extra', [])) == set('export plot train demo private all docs dev'.split())
    assert f'## {nf_zoo.__version__}' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')


def test_every_data_file_is_packaged() -> None:
    config = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    listed = re.search(r'^nf_zoo = \[(.*)\]$', config, re.MULTILINE)
    assert listed
    globs = [glob.replace('**/', '*') for glob in re.findall(r"'([^']+)'", listed[1])]
    for path in (ROOT / 'nf_zoo').rglob('*'):
        if path.is_file() and path.suffix not in ('.py', '.pyc'):
            assert any(fnmatch.fnmatch(str(path.relative_to(ROOT / 'nf_zoo')), glob) for glob in globs), path


def test_a_checkout_has_the_recipes() -> None:
    assert recipes.folder() == ROOT / 'configs'
    assert len(recipes.names()) == len(list((ROOT / 'configs').rglob('*.yaml')))
    assert 'cifar10/eunnet20_cifar' in recipes.names()
    for given in ('cifar10/eunnet20_cifar', 'cifar10/eunnet20_cifar.yaml', 'configs/cifar10/eunnet20_cifar.yaml'):
        assert recipes.locate(given).samefile(ROOT / 'configs' / 'cifar10' / 'eunnet20_cifar.yaml')
    with pytest.raises(UserError, match="did you mean 'cifar10/eunnet20_cifar'"):
        recipes.locate('cifar10/eunet20_cifar')
    for outside in ('../pyproject', 'cifar10/../../pyproject.toml', ''):
        with pytest.raises(UserError, match='no such file|is a folder'):
            recipes.locate(outside)


def test_a_wheel_has_the_recipes(tmp_path: Path) -> None:
    """setuptools collects a wheel's files from a copy of the checkout; the command finds the recipes among them."""
    checkout, wheel = tmp_path / 'checkout', tmp_path / 'wheel'
    ignored = shutil.ignore_patterns('__pycache__', '*.safetensors', '*.png')
    for name in ('nf_zoo', 'configs'):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, checkout)
    command = [sys.executable, '-W', 'ignore', 'setup.py', '-q', 'build_py', '--build-lib', str(wheel)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    code = """
import signal
before = signal.getsignal(signal.SIGINT)
import nf_zoo
assert signal.getsignal(signal.SIGINT) is before
from nf_zoo.cli.main import main
main(['recipes', 'cifar10/eunnet20_cifar', '--json'])
print(nf_zoo.__file__)
"""
    command, env = [sys.executable, '-W', 'error', '-c', code], os.environ | {'PYTHONPATH': str(wheel)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, ''), 'the import is silent'
    *found, file = done.stdout.splitlines()
    assert Path(file).is_relative_to(wheel)
    assert 'cifar10/eunnet20_cifar' in {row['name'] for row in json.loads('\n'.join(found))}
    assert {path.relative_to(wheel / 'nf_zoo') for path in (wheel / 'nf_zoo' / 'configs').rglob('*.yaml')} == {
        path.relative_to(ROOT) for path in (ROOT / 'configs').rglob('*.yaml')
    }


def test_torch_hub_in_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    checkout = tmp_path / 'checkout'
    shutil.copytree(ROOT / 'nf_zoo', checkout / 'nf_zoo', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'hubconf.py', checkout)
    code = """
import json, os, torch
model = torch.hub.load('.', 'eunnet20_cifar', source='local', pretrained=True)
os.chdir('/')
import nf_zoo
from nf_zoo.inference.loading import class_names
print(json.dumps([nf_zoo.__file__, model.pretrained_cfg['tag'], class_names(model)]))
"""
    file, tag, classes = json.loads(python('-c', code, cwd=checkout, anew=True).stdout.splitlines()[0])
    assert Path(file).is_relative_to(checkout)
    assert tag == 'cifar10' and 'airplane' in classes


def test_hubconf_has_our_names_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    import hubconf

    entries = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith('_')]
    assert sorted(entries) == sorted(nf_zoo.list_models())
    assert hubconf.eunnet20_cifar(num_classes=3).num_classes == 3


def test_the_documents_commands_parse() -> None:
    """Every nf-zoo command in the documents; those that name a recipe name one that is there."""
    documents = {*DOCUMENTS, *(ROOT / 'docs').rglob('*.md')}
    lines = [line for path in sorted(documents) for line in path.read_text(encoding='utf-8').splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.strip().startswith('nf-zoo ')]
    assert len(commands) >= 40
    for _, command, *rest in commands:
        if command == 'train':
            found = train_command._parser().parse_args(rest)
            assert found.recipe is None or recipes.locate(found.recipe).is_file()
        else:
            assert cli.parser().parse_args([command, *rest]).command == command


def test_the_readme_is_short_and_every_block_of_it_runs(tmp_path: Path) -> None:
    """On eight small pictures, with a small network in the place of eunnet50.

    The first block needs the Hub: tests/conversion/test_pretrained.py runs it.
    """
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) < 150
    text = text.replace('eunnet50', 'eunnet20_cifar')
    blocks = re.findall(r'```(\w+)\n(.*?)```', text, re.DOTALL)
    assert 'a1_in1k' in blocks[0][1] and {kind for kind, _ in blocks} == {'python', 'shell'}
    for split, name in itertools.product(('train', 'validation'), ('cat', 'dog')):
        folder = tmp_path / 'pictures' / split / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.effect_noise((40, 30), 40 + 40 * i).convert('RGB').save(folder / f'{i}.jpg')
    shutil.copy(folder / '0.jpg', tmp_path / 'some-picture.jpg')
    code = []
    for kind, block in blocks[1:]:
        for line in [block] if kind == 'python' else block.splitlines():
            command = shlex.split(line, comments=True)
            if kind == 'python':
                code.append(line)
            elif command[0] == 'export':
                code.append(f'os.environ.update([{command[1].replace("$PWD", str(tmp_path)).split("=")}])')
            else:
                assert command[0] == 'nf-zoo', line
                short = ['--epochs', '1', '--warmup-epochs', '0', '--batch-size', '2'] if command[1] == 'train' else []
                code.append(f'assert main({command[1:] + short}) in (None, 0)')
    done = python('-c', '\n'.join(['import os', 'from nf_zoo.cli.main import main', *code]), cwd=tmp_path)
    assert 'verified' in done.stdout and (tmp_path / 'eunnet20_cifar.onnx').exists()


def test_the_documents_names_and_links_exist() -> None:
    models = METHODS.read_text(encoding='utf-8').partition('\n## ')[0]
    names = set(nf_zoo.list_models())
    assert {name for name in re.findall(r'`(\w*[a-z]\w*\d\w*)`', models)} <= names
    for name in names:
        assert f'`{re.split(r"[0-9]", name)[0]}' in models, name
    for path in DOCUMENTS:
        for link, anchor in re.findall(r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', path.read_text(encoding='utf-8')):
            target = path.parent / link if link else path
            assert target.exists(), (path.name, link)
            assert not anchor or anchor in anchors(target), (path.name, link, anchor)


def anchors(document: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    heads = re.findall(r'^#+ (.*)$', document.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


def test_the_documents_counts_are_those_of_the_models() -> None:
    table = METHODS.read_text(encoding='utf-8').partition('at 50 layers |')[2].partition('\n\n')[0]
    counts = [int(re.sub(r'\D', '', row.split('|')[-2].rpartition(':')[2])) for row in table.splitlines()[2:]]
    names = 'eunnet50 nf_resnet50 nf_regnet_b1 dm_nf_resnet50 fixup_resnet50 skipinit_resnet50 rescalenet50'.split()
    names += 'idshort_resnet50 learnscalar_resnet50 convshort_resnet50 wn_resnet50'.split()
    sizes = json.loads(SIZES_FILE.read_bytes())
    assert counts == [sizes[name]['params'] for name in names]


def test_no_warning_and_no_lost_tag_where_timms_names_are_taken_over() -> None:
    assert timm.is_model_pretrained('nf_resnet50.ra2_in1k')
    assert timm.get_pretrained_cfg('nf_resnet50.ra2_in1k').hf_hub_id == 'timm/nf_resnet50.ra2_in1k'
