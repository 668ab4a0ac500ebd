"""Files that appear whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from .errors import UserError


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is, at any moment, the old file or the new one. Raises `UserError`."""
    beside = path.with_name(f'.{path.name}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise UserError(f'cannot write {path}: {error.strerror}; free space or choose another folder') from None


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """The tensors in safetensors' format, each contiguous and with storage of its own."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    owners: set[int] = set()
    for name, t in plain.items():
        if t.data_ptr() in owners:
            plain[name] = t.clone()
        owners.add(plain[name].data_ptr())
    return save(plain, metadata={'format': 'pt'})
