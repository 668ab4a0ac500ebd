"""Reading safetensors in the memory of the tensors alone.

The library's reader copies every byte once more, or maps the file, which may change between its hash and its use. Here
the bytes are read once, hashed on the way, and given back to the system as they become tensors.
"""

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import UserError
from .schema import FILE_LIMIT, read_json, short

_DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Span:
    """The bytes ``first`` ... ``last`` - 1 of a file, of which one tensor is made."""

    key: str
    dtype: torch.dtype
    shape: list[int]
    first: int
    last: int


def read(file: BinaryIO, size: int) -> tuple[mmap.mmap, str] | None:
    """The ``size`` bytes of a file and their SHA-256; None if it has more, or fewer."""
    buffer, sha256, at = mmap.mmap(-1, size), hashlib.sha256(), 0
    while at < size:
        with memoryview(buffer)[at : at + _CHUNK] as part:
            count = file.readinto(part)  # type: ignore[attr-defined]
            sha256.update(part[:count])
        if not count:
            return None
        at += count
    return None if file.read(1) else (buffer, sha256.hexdigest())


def unpack(buffer: mmap.mmap, where: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors in the bytes of a safetensors file, which are gone afterwards.

    Args:
        like: Tensors whose dtype and device those of the same name get.

    Raises:
        UserError: not the bytes of such a file, or of weights (floating point, or counts in int64).
    """
    tensors = {}
    for span in spans(buffer, where):
        example = (like or {}).get(span.key)
        dtype, device = (span.dtype, None) if example is None else (example.dtype, example.device)
        tensors[span.key] = tensor = torch.empty(span.shape, dtype=dtype, device=device)
        flat = tensor.view(-1)
        for first in range(0, tensor.numel(), _CHUNK):
            count, offset = min(_CHUNK, tensor.numel() - first), span.first + first * span.dtype.itemsize
            flat[first : first + count] = torch.frombuffer(buffer, dtype=span.dtype, count=count, offset=offset)
            _give_back(buffer, offset, offset + count * span.dtype.itemsize)
    return tensors


def _give_back(buffer: mmap.mmap, first: int, last: int) -> None:
    if hasattr(mmap, 'MADV_DONTNEED'):  # not on Windows, where the bytes stay until the last tensor is made
        start, end = (at // mmap.PAGESIZE * mmap.PAGESIZE for at in (first, last))
        if end > start:
            buffer.madvise(mmap.MADV_DONTNEED, start, end - start)


def spans(buffer: mmap.mmap, where: str) -> list[Span]:
    """Where the tensors are, by the file's header, in the order of their bytes: one behind the other, without a gap."""

    def invalid(reason: str) -> UserError:
        return UserError(f'{where} is no valid safetensors file: {reason}')

    start = 8 + int.from_bytes(buffer[:8], 'little')
    if start > len(buffer):
        raise invalid(f'a header of {start - 8} bytes in {len(buffer)}')
    header = read_json(buffer[8:start], f'the header of {where}')
    header.pop('__metadata__', None)
    if not header:
        raise UserError(f'{where} has no tensors')
    found = []
    for key, entry in header.items():
        match entry:
            case {'dtype': str(name), 'shape': [*shape], 'data_offsets': [int(first), int(last)]}:
                if name not in _DTYPES:
                    raise UserError(f'{where}: {short(key)} is of {short(name)}; weights are floating point')
                sides = all(type(side) is int and side >= 0 for side in shape)
                if not sides or prod(max(side, 1) for side in shape) > FILE_LIMIT:
                    raise invalid(f'{short(key)} has the shape {short(shape)}')
                found.append(Span(key, _DTYPES[name], shape, start + first, start + last))
            case _:
                raise invalid(f'{short(key)} is {short(entry)}')
    found.sort(key=lambda span: (span.first, span.last))
    at = start
    for span in found:
        if span.first != at or span.last - at != prod(span.shape) * span.dtype.itemsize:
            raise invalid(
                f'the bytes of {short(span.key)}, {span.first - start} to {span.last - start}, are not its own'
            )
        at = span.last
    if at != len(buffer):
        raise invalid(f'{len(buffer) - at} bytes belong to no tensor')
    return found
