"""A tiny data set and a tiny recipe for the tests of the engine."""

import multiprocessing
import signal
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from nf_zoo.train import Interrupted, MemorySet, Recipe, train
from nf_zoo.train.data import memory as data_module


def toy_set(data_dir: object, train: bool, download: bool) -> MemorySet:
    """Sixteen-pixel images whose brightest channel is their class."""
    rng = torch.Generator().manual_seed(int(train))
    n = 41 if train else 11
    labels = torch.randint(0, 3, (n,), generator=rng)
    images = torch.randint(0, 160, (n, 3, 16, 16), generator=rng, dtype=torch.uint8)
    images[torch.arange(n), labels] += 95
    return MemorySet(images, labels, ['red', 'green', 'blue'])


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data_module._LOADERS, 'toys', toy_set)


def toy_recipe(output: Path, **options: Any) -> Recipe:
    base = {
        'model': 'eunnet20_cifar',
        'model_kwargs': {'depths': [1, 1, 1]},
        'dataset': 'toys',
        'batch_size': 8,
        'epochs': 2,
        'lr': 0.05,
        'warmup_epochs': 0,
        'sched_on_updates': True,
        'log_interval': 1,
        'device': 'cpu',
        'output': str(output),
    }
    return Recipe().with_options({**base, **options})


def render_nothing(figure: object, file: IO[bytes], **options: Any) -> None:
    """In the place of ``Figure.savefig``, which takes three times as long as a toy's training."""
    file.write(b'\x89PNG')


def run_toy(output: Path, **options: Any) -> dict[str, Any]:
    return train(toy_recipe(output, **options), log=lambda line: None, bar=False)


def outcome(run: Path) -> dict[str, bytes]:
    """Every file that must not depend on when or in how many pieces the run was done."""
    names = ('summary.csv', 'model.safetensors', 'best.safetensors')
    files = [*(run / name for name in names), *sorted((run / 'checkpoints').glob('*'))[-2:]]
    return {file.name: file.read_bytes() for file in files}


def stop_at(recipe: Any, line_start: str) -> None:
    """Run until the log says ``line_start``, and press Ctrl-C there."""

    def log(line: str) -> None:
        if line.startswith(line_start):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        train(recipe, log=log, bar=False)
    assert '--resume' in str(stopped.value) and '\n' not in str(stopped.value)
    assert not multiprocessing.active_children(), 'a worker of the loader was left behind'


def fashion(folder: Path, n: int = 6) -> Path:
    """Files as torchvision unpacks them: a header of big-endian sizes, then the bytes."""
    raw = folder / 'FashionMNIST' / 'raw'
    raw.mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    for split in ('train', 't10k'):
        pixels = torch.randint(0, 256, (n, 28, 28), generator=rng, dtype=torch.uint8)
        header = b''.join(x.to_bytes(4, 'big') for x in (0x0803, n, 28, 28))
        (raw / f'{split}-images-idx3-ubyte').write_bytes(header + pixels.numpy().tobytes())
        header = b''.join(x.to_bytes(4, 'big') for x in (0x0801, n))
        (raw / f'{split}-labels-idx1-ubyte').write_bytes(header + bytes(range(n)))
    return folder
