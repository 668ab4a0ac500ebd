"""The table of a hub: in the terminal, as CSV, and as a page in a browser."""

import csv
import html
import io
import json
import re
import shutil
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from hub_client import connect
from hub_server import File, Repo, serve
from hubs import FACTS, NAME, make_model, rewrite

from nf_zoo import hub
from nf_zoo.bench.kits import KITS
from nf_zoo.cli import main as cli
from nf_zoo.errors import UserError
from nf_zoo.hub.listing import HubRow, as_csv, as_html, as_table, list_hub

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>=cmd()\x1b[31m'

AXE = KITS / 'browser' / 'node_modules' / 'axe-core' / 'axe.min.js'


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good folders, whose accuracies and sizes sort otherwise than their names, a hostile and a damaged one."""
    root = tmp_path_factory.mktemp('hub')
    for tag, top1, dtype in (('a', 9.5, None), ('b', 88.25, 'float16'), ('c', None, None)):
        metrics = {'top1': top1, 'n': 8} if top1 else {}
        hub.publish(
            make_model(), root, f'{NAME}.{tag}', **FACTS | {'metrics': metrics, 'dataset': f'set {tag}'}, dtype=dtype
        )
    for tag in ('hostile', 'damaged'):
        shutil.copytree(root / f'{NAME}.a', root / f'{NAME}.{tag}')
    hostile = json.loads((root / f'{NAME}.hostile' / 'manifest.json').read_text())
    changed = {'tag': 'hostile', 'dataset': HOSTILE}
    (root / f'{NAME}.hostile' / 'manifest.json').write_text(json.dumps(hostile | changed))
    (root / f'{NAME}.damaged' / 'manifest.json').write_text('{')
    return root


def test_rows_say_what_the_manifests_say(shared: Path) -> None:
    rows = {row.tag: row for row in list_hub(shared)}
    assert set(rows) == {'a', 'b', 'c', 'hostile', 'damaged'}
    for tag in 'abc':
        manifest = json.loads((shared / f'{NAME}.{tag}' / 'manifest.json').read_text())
        assert date.fromisoformat(manifest['published'])
        assert rows[tag] == HubRow(
            NAME,
            tag,
            *(manifest['dataset'], manifest['metrics'].get('top1'), manifest['bytes'], manifest['sha256']),
            manifest['published'],
            license='apache-2.0',
            parameters=manifest['parameters'],
        )
    assert rows['damaged'].error and rows['damaged'].sha256 == ''
    with pytest.raises(UserError):
        list_hub(shared / 'nowhere')


def test_the_table_is_aligned_and_quiet(shared: Path) -> None:
    lines = as_table(list_hub(shared)).splitlines()
    assert len(lines) == 6 and all(line.isprintable() for line in lines)
    for row, line in zip(list_hub(shared), lines[1:], strict=True):
        assert line.split()[:2] == [row.name, row.tag]
        if row.sha256:
            assert line[lines[0].index('sha256') :].startswith(row.sha256[:12])


def test_csv_reads_back_and_holds_no_formula(shared: Path) -> None:
    rows = list_hub(shared) + [HubRow('n', 't', dataset='=1+1'), HubRow('n', 't', dataset='a,"b"\n')]
    found = list(csv.DictReader(io.StringIO(as_csv(rows, shared))))
    assert [(r['name'], r['tag'], r['sha256']) for r in found] == [(r.name, r.tag, r.sha256) for r in rows]
    assert [float(r['top1']) if r['top1'] else None for r in found] == [r.top1 for r in rows]
    assert found[-1]['dataset'] == 'a,"b"\n'
    assert not any(cell[:1] in ('=', '+', '-', '@') for r in found for cell in r.values())


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_is_complete_and_escapes_everything(shared: Path) -> None:
    page = as_html(list_hub(shared), shared)
    assert '<b>' not in as_html(list_hub(shared), '<b>')
    tags = Tags()
    tags.feed(page)
    names = [tag for tag, _ in tags.found]
    assert names.count('script') == 1 and names.count('tr') == 6 and 'img' not in names and 'b' not in names
    assert not any(key == 'src' or key.startswith('on') for _, attrs in tags.found for key in attrs)
    cards = [attrs['href'] for tag, attrs in tags.found if tag == 'a']
    assert cards == [f'./{NAME}.{tag}/README.md' for tag in ('a', 'b', 'c', 'hostile')]
    assert str(shared) not in page and f'<h1>Weights in {shared.name}' in page  # no path of this machine
    assert page.count(html.escape(f"timm.create_model('{NAME}.a', pretrained=True)")) == 1
    assert f'--hub {shared.name}<' in page and ' kB</td>' in page and 'apache-2.0' in page
    assert f'{list_hub(shared)[0].parameters:,}</td>' in page
    assert '<!--' not in page and all(row.sha256 in page for row in list_hub(shared))


def test_the_command(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ['--csv', str(tmp_path / 'a.csv'), '--html', str(tmp_path / 'a.html')]
    assert cli.main(['hub', 'index', str(shared), *files]) == 1  # one is damaged
    out = capsys.readouterr().out
    assert out == as_table(list_hub(shared)) + '\n'
    assert (tmp_path / 'a.csv').read_bytes().decode() == as_csv(list_hub(shared), shared)
    page = (tmp_path / 'a.html').read_text()
    assert page == as_html(list_hub(shared), shared, tmp_path / 'a.html')
    links = re.findall('href="([^"]*)"', page)
    assert len(links) == 4 and all((tmp_path / link).is_file() for link in links)


def test_an_organization_is_listed(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import close_session

    with serve() as server:
        connect(server, tmp_path, monkeypatch)
        for folder in shared.iterdir():
            repo = server.repos[f'org/{folder.name}'] = Repo()
            repo.commit('main', {path.name: File(path.read_bytes()) for path in folder.iterdir()})
        server.repos['org/other'] = server.repos['else/x.y'] = Repo()
        rows = {row.tag: row for row in list_hub('hf://org')}
        assert {t: rows[t] for t in 'abc'} == {row.tag: row for row in list_hub(shared) if row.tag in 'abc'}
        assert set(rows) == {'a', 'b', 'c', 'hostile', 'damaged'} and rows['damaged'].error
        assert not server.count('GET .*safetensors')
        close_session()


def test_verify_all_says_what_is_done_while_it_measures(
    shared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(shared / f'{NAME}.a', tmp_path / 'hub' / f'{NAME}.a')
    options = ['verify', '--all', '--hub', str(tmp_path / 'hub'), '--data-dir', str(tmp_path / 'nothing')]
    assert cli.main(options) == 1
    assert f'{NAME}.a FAILED\n' in capsys.readouterr().err


def test_verify_all_is_a_table_with_an_exit_code(
    shared: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for tag in 'ab':
        shutil.copytree(shared / f'{NAME}.{tag}', tmp_path / 'hub' / f'{NAME}.{tag}')
    assert cli.main(['verify', '--all', '--hub', str(tmp_path / 'hub')]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [f'{NAME}.a', 'verified', '9.50'],
        [f'{NAME}.b', 'verified', '88.25'],
    ]
    card = tmp_path / 'hub' / f'{NAME}.b' / 'README.md'
    rewrite(card.parent, 'README.md', card.read_bytes().replace(b'88.25', b'99.25'))
    assert cli.main(['verify', '--all', '--hub', str(tmp_path / 'hub')]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and 'verified' in lines[1] and re.search(r'FAILED .*README\.md', lines[2])


# --- In a browser ---


@pytest.mark.kit
def test_the_page_in_chromium(shared: Path, tmp_path: Path) -> None:
    if shutil.which('chromium') is None:
        pytest.skip("Debian's package chromium is not installed")
    rows = list_hub(shared)
    (tmp_path / 'index.html').write_text(as_html(rows, shared))
    column = '[...document.querySelectorAll("tbody tr:not([hidden])")].map(r => r.cells[1].textContent)'
    with chromium(tmp_path / 'profile') as page:
        page.open(tmp_path / 'index.html')
        assert page.run('document.title') == f'Weights in {shared.name}' and page.complaints() == []
        assert page.requests() == [(tmp_path / 'index.html').as_uri()]
        assert page.run(column) == [row.tag for row in rows]
        head = 'thead th:nth-child({}) button'.format
        page.click(head(4))  # accuracy, the best first
        assert page.run(column)[:1] == ['b'] and set(page.run(column)[3:]) == {'c', 'damaged'}
        assert page.run('document.querySelector("[aria-sort]").textContent') == 'Top-1 %'
        page.click(head(4))
        assert set(page.run(column)[:2]) == {'a', 'hostile'} and page.run(column)[2] == 'b'
        page.click(head(6))  # bytes: 16 bits are smaller
        assert page.run(column)[3] == 'b'
        page.click(head(2))
        assert page.run(column) == sorted(row.tag for row in rows)
        page.click(head(2))
        assert page.run(column) == sorted((row.tag for row in rows), reverse=True)
        page.screenshot(tmp_path / 'sorted.png')
        page.click('input')
        page.type('SET  b')
        assert page.run(column) == ['b'] and page.run('document.querySelector("output").textContent') == '1 of 5'
        page.type('x')
        assert page.run(column) == []
        page.run('document.querySelector("input").value = ""')
        page.type(next(row.sha256 for row in rows if row.tag == 'b')[40:])  # also of what the column cuts off
        assert page.run(column) == ['b']
        page.screenshot(tmp_path / 'filtered.png')
        assert page.complaints() == [] and page.run('document.title') == f'Weights in {shared.name}'
        assert page.run('document.images.length') == 0
    assert all((tmp_path / name).stat().st_size > 5000 for name in ('sorted.png', 'filtered.png'))


@pytest.mark.kit
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_axe_finds_nothing_on_the_page(shared: Path, tmp_path: Path, scheme: str, width: int) -> None:
    if shutil.which('chromium') is None or not AXE.is_file():
        pytest.skip('Chromium or axe-core is missing: make kit-test installs them')
    (tmp_path / 'index.html').write_text(as_html(list_hub(shared), shared))
    with chromium(tmp_path / 'profile') as page:
        page.call('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}])
        page.call(
            'Emulation.setDeviceMetricsOverride', width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        page.open(tmp_path / 'index.html')
        assert page.run('matchMedia("(prefers-color-scheme: dark)").matches') == (scheme == 'dark')
        page.run(AXE.read_text(encoding='utf-8'))
        assert page.run('axe.run().then(found => found.violations.map(v => `${v.id}: ${v.nodes[0].html}`))') == []
        assert page.run('document.documentElement.scrollWidth - document.documentElement.clientWidth') <= 0
