"""Lines and tables for the terminal."""

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TextIO


def say(line: str, to: TextIO | None = None) -> None:
    """Write ``line`` and its newline to ``to`` (standard output by default) in one call, and flush it.

    `print` writes the newline in a second call. torchrun starts its processes unbuffered (``python -u``), so with
    `print` the lines of several processes run into one another.
    """
    stream = sys.stdout if to is None else to
    stream.write(f'{line}\n')
    stream.flush()


def clean(value: object) -> str:
    """``value`` as one line that is safe to show: a terminal would obey control characters in text from elsewhere.

    Runs of white space become one blank. Characters that cannot be printed, such as escape sequences or marks that
    reverse the direction of writing, become question marks.
    """
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(value).split()))


def megabytes(count: int) -> str:
    """A number of bytes in the largest unit that keeps it at 1 or more: '47.0 MB', '985 bytes'."""
    for unit, size in (('GB', 10**9), ('MB', 10**6), ('kB', 10**3)):
        if count >= size:
            return f'{count / size:.1f} {unit}'
    return f'{count} bytes'


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of a table, two spaces between columns, those numbered in ``right`` aligned to the right.

    Every cell is `clean`.

    A row may be shorter than the head; its last cell may be of any length, unless its column is one of ``right``.
    """
    table = [[clean(cell) for cell in row] for row in (head, *rows)]
    widths = [
        max((len(row[i]) for row in table if i < len(row) - (i not in right)), default=0) for i in range(len(head))
    ]
    return [
        '  '.join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in table
    ]
