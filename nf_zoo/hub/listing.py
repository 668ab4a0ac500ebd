"""The contents of a hub as a table: for the terminal, as CSV, and as a page that sorts and filters itself."""

import base64
import csv
import hashlib
import html
import io
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..errors import CheckFailed, UserError
from ..text import clean, columns, megabytes
from .folder import Entry, open_folder
from .names import CARD, is_name_tag, parse
from .places import HfPlace, parse_place

_PAGE = Path(__file__).with_name('listing.html')


@dataclass(frozen=True)
class HubRow:
    """One NAME.TAG. A folder that cannot be read has nothing but its name and an ``error``."""

    name: str
    tag: str
    dataset: str = ''
    top1: float | None = None  # percent
    bytes: int | None = None
    sha256: str = ''
    published: str = ''  # the day, in UTC
    error: str = ''
    license: str = ''
    parameters: int | None = None


def list_hub(hub: str | Path) -> list[HubRow]:
    """What the manifests of a hub say, one row for each NAME.TAG. No weights are read, and no hashes checked.

    Raises:
        UserError: not a hub, or one that cannot be listed.
    """
    place = parse_place(hub)
    rows = []
    for name_tag in place.names():
        if not is_name_tag(name_tag):
            rows.append(HubRow(clean(name_tag), '', error='the name of this folder is not NAME.TAG; rename it'))
            continue
        name, tag = parse(name_tag)
        try:
            manifest = open_folder(Entry(place, name, tag or '')).manifest
        except (CheckFailed, UserError) as error:
            rows.append(HubRow(name, tag or '', error=clean(str(error).replace(f'{place}/', ''))))
            continue
        rows.append(
            HubRow(
                name,
                tag or '',
                clean(manifest['dataset']),
                manifest['metrics'].get('top1'),
                manifest['bytes'],
                manifest['sha256'],
                clean(manifest.get('published') or '')[:10],
                license=clean(manifest['license']),
                parameters=manifest.get('parameters'),
            )
        )
    return rows


def as_table(rows: Sequence[HubRow]) -> str:
    """Aligned columns, with the first 12 digits of the hash."""
    head = ['name', 'tag', 'data set', 'top-1 %', 'bytes', 'sha256', 'published', 'licence']
    cells = [
        [r.name, r.tag, f'! {r.error}']
        if r.error
        else [r.name, r.tag, r.dataset, percent(r.top1), f'{r.bytes:,}', r.sha256[:12], r.published, r.license]
        for r in rows
    ]
    return '\n'.join(columns(head, cells))


def as_csv(rows: Sequence[HubRow], hub: str | Path) -> str:
    """RFC 4180, with the whole hash. A text that a spreadsheet would take for a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\r\n')
    writer.writerow(['hub', *HubRow.__dataclass_fields__])
    for row in rows:
        cells = [str(hub), *(getattr(row, key) for key in HubRow.__dataclass_fields__)]
        writer.writerow([_no_formula(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue()


def as_html(rows: Sequence[HubRow], hub: str | Path, page: Path | None = None) -> str:
    """One file without anything from elsewhere. It is complete without JavaScript, which adds sorting and the filter.

    Its Content-Security-Policy runs the page's own script alone, whatever a manifest says.

    Args:
        rows: The table.
        hub: Where the rows are from. The links to the model cards lead there.
        page: Where the page will lie; by default in the hub itself.
    """
    place = parse_place(hub)
    if isinstance(place, HfPlace):
        from huggingface_hub import constants

        shown, links = str(place), f'{constants.ENDPOINT}/{place.org}/{{}}'
    else:
        root = os.path.relpath(place.path, page.parent) if page else '.'
        # The reader of the page may have another machine: an absolute path of this one would say nothing.
        shown = place.path.resolve().name if place.path.is_absolute() else str(place)
        links = f'{quote(root)}/{{}}/{CARD}'
    html_template = _PAGE.read_text(encoding='utf-8')
    script = html_template.partition('<script>')[2].partition('</script>')[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for mark, text in {
        'digest': digest,
        'hub': html.escape(clean(shown)),
        'variable': html.escape(clean(f'NF_ZOO_HUB={shlex.quote(shown)}')),
        'option': html.escape(clean(f'--hub {shlex.quote(shown)}')),
        'count': str(len(rows)),
        'rows': '\n'.join(_html_row(row, links) for row in rows),
    }.items():
        html_template = html_template.replace(f'<!--{mark}-->', text)
    return html_template


def percent(value: float | None) -> str:
    """A percentage with two digits, empty if it is unknown."""
    return '' if value is None else f'{value:.2f}'


def _html_row(row: HubRow, links: str) -> str:
    name = html.escape(row.name)
    if row.error:
        error = f'<td colspan="8">{html.escape(row.error)}</td>'
        return f'<tr class="error"><th scope="row">{name}</th>{_cell(row.tag)}{error}</tr>'
    name_tag = f'{row.name}.{row.tag}'
    cells = [
        f'<th scope="row"><a href="{html.escape(links.format(name_tag))}">{name}</a></th>',
        _cell(row.tag),
        _cell(row.dataset),
        _cell(percent(row.top1), row.top1),
        _cell('' if row.parameters is None else f'{row.parameters:,}', row.parameters),
        _cell(megabytes(row.bytes or 0), row.bytes),
        f'<td><code class="short" title="{row.sha256}">{row.sha256}</code></td>',
        _cell(row.published),
        _cell(row.license),
        f'<td><code>{html.escape(f"timm.create_model({name_tag!r}, pretrained=True)")}</code></td>',
    ]
    return f'<tr>{"".join(cells)}</tr>'


def _cell(text: str, number: float | None = None) -> str:
    return f'<td data-value="{number}">{text}</td>' if number is not None else f'<td>{html.escape(text)}</td>'


def _no_formula(text: str) -> str:
    return f"'{text}" if text[:1] in ('=', '+', '-', '@') else text
