"""`nf-zoo signal`: table, verdict, files and pictures, and one line for every mistake."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from nf_zoo.cli import main as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *argv: (cli.main(['signal', *map(str, argv)]), *capsys.readouterr())


def test_the_table_has_a_row_for_each_block_and_the_verdict_follows(run: Run) -> None:
    code, out, _ = run('nf_resnet20_cifar', '--batch-size', 2)
    head, *rows, empty, means, shares, _, last = out.splitlines()
    assert code == 0 and head.split()[0] == 'block' and empty == '' and 'branch: ' in means and 'share: ' in shares
    assert [row.split()[0] for row in rows] == ['stem', *(f'stages.{i}.{j}' for i in range(3) for j in range(3))]
    assert last.startswith('nf_resnet20_cifar: the variance ')


def test_several_networks_share_a_table_a_picture_and_the_files(run: Run, tmp_path: Path) -> None:
    names = ['skipinit_resnet20_cifar', 'eunnet20_cifar']
    sizes = ['--awake', '--depths', '2,1,1', '--img-size', 16]
    files = ['-o', tmp_path / 'a.svg', '--csv', tmp_path / 'a.csv', '--json', '--log']
    found = json.loads(run(*names, *sizes, *files)[1])
    assert list(found) == names and all(len(found[name]['blocks']) == 5 for name in names)
    assert found[names[0]]['blocks'][0]['branch_variance'] is None
    rows = list(csv.DictReader((tmp_path / 'a.csv').read_text().splitlines()))
    assert [row['network'] for row in rows] == [name for name in names for _ in range(5)]
    assert float(rows[6]['variance']) == found[names[1]]['blocks'][1]['variance']
    picture = (tmp_path / 'a.svg').read_text()
    assert all(name in picture for name in names) and len(picture) < 100_000
    run(*names, *sizes, *files)
    assert (tmp_path / 'a.svg').read_text() == picture  # the same bytes again


def test_the_seed_decides_weights_and_noise(run: Run) -> None:
    torch.manual_seed(5)
    first = run('eunnet20_cifar', '--seed', 1)
    torch.manual_seed(6)
    assert first == run('eunnet20_cifar', '--seed', 1) != run('eunnet20_cifar', '--seed', 2)


def test_branches_that_start_at_zero_are_named_and_can_be_woken(run: Run) -> None:
    asleep, awake = run('skipinit_resnet20_cifar')[1], run('skipinit_resnet20_cifar', '--awake')[1]
    assert 'every branch is 0' in asleep and '--awake' in asleep
    assert 'every branch is 0' not in awake


def test_pretrained_weights_and_the_images_of_a_folder(run: Run, tmp_path: Path) -> None:
    for i in range(3):
        Image.new('RGB', (40, 32), (i * 80, 200, 10)).save(tmp_path / f'{i}.png')
    code, out, _ = run('eunnet20_cifar.cifar10', '--pretrained', '--images', tmp_path, '--batch-size', 2)
    assert code == 0 and 'explode' not in out
    assert out != run('eunnet20_cifar.cifar10', '--pretrained')[1]


def test_a_network_of_timm(run: Run, tmp_path: Path) -> None:
    code, out, _ = run('resnet18', '--img-size', 32, '-o', tmp_path / 'a.png')
    assert code == 0 and 'layer4.1' in out
    with Image.open(tmp_path / 'a.png') as picture:
        assert picture.size[0] > 500


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        ([], 'give the names of networks'),
        (['resnet18', '--figure', 'brock1'], 'give the names of networks'),
        (['--figure', 'brock3'], 'there are brock1, brock2'),
        (['--figure', 'brock1', '--awake'], '--awake is for networks'),
        (['eunnet20_cifar', '--full'], '--full is for --figure'),
        (['eunet20_cifar'], "did you mean 'eunnet20_cifar'"),
        (['eunnet20_cifar', '-o', 'a.jpg'], '.png or .svg'),
        (['eunnet20_cifar', '--depths', '2,0'], 'whole number above 0'),
        (['eunnet20_cifar', '--depths', '2,2'], 'give 3 positive integers'),
        (['eunnet20_cifar', '--model-kwargs', 'norm'], 'KEY=VALUE'),
        (['eunnet20_cifar', '--model-kwargs', 'nrm=l2'], "unexpected keyword argument 'nrm'"),
        (['eunnet20_cifar', '--blocks', 'stages.0.7'], "no module 'stages.0.7'"),
        (['eunnet20_cifar', '--images', 'no-such-folder'], "no folder 'no-such-folder'"),
    ],
)
def test_a_mistake_is_one_line(run: Run, argv: list[str], words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*argv)
    assert code == 2 and out == '' and err.count('\n') == 1 and words in err
    assert list(tmp_path.iterdir()) == []
