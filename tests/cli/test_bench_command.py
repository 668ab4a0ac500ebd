"""The command `nf-zoo bench`: what it prints and writes, and what it refuses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nf_zoo.bench.measure import BenchRow
from nf_zoo.bench.settings import Settings
from nf_zoo.cli import bench
from nf_zoo.cli.bench import BENCHES
from nf_zoo.cli.main import main


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Settings]]:
    """The networks and settings that `bench training` got; each network has a row."""
    found: list[tuple[str, Settings]] = []

    def run(name: str, settings: Settings) -> Iterator[BenchRow]:
        found.append((name, settings))
        settings.advance()
        yield BenchRow(f'{name}: training step', 'BN twin', [3.0, 3.2, 3.1], [2.0, 2.1, 2.0], 'ms', name)

    monkeypatch.setitem(BENCHES, 'training', BENCHES['training']._replace(run=run))
    return found


def test_rows_machine_json_and_picture(seen: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    words = [
        'bench',
        'training',
        'eunnet20_cifar',
        'nf_resnet20_cifar',
        '--rounds',
        '3',
        '--peer',
        'bn',
        '--peer',
        'gn',
    ]
    words += [
        '--no-channels-last',
        '--dtype',
        'bf16',
        '--json',
        str(tmp_path / 'a.json'),
        '-o',
        str(tmp_path / 'a.svg'),
    ]
    assert main(words) == 0
    machine, *rows = capsys.readouterr().out.splitlines()
    assert re.search(r'\d+ threads? of \d+ processors?', machine) and 'torch ' in machine and 'timm ' in machine
    assert len(rows) == 2 and '1.524 [' in rows[0] and 'x BN twin (2.00)' in rows[0]
    (name, settings), (other, _) = seen
    assert (name, other) == ('eunnet20_cifar', 'nf_resnet20_cifar')
    assert settings.peers == ('bn', 'gn') and settings.rounds == 3 and settings.bfloat16 and not settings.channels_last
    content = json.loads((tmp_path / 'a.json').read_text())
    assert content['command'].startswith(
        'nf-zoo bench training eunnet20_cifar nf_resnet20_cifar --dtype bf16 --rounds 3'
    )
    assert content['command'].endswith('--no-channels-last --peer bn --peer gn')
    assert content['machine']['torch'] and [row['network'] for row in content['rows']] == [name, other]
    assert content['rows'][0]['quartiles'] == pytest.approx([3.05, 3.15]) and content['rows'][0]['n'] == 3
    assert 'nf_resnet20_cifar: training step' in (tmp_path / 'a.svg').read_text()


def test_without_names_it_takes_one_of_each_method(seen: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['bench', 'training']) == 0
    assert [name for name, _ in seen] == list(bench.FAMILIES)
    assert seen[0][1].peers == ('bn',) and seen[0][1].channels_last and not seen[0][1].compiled
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(bench.FAMILIES)


@pytest.mark.parametrize(
    ('words', 'text'),
    [
        (['engin'], "no bench 'engin'.*did you mean 'engine'"),
        (['import', 'eunnet50'], 'bench import takes no NAME'),
        (['import', '--peer', 'bn'], 'bench import takes no --peer'),
        (['depth', '--peer', 'bn'], 'bench depth takes no --peer'),
        (['engine', '--channels-last'], 'bench engine takes no --channels-last'),
        (['training', '--batch-size', '0'], "'0' is not a whole number above 0"),
        (['training', '--dtype', 'fp8'], 'invalid choice'),
        (['training', '--device', 'nosuch'], "device 'nosuch' is not there"),
        (['training', 'eunet50'], 'eunet50'),
        (['training', 'eunnet20_cifar', '--peer', 'nosuch'], 'nosuch'),
        (['training', 'resnet18'], 'resnet18 has no bn twin'),
        (['export', 'eunnet20_cifar', '--peer', 'timm'], 'timm has no network of its own called eunnet20_cifar'),
        (['export', 'eunnet20_cifar', '--dtype', 'bf16'], 'bench export takes no --dtype'),
        (['training', '-o', 'bars.pdf'], 'has to end with .png or .svg'),
        (['training', '--json', '-'], 'is no file name'),
    ],
)
def test_bad_input_is_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['bench', *words]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert re.search(text, error), error


def test_every_bench_is_named_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['bench', '--help'])
    text = capsys.readouterr().out
    assert all(name in text for name in BENCHES) and 'nf-zoo bench training' in text
