"""Files: written whole or not at all; JSON and safetensors read strictly."""

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import UserError, one_line

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)  # of weights, and of counts

_KINDS = {
    stat.S_ISDIR: 'a folder',
    stat.S_ISFIFO: 'a pipe (FIFO)',
    stat.S_ISCHR: 'a device',
    stat.S_ISBLK: 'a device',
    stat.S_ISSOCK: 'a socket',
}


def refuse_special(path: Path) -> None:
    """Raises `UserError` if ``path`` is there, links followed, but is not a regular file.

    Opening a FIFO would wait for a writer, and reading a device might never end.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # opening the file says what is wrong
    kind = next((name for test, name in _KINDS.items() if test(mode)), None)
    if kind:
        raise UserError(f'{path} is {kind}, not a file')


def below(folder: Path, name: str) -> Path:
    """The path of ``name`` in a folder. Raises `UserError` for a name from outside that leads out of the folder."""
    if Path(name).is_absolute() or '..' in Path(name).parts:
        raise UserError(f"'{name}' leads out of {folder}; give the name of a folder below it")
    return folder / name


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is, at any moment, the old file or the new one.

    A link is followed, and a file that was there keeps its mode. Raises `UserError` if the file can't be written, and
    if ``path`` is a folder, a pipe, a device or a socket.
    """
    try:
        refuse_special(path)
        target = Path(os.path.realpath(path))
        if target.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        beside = target.with_name(f'.{target.name}.tmp')
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise _cannot_write(path, error) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)  # a killed process may have left one
        with open(beside, 'xb') as file:  # never through a link that someone else has put there
            if mode is not None:
                os.chmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, 'strerror', None) or error
    return UserError(f'cannot write {path}: {reason}; free space or choose another folder')


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """The tensors in safetensors' format, each contiguous and with storage of its own."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    owners: set[int] = set()
    for name, t in plain.items():
        if t.data_ptr() in owners:
            plain[name] = t.clone()
        owners.add(plain[name].data_ptr())
    return save(plain, metadata={'format': 'pt'})


def read_tensors(data: bytes, where: str | Path) -> dict[str, Tensor]:
    """Parse the bytes of a safetensors file of weights: floating-point tensors of 16 to 64 bits, and counts in int64.

    Args:
        data: The whole file.
        where: How messages name the file.

    Raises:
        UserError: ``data`` is no safetensors file, or has no tensors, or a tensor has another dtype.
    """
    try:
        tensors = load(data)
    except (SafetensorError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'{where} is not a valid safetensors file: {one_line(error)[:200]}') from None
    if not tensors:
        raise UserError(f'{where} has no tensors')
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise UserError(f'{where}: {key[:100]!r} has the dtype {tensor.dtype}; weights are floating-point numbers')
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that holds NaN or infinity, or a float64 value too large for float32; None if all are good.

    Tensors on the meta device have no values and pass.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel():
            least, greatest = torch.aminmax(tensor.detach())  # NaN if one value is; makes no copy of the tensor
            limit = torch.finfo(torch.float32).max
            if not (-limit <= float(least) and float(greatest) <= limit):
                return key
    return None


def read_json(data: bytes, where: str | Path) -> dict[str, Any]:
    """Parse a JSON object strictly: UTF-8, no NaN or infinity, no key twice.

    Raises:
        UserError: ``data`` is anything else; ``where`` names the file in the message.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f'{constant} is not JSON')

    def finite(text: str) -> float:
        value = float(text)
        if value in (float('inf'), float('-inf')):
            raise ValueError(f'{text[:20]} is too large')
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ValueError('a key occurs twice')
        return result

    try:
        value = json.loads(data.decode(), parse_constant=refuse, parse_float=finite, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where} is not valid JSON: {str(error).splitlines()[0][:200]}') from None
    if not isinstance(value, dict):
        raise UserError(f'{where} is not a JSON object')
    return value


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError of reading ``path`` into a one-line UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
