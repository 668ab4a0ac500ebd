"""Tables for the terminal."""

from collections.abc import Collection, Iterable, Sequence


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of a table, two spaces between columns, those numbered in ``right`` aligned to the right.

    A row may be shorter than the head; its last cell may be of any length, unless its column is one of ``right``.
    """
    table = [list(head), *map(list, rows)]
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
