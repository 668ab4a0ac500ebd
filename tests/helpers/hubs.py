"""Small hubs for tests."""

import contextlib
import hashlib
import json
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import nf_zoo
from nf_zoo.files import tensor_bytes
from nf_zoo.hub import package, places, weights

NAME, TAG = 'eunnet20_cifar', 'toy'
SMALL: dict[str, Any] = dict(depths=(1, 1, 1), num_classes=3)
FACTS: dict[str, Any] = dict(
    dataset='toy',
    classes=['a', 'b', 'c'],
    metrics={'top1': 62.5, 'top5': 100.0, 'loss': 1.0625, 'n': 8},
    recipe={
        'model': NAME,
        'model_kwargs': {'depths': [1, 1, 1]},
        'lr': 0.1,
        'initial_checkpoint': '/home/me/x.safetensors',
    },
    seed=7,
    epochs=2,
    seconds=3.5,
    hardware='a processor',
    versions={'torch': '2.0'},
)


def without_weights() -> str:
    """A small model of which the package has no weights."""
    names = nf_zoo.list_models('*_resnet*_cifar')
    return next(name for name in names if not timm.is_model_pretrained(name) and 'preres' not in name)


def make_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(NAME, **SMALL).eval()


@cache
def toy() -> package.Package:
    facts = dict(dataset='toy', classes=['a', 'b', 'c'], metrics={'top1': 50.0, 'n': 4})
    return package.gather(make_model(), NAME, TAG, None, 'apache-2.0', facts)


def make_hub(root: Path) -> Path:
    """A hub with the one folder NAME.TAG."""
    folder = root / f'{NAME}.{TAG}'
    folder.mkdir(parents=True)
    for filename, data in toy().files.items():
        (folder / filename).write_bytes(data)
    return root


def load(hub: Path) -> weights.Weights:
    return weights.load(NAME, TAG, places.DirPlace(hub))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message and '\n' not in message and len(message) < 1000
    return message


def rewrite(folder: Path, filename: str, data: bytes, **manifest: Any) -> None:
    """Put ``data`` there as an attacker who owns the hub would: the manifest agrees."""
    (folder / filename).write_bytes(data)
    found = json.loads((folder / 'manifest.json').read_text())
    found['files'][filename] = hashlib.sha256(data).hexdigest()
    if filename == 'model.safetensors':
        found |= {'bytes': len(data), 'sha256': found['files'][filename]}
    (folder / 'manifest.json').write_text(json.dumps(found | manifest))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def make_run(folder: Path) -> Path:
    """An output folder as ``nf-zoo train`` leaves it."""
    folder.mkdir()
    data = tensor_bytes(make_model().state_dict())
    (folder / 'model.safetensors').write_bytes(data)
    (folder / 'curves.png').write_bytes(b'\x89PNG')
    result = FACTS | {
        'model': NAME,
        'num_classes': 3,
        'input_size': [3, 32, 32],
        'mean': [0.1, 0.2, 0.3],
        'std': [0.4, 0.5, 0.6],
        'interpolation': 'bilinear',
        'crop_pct': 1.0,
        'train_n': 80,
        'sha256': hashlib.sha256(data).hexdigest(),
        'bytes': len(data),
    }
    (folder / 'result.json').write_text(json.dumps(result))
    return folder


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 20,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
