"""Files that appear whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

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
