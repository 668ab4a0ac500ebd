"""The contents of a hub as a table: for the terminal, as CSV, and as a page that sorts and filters by itself."""

import base64
import csv
import hashlib
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckFailed, UserError
from ..text import columns
from .places import place
from .weights import Found, open_folder, parse

_PAGE = Path(__file__).with_name('listing.html')


@dataclass(frozen=True)
class Row:
    """One ``name.tag``; of a folder that can't be read, nothing but its name and what is wrong (``error``)."""

    name: str
    tag: str
    dataset: str = ''
    top1: float | None = None  # percent
    bytes: int | None = None
    sha256: str = ''
    published: str = ''  # the day, in UTC
    error: str = ''


def list_hub(hub: str | Path) -> list[Row]:
    """What the manifests of a hub say, one row for each ``name.tag``; no weights are read, nor their hashes checked.

    Raises:
        UserError: no hub, or one that can't be reached.
    """
    where = place(hub)
    rows = []
    for name_tag in where.contents():
        name, tag = parse(name_tag)
        try:
            manifest = open_folder(Found(where, name, tag or '')).manifest
        except (CheckFailed, UserError) as error:
            rows.append(Row(name, tag or '', error=plain(error)))
            continue
        rows.append(
            Row(
                name,
                tag or '',
                plain(manifest['dataset']),
                manifest['metrics'].get('top1'),
                manifest['bytes'],
                manifest['sha256'],
                plain(manifest.get('published') or '')[:10],
            )
        )
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """Aligned columns, with the first 12 digits of the hash."""
    head = ['name', 'tag', 'data set', 'top-1 %', 'bytes', 'sha256', 'published']
    cells = [
        [r.name, r.tag, f'! {r.error}']
        if r.error
        else [r.name, r.tag, r.dataset, percent(r.top1), f'{r.bytes:,}', r.sha256[:12], r.published]
        for r in rows
    ]
    return '\n'.join(columns(head, cells))


def as_csv(rows: Sequence[Row], hub: str | Path) -> str:
    """RFC 4180, the whole hash; a text that a spreadsheet would take for a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\r\n')
    writer.writerow(['hub', *Row.__dataclass_fields__])
    for row in rows:
        cells = [str(hub), *(getattr(row, key) for key in Row.__dataclass_fields__)]
        writer.writerow([_no_formula(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def as_html(rows: Sequence[Row], hub: str | Path) -> str:
    """One file without anything from elsewhere; it is complete without JavaScript, which adds sorting and the filter.

    Its Content-Security-Policy runs the page's own script alone, whatever a manifest says.
    """
    page = _PAGE.read_text(encoding='utf-8')
    script = page.partition('<script>')[2].partition('</script>')[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    body = '\n'.join(_html_row(row) for row in rows)
    for mark, text in {
        'digest': digest,
        'hub': html.escape(plain(hub)),
        'count': str(len(rows)),
        'rows': body,
    }.items():
        page = page.replace(f'<!--{mark}-->', text)
    return page


def percent(value: float | None) -> str:
    return '' if value is None else f'{value:.2f}'


def _html_row(row: Row) -> str:
    name = f'<th scope="row">{html.escape(row.name)}</th>'
    if row.error:
        return f'<tr class="error">{name}{_cell(row.tag)}<td colspan="5">{html.escape(row.error)}</td></tr>'
    cells = [
        _cell(row.tag),
        _cell(row.dataset),
        _cell(percent(row.top1), row.top1),
        _cell(f'{row.bytes:,}', row.bytes),
        f'<td><code title="{row.sha256}">{row.sha256}</code></td>',
        _cell(row.published),
    ]
    return f'<tr>{name}{"".join(cells)}</tr>'


def _cell(text: str, number: float | None = None) -> str:
    return f'<td data-value="{number}">{text}</td>' if number is not None else f'<td>{html.escape(text)}</td>'


def plain(value: Any) -> str:
    """In one line, without the control characters that could move a terminal's cursor."""
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(value).split()))


def _no_formula(text: str) -> str:
    return f"'{text}" if text[:1] in ('=', '+', '-', '@') else text
