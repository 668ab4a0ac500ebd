"""timm's own train.py, unmodified, on our recipes: `python tools/timm_train.py TRAIN_PY ['cifar10/fixup*' ...]`.

No package of timm's has that file: it comes from its repository, at the tag of the installed release. Each recipe
trains for an epoch (and its warm-up, where that comes on top) on a few small pictures of noise in two classes.
"""

import csv
import fnmatch
import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm  # noqa: F401
import yaml
from PIL import Image

# Not nf_zoo: that train.py imports it, by the recipe's device_modules, is part of what is tested.
CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
OPTIONS = '--num-classes 2 --img-size 32 --batch-size 2 --epochs 1 --workers 0 --device cpu'.split()


def pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, label in ((split, label) for split in ('train', 'validation') for label in 'ab'):
        (folder / split / label).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / label / f'{number}.png')
    return folder


def run(train_py: Path, recipe: Path, data: Path, output: Path) -> None:
    """In a process of its own."""
    log = os.open(output / 'log.txt', os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    places = ['--dataset', '', '--data-dir', str(data), '--output', str(output), '--experiment', 'run']
    sys.argv = [str(train_py), '--config', str(recipe), *OPTIONS, *places]
    script = runpy.run_path(str(train_py), run_name='__main__')

    from nf_zoo.train.recipe import OWN

    known = {action.dest for action in script['parser']._actions}
    unknown = sorted(yaml.safe_load(recipe.read_text()).keys() - known - OWN)  # it takes every key silently
    sys.exit(f'train.py does not know {", ".join(unknown)}' if unknown else 0)


def check(train_py: Path, recipe: Path, data: Path, output: Path) -> tuple[bool, str]:
    """Whether it ran, and the losses (a paper has ablations that lose their numbers), or what went wrong."""
    child = multiprocessing.get_context('fork').Process(target=run, args=(train_py, recipe, data, output))
    child.start()
    child.join()
    if child.exitcode:
        return False, f'exit code {child.exitcode}\n{(output / "log.txt").read_text()[-2000:]}'
    with open(output / 'run' / 'summary.csv', newline='') as file:
        losses = [f'{float(row["train_loss"]):.3f}' for row in csv.DictReader(file)]
    return bool(losses), f'train loss {" ".join(losses)}'


def main() -> int:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        print(
            "nf-zoo: error: give timm's train.py, from its repository at the installed release's tag", file=sys.stderr
        )
        return 2
    train_py, patterns = Path(sys.argv[1]).resolve(), ' '.join(sys.argv[2:]).split() or ['*']
    named = {f'{p.parent.name}/{p.stem}': p for p in sorted(CONFIGS.glob('*/*.yaml'))}
    chosen = [name for name in named if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        data = pictures(Path(temporary) / 'data')
        for name in chosen:
            output = Path(temporary) / name.replace('/', '-')
            output.mkdir()
            began = time.perf_counter()
            ran, said = check(train_py, named[name], data, output)
            failed += not ran
            print(f'{name:50} {time.perf_counter() - began:6.1f} s  {"" if ran else "FAILED: "}{said}', flush=True)
    print(f'{len(chosen) - failed} of {len(chosen)} recipes ran in {train_py.name}')
    return 1 if failed or not chosen else 0


if __name__ == '__main__':
    sys.exit(main())
