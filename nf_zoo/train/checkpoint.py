"""Checkpoints: NNNNNNNN.safetensors (tensors) and NNNNNNNN.json (the rest), numbered by the updates done.

The JSON file is written last. It holds the hashes of both files, so a torn or damaged checkpoint is noticed. A
checkpoint contains no time of day and no state of a random generator, because the engine seeds every step.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from ..errors import UserError
from ..files import refuse_special, tensor_bytes, write_whole


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> None:
    """Write checkpoint number ``step`` and drop all but the newest ``keep``."""
    name = f'{step:08d}'
    data = tensor_bytes(tensors)
    write_whole(folder / f'{name}.safetensors', data)
    body = {'tensors_sha256': hashlib.sha256(data).hexdigest(), 'state': state}
    write_whole(folder / f'{name}.json', json.dumps({'sha256': _hash(body), **body}, indent=1).encode())
    for old in _numbers(folder)[max(1, keep) :]:
        (folder / f'{old}.json').unlink(missing_ok=True)
        (folder / f'{old}.safetensors').unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """Load the newest intact checkpoint: its tensors, its state, and the names of damaged newer ones.

    Returns None if there is no checkpoint. Raises `UserError` if there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for name in _numbers(folder):
        try:
            for kind in ('json', 'safetensors'):
                refuse_special(folder / f'{name}.{kind}')
            found = json.loads((folder / f'{name}.json').read_bytes())
            body = {key: found[key] for key in ('tensors_sha256', 'state')}
            data = (folder / f'{name}.safetensors').read_bytes()
            if found['sha256'] != _hash(body) or body['tensors_sha256'] != hashlib.sha256(data).hexdigest():
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(name)
            continue
        return load(data), body['state'], damaged
    if damaged:
        raise UserError(f'{folder}: every checkpoint is damaged ({", ".join(damaged)}); start again in another folder')
    return None


def _numbers(folder: Path) -> list[str]:
    return sorted((p.stem for p in folder.glob('*.json') if p.stem.isdecimal()), key=int, reverse=True)


def _hash(body: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(body))  # JSON's keys are strings, which sort otherwise than numbers: 18 before 9
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()
