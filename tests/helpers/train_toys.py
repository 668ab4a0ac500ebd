"""A tiny data set and a tiny recipe for the tests of the engine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nf_zoo.train import MemorySet, Recipe, train
from nf_zoo.train import data as data_module


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


def run_toy(output: Path, **options: Any) -> dict[str, Any]:
    return train(toy_recipe(output, **options), log=lambda line: None, bar=False)
