"""Which data a run was started with, so that it doesn't go on with other data."""

import hashlib
import os
from pathlib import Path
from typing import Any

from ...errors import UserError
from .memory import MemorySet


def fingerprint(images: Any) -> dict[str, Any]:
    """Classes, number of images, and a hash of the files' names and labels, where a set has these.

    The folder that holds a set doesn't count: it may be moved.
    """
    count = len(images.labels) if isinstance(images, MemorySet) else len(images)
    return {'classes': [str(name) for name in images.classes], 'images': count, 'files': _hash(images)}


def same_data(then: dict[str, Any] | None, now: dict[str, Any], run: Path) -> None:
    """Raises `UserError` if the fingerprints of a run's sets, by split, are other ones. Old checkpoints have none."""
    for split, found in now.items():
        before = (then or {}).get(split, found)
        if before['classes'] != found['classes']:
            what = f'classes {_short(before["classes"])} -> {_short(found["classes"])}'
        elif before['images'] != found['images']:
            what = f'{before["images"]:,} images -> {found["images"]:,}'
        elif before['files'] != found['files']:
            what = 'other files, other names or other labels'
        else:
            continue
        raise UserError(
            f'{run} was started with other {split} data ({what}): give the same data, or choose another --output'
        )


def _hash(images: Any) -> str:
    if isinstance(images, MemorySet):
        return hashlib.sha256(images.labels.numpy().tobytes()).hexdigest()
    pictures = getattr(images, 'pictures', images)  # a set of timm holds torchvision's or timm's own
    samples = getattr(pictures, 'samples', None) or getattr(getattr(pictures, 'reader', None), 'samples', None)
    if not isinstance(samples, list) or not samples or not isinstance(samples[0], tuple):
        return ''
    paths = [str(path) for path, _ in samples]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    digest = hashlib.sha256()
    for path, label in samples:
        digest.update(f'{os.path.relpath(path, root)}\0{label}\n'.encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()


def _short(classes: list[str]) -> str:
    text = ', '.join(classes)
    return text if len(text) < 100 else f'{text[:96]} ...'
