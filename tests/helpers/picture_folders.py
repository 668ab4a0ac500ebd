"""A folder of small random pictures, and how two lists of batches are compared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nf_zoo.train.data.memory import Batch

CONFIG = {
    'input_size': (3, 16, 16),
    'interpolation': 'bilinear',
    'mean': (0.5, 0.5, 0.5),
    'std': (0.5, 0.5, 0.5),
    'crop_pct': 1.0,
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, n in (('train', 5), ('validation', 3)):
        for name in ('cat', 'dog'):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    return tmp_path


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(a, b, strict=True)
    )
