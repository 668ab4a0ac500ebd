"""timm's own model tests, of the installed release, run on our models: `python tools/contract.py ['eunnet*' ...]`.

timm's wheel has no tests, so its source archive is fetched, and its `timm` folder deleted: the installed package is
what gets tested. The file is also the pytest plugin that restricts those tests to our names.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm

import nf_zoo

ROOT = Path(__file__).resolve().parent.parent


def names() -> list[str]:
    return nf_zoo.list_models(os.environ.get('NF_ZOO_FAMILY', '*').split())


def pytest_configure(config: pytest.Config) -> None:
    # The tests of forward_intermediates and pruning go by timm's module groups; this puts ours into one of them.
    timm.models._registry._module_to_models['nfnet'] |= set(names())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = set(names())

    def wanted(item: pytest.Item) -> bool:
        return item.callspec.params.get('model_name') in ours if hasattr(item, 'callspec') else False

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def fetch() -> Path:
    """Return the folder of the installed release's tests, downloaded into build/ once."""
    release = f'timm-{timm.__version__}'
    folder = ROOT / 'build' / release
    if not folder.is_dir():
        download = ROOT / 'build' / 'download'
        pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-binary', 'timm', '--no-deps', '-d', download]
        subprocess.run([*pip, f'timm=={timm.__version__}'], check=True)
        with tarfile.open(download / f'{release}.tar.gz') as archive:
            archive.extractall(download, filter='data')
        shutil.rmtree(download / release / 'timm')
        os.replace(download / release, folder)
    return folder


def main() -> int:
    patterns = ' '.join(arg for arg in sys.argv[1:] if not arg.startswith('-')).split() or ['*']
    os.environ['NF_ZOO_FAMILY'] = ' '.join(patterns)
    for pattern in patterns:
        if not nf_zoo.list_models(pattern):
            print(f'nf-zoo: error: no model matches {pattern!r}; `nf-zoo list` shows the names', file=sys.stderr)
            return 2
    options = [arg for arg in sys.argv[1:] if arg.startswith('-')]
    paths = os.pathsep.join(filter(None, [str(ROOT / 'tools'), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, '-m', 'pytest', '-p', 'contract', '-p', 'no:cacheprovider', '-q', 'tests/test_models.py']
    return subprocess.run([*command, *options], cwd=fetch(), env=os.environ | {'PYTHONPATH': paths}).returncode


if __name__ == '__main__':
    sys.exit(main())
