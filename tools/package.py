"""Builds the release and tries it as its users will: ``make package``.

The wheel and the source archive go to dist/. twine checks their metadata, and this their sizes and contents. Then the
wheel is installed, without extras, into an environment that has nothing else, with an empty HOME, and used there.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import nf_zoo

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / 'dist'
LIMIT = 95_000_000  # bytes; registries refuse 100 MB
WHEEL = {'py.typed', 'configs/digits/eunnet20_cifar.yaml', 'hub/listing.html', 'hub/bundled/index.json'}
ARCHIVE = {
    'README.md',
    'CHANGELOG.md',
    'CITATION.cff',
    'SECURITY.md',
    'LICENSE',
    'Makefile',
    'hubconf.py',
    'pyproject.toml',
}
FORBIDDEN = ('node_modules', '__pycache__', '.git/', '.venv', 'build/')


def run(*command: object, **kwargs: object) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, **kwargs)  # type: ignore[call-overload]


def build() -> tuple[Path, Path]:
    """The wheel and the source archive."""
    for leftover in ('build/lib', 'build/bdist.linux-x86_64'):  # a wheel would take deleted files from here
        shutil.rmtree(ROOT / leftover, ignore_errors=True)
    shutil.rmtree(DIST, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, '-m', 'build', '--outdir', DIST], cwd=ROOT, capture_output=True, text=True
    )  # thousands of lines
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    run(sys.executable, '-m', 'twine', 'check', '--strict', *DIST.iterdir())
    (wheel,), (archive,) = DIST.glob('*.whl'), DIST.glob('*.tar.gz')
    return wheel, archive


def check(path: Path, names: set[str], wanted: set[str]) -> None:
    """Exits with a line: the file is too large, lacks something, or has what does not belong there."""
    missing = sorted(wanted - names)
    wrong = sorted(name for name in names if any(part in name for part in FORBIDDEN))
    if missing or wrong or path.stat().st_size > LIMIT:
        sys.exit(f'{path.name}: {path.stat().st_size:,} bytes, missing {missing[:5]}, not wanted {wrong[:5]}')
    print(f'{path.name}: {path.stat().st_size / 1e6:.1f} MB, {len(names)} files')


def contents(wheel: Path, archive: Path) -> None:
    """Check what is in both files: every module, recipe and bundled folder, and nothing that a build left behind."""
    package = {str(path.relative_to(ROOT)) for path in (ROOT / 'nf_zoo').rglob('*.py')}
    bundled = {str(path.relative_to(ROOT)) for path in (ROOT / 'nf_zoo/hub/bundled').rglob('*') if path.is_file()}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.yaml')}
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    check(wheel, names, package | bundled | {f'nf_zoo/{name}' for name in WHEEL | recipes})
    with tarfile.open(archive) as tar:
        names = {member.name.partition('/')[2] for member in tar if member.isfile()}
    check(archive, names, package | bundled | recipes | ARCHIVE)


def install(wheel: Path, folder: Path) -> None:
    """Install the wheel into an environment of its own in ``folder``, and use it there."""
    home = folder / 'home'
    home.mkdir()
    # A PYTHONPATH with a checkout would make pip believe that the package is installed.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'TORCH_', 'NF_ZOO_', 'PYTHON'))}
    env = kept | {'HOME': str(home), 'HF_HUB_OFFLINE': '1'}
    venv.create(folder / 'venv', with_pip=True)
    python, command = folder / 'venv/bin/python', folder / 'venv/bin/nf-zoo'
    run(python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', wheel, env=env)

    def said(*arguments: str, code: int = 0) -> str:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=home, env=env)
        if done.returncode != code:
            sys.exit(f'nf-zoo {" ".join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}')
        print(f'nf-zoo {" ".join(arguments)}: {code}')
        return done.stdout if code == 0 else done.stderr

    picture = (
        "import torch, torchvision; torchvision.io.write_png(torch.randint(256, (3, 40, 40)).byte(), 'picture.png')"
    )
    subprocess.run([python, '-c', picture], check=True, cwd=home, env=env)
    for arguments, words in (
        (['list'], 'eunnet50'),
        (['recipes'], 'digits/eunnet20_cifar'),
        (['predict', 'eunnet20_cifar', 'picture.png'], '%'),
        (['predict', 'eunnet50', 'picture.png'], '%'),
        (['train', '--help'], '--epochs'),
        (['verify', '--all'], 'eunnet50.imagenette'),
    ):
        if words not in said(*arguments):
            sys.exit(f'nf-zoo {" ".join(arguments)} does not say {words!r}')
    line = said('export', 'eunnet20_cifar', '--pretrained', '-o', 'x.onnx', code=2)
    if line.count('\n') != 1 or "pip install 'nf-zoo[export]'" not in line:
        sys.exit(f'a missing extra is said otherwise: {line}')
    print(line.strip())


if __name__ == '__main__':
    found = build()
    contents(*found)
    with tempfile.TemporaryDirectory() as folder:
        install(found[0], Path(folder))
    print(f'nf_zoo {nf_zoo.__version__} is ready in {DIST.name}/')
