"""Every example runs at a small size and prints its table; what it measures is right; bad input is one line."""

import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch import nn

import nf_zoo

EXAMPLES = Path(__file__).resolve().parents[2] / 'examples'
NAMES = ['detection', 'federated', 'maml', 'online', 'segmentation']  # private needs an extra, and has its own test


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As when a program of examples/ runs: its folder comes first. Its modules go again."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield
    for path in EXAMPLES.glob('*.py'):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


def example(name: str) -> ModuleType:
    if name == 'private':
        pytest.importorskip('opacus', reason="private training needs Opacus: pip install 'nf-zoo[private]'")
    return importlib.import_module(name)


@pytest.mark.parametrize('name', NAMES)
def test_it_prints_its_table(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example(name)
    path = tmp_path / 'table.csv'
    rows = module.main(['--quick', '--output', str(path)])
    with open(path, newline='') as file:
        assert list(csv.DictReader(file)) == rows
    printed = capsys.readouterr().out
    for row in rows:
        assert '| ' + ' | '.join(row.values()) + ' |' in printed
        percent = [value for value in row.values() if value.endswith(' %')][0]
        assert 0 <= float(percent.removesuffix(' %')) <= 100
    assert [row['network'] for row in rows] == list(module.ARMS)


def test_every_example_is_here() -> None:
    shared = {'common', 'batches', 'side_by_side'}
    assert {path.stem for path in EXAMPLES.glob('*.py')} == {*NAMES, *shared, 'private', 'small_batches', 'batch_size'}


@pytest.mark.parametrize('name', [*NAMES, 'private', 'small_batches', 'batch_size'])
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example(name)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', '--help'])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 0
    assert module.__doc__.splitlines()[0].split()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    'name, argv, said',
    [
        ('private', ['--models', 'bn_resnet20_cifar.cifar10'], 'mixes the images of a batch'),
        ('private', ['--models', 'eunnet20_cifar.cifar1'], "did you mean 'eunnet20_cifar.cifar10'"),
        ('private', ['--epsilon', '0'], 'above 0'),
        ('online', ['--output', 'table.txt'], "doesn't end with .csv or .md"),
        ('online', ['--quik'], "did you mean '--quick'"),
        ('batch_size', ['--output', 'runs.csv'], '--data-dir DIR'),
        ('batch_size', ['--output', 'runs.csv', '--table'], 'runs.csv has no results yet'),
    ],
)
def test_bad_input(
    name: str, argv: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, common = example(name), importlib.import_module('common')
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *argv])
    with pytest.raises(SystemExit) as stopped:
        common.start(module.main)
    found = capsys.readouterr()
    assert stopped.value.code == 2 and found.out == ''
    assert said in found.err and found.err.count('\n') == 1


def test_batch_sizes_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every network takes every rate with one seed and the best one with three; a run that is there isn't repeated."""
    batch_size = example('batch_size')
    names = {'nf_resnet20_cifar': 'NF-ResNet', 'bn_resnet20_cifar': 'BN'}
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(20, 3, 32, 32, generator=draw), torch.arange(20) % 10
    ladder = (0.003, 0.01, 0.03)
    for name, value in dict(NAMES=names, ARMS=tuple(names), EPOCHS=1, LADDER=ladder, RATES={8: ladder}).items():
        monkeypatch.setattr(batch_size, name, value)
    monkeypatch.setattr(batch_size, 'images_of', lambda *args: (images, labels))
    path, picture = tmp_path / 'runs.csv', tmp_path / 'runs.svg'
    options = ['--data-dir', str(tmp_path), '--output', str(path), '--batch-sizes', '8']
    batch_size.main(options)
    first = path.read_text()
    rows = list(csv.DictReader(first.splitlines()))
    for name in names:
        own = [row for row in rows if row['form'] == name]
        assert [(row['lr'], row['seed']) for row in own[:3]] == [('0.003', '0'), ('0.01', '0'), ('0.03', '0')]
        best = max(own[:3], key=lambda row: float(row['top1']))['lr']
        assert [(row['lr'], row['seed']) for row in own[3:]] == [(best, '1'), (best, '2')]
    repeated = batch_size.run((images, labels, images, labels), False, 'bn_resnet20_cifar', 8, [(0.003, 0)])
    assert f'{repeated[0]:.2f}' == next(row for row in rows if row['form'] == 'bn_resnet20_cifar')['top1']
    capsys.readouterr()
    batch_size.main(options)
    assert path.read_text() == first
    batch_size.main(['--output', str(path), '--table', '--picture', str(picture)])
    assert capsys.readouterr().out.count('| 8 |') == len(names)
    assert 'images a step' in picture.read_text()


@pytest.mark.parametrize('name', ['eunnet20_cifar', 'nf_resnet20_cifar', 'bn_resnet20_cifar', 'gn_resnet20_cifar'])
def test_a_network_learns_side_by_side_what_it_learns_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_size, side_by_side = example('batch_size'), example('side_by_side')
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name: create(name, depths=(1, 1, 1)).double())
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32, generator=draw).double(), torch.arange(8)
    padded, runs = batch_size.padded_form(images), [(0.01, 0), (0.003, 1)]
    places, cut = batch_size.places, batch_size.cut
    networks = side_by_side.SideBySide(name, 2, runs, side_by_side.Images(padded, labels), 1, places, cut)
    networks.train('')
    for number, (lr, seed) in enumerate(runs):
        torch.manual_seed(seed)
        model = timm.create_model(name).train()

        def loss(index: torch.Tensor, model: nn.Module = model) -> torch.Tensor:
            return nn.functional.cross_entropy(model(batch_size.flipped_and_shifted(padded, index)), labels[index])

        example('common').fit(model, loss, 8, 2, 1, lr, '')
        for key, value in (networks.parameters | networks.buffers).items():
            torch.testing.assert_close(value[number], model.state_dict()[key], rtol=1e-4, atol=1e-6)
        accuracy = example('common').top1(model, images, labels)
        assert networks.top1(images, labels)[number] == pytest.approx(accuracy)


def test_the_next_rate_is_tried_while_the_last_one_is_the_best() -> None:
    batch_size = example('batch_size')

    def rows(**top1: float) -> list[dict[str, str]]:
        return [{'lr': lr.replace('_', '.'), 'seed': '0', 'top1': str(value)} for lr, value in top1.items()]

    start = list(batch_size.RATES[32])
    assert start == [0.01, 0.03, 0.1, 0.3]
    assert batch_size.rates(32, rows(**{'0_01': 9})) == start
    inside = {'0_01': 1, '0_03': 3, '0_1': 2, '0_3': 1}
    assert batch_size.rates(32, rows(**inside)) == start
    rising = {'0_01': 1, '0_03': 2, '0_1': 3, '0_3': 4}
    assert batch_size.rates(32, rows(**rising)) == [*start, 1.0]
    assert sorted(batch_size.rates(32, rows(**{'0_01': 4, '0_03': 3, '0_1': 2, '0_3': 1}))) == [0.003, *start]
    assert batch_size.rates(32, rows(**rising, **{'1_0': 1})) == [*start, 1.0]
    assert batch_size.rates(32, rows(**rising, **{'1_0': 5})) == [*start, 1.0]


def test_a_shifted_image_is_a_part_of_its_padded_form() -> None:
    batch_size = example('batch_size')
    image = torch.arange(1.0, 49).view(1, 3, 4, 4)
    padded = nn.functional.pad(image, [batch_size.SHIFT] * 4)
    cut = batch_size.flipped_and_shifted(padded.permute(0, 2, 3, 1), torch.zeros(300, dtype=torch.long))
    assert cut.shape == (300, 3, 4, 4)
    places = range(2 * batch_size.SHIFT + 1)
    possible = [padded[0, :, y : y + 4, x : x + 4] for y in places for x in places]
    possible += [part.flip(2) for part in possible]
    distinct = {tuple(part.flatten().tolist()) for part in possible}
    found = {tuple(part.flatten().tolist()) for part in cut}
    assert found <= distinct and len(found) > 60, 'flips and shifts are drawn for each image'


def test_a_stream_is_the_same_again() -> None:
    online = example('online')
    assert online.main(['--quick']) == online.main(['--quick'])


def test_boxes_and_masks_of_scenes() -> None:
    scenes = importlib.import_module('common').scenes('validation', 20, 64, seed=3, sizes=(16, 24))
    assert any(len(labels) > 1 for labels in scenes.labels)
    for boxes, labels, mask in zip(scenes.boxes, scenes.labels, scenes.masks, strict=True):
        outside = mask.clone()
        for (x0, y0, x1, y1), label in zip(boxes.long().tolist(), labels.tolist(), strict=True):
            inside = mask[y0:y1, x0:x1] == label + 1
            assert inside.any(0)[[0, -1]].all() and inside.any(1)[[0, -1]].all(), 'the box is tight'
            outside[y0:y1, x0:x1] = 0
        assert not outside.any()


def test_average_precision_by_hand() -> None:
    """Two boxes to find. Of three found ones, by score, the first and the third are right; the third has a rival."""
    detection, common = example('detection'), importlib.import_module('common')
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    truth = common.Scenes(torch.zeros(1, 3, 40, 40), [boxes], [torch.tensor([4, 4])], torch.zeros(1, 40, 40))
    exact = {'boxes': boxes, 'labels': torch.tensor([5, 5]), 'scores': torch.tensor([0.9, 0.8])}
    assert detection.average_precision([exact], truth) == 100
    again = torch.tensor([[20.0, 20, 30, 32], [0, 0, 10, 9], [0, 0, 10, 10]])  # the second hit of a box is wrong
    found = {'boxes': again, 'labels': torch.tensor([5, 5, 5]), 'scores': torch.tensor([0.7, 0.8, 0.9])}
    assert detection.average_precision([found], truth) == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))
    other = {**exact, 'labels': torch.tensor([3, 5])}
    assert detection.average_precision([other], truth) == 50
    assert detection.average_precision([{**exact, 'labels': torch.tensor([1, 1])}], truth) == 0


def test_mean_iou_by_hand() -> None:
    segmentation, common = example('segmentation'), importlib.import_module('common')
    mask = torch.tensor([[[0, 0], [1, 1]]])
    answer = torch.tensor([[[0, 1], [1, 1]]])  # 0: 1 of 2; 1: 2 of 3
    model = nn.Module()
    model.forward = lambda x: nn.functional.one_hot(answer, 11).permute(0, 3, 1, 2).float()  # type: ignore[method-assign]
    truth = common.Scenes(torch.zeros(1, 3, 2, 2), [], [], mask)
    assert segmentation.mean_iou(model, truth) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_the_average_of_the_clients_is_the_model() -> None:
    federated = example('federated')
    models = [timm.create_model('nf_resnet20_cifar', depths=(1, 1, 1), width=0.5) for _ in range(3)]
    assert not list(models[0].buffers())
    federated.average(models[0], models[1:])
    for mean, a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(mean, (a + b) / 2)
    shares = federated.shares(torch.arange(10).repeat_interleave(6))
    assert [len(share) for share in shares] == [6] * 10
    assert torch.cat(shares).sort().values.equal(torch.arange(60)), 'each image has one owner'


def test_private_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its table has the epsilon that was asked for, and so has the manifest of the run when it is published."""
    private = example('private')
    run = tmp_path / 'run'
    options = ['--quick', '--models', 'nf_resnet20_cifar.cifar10', '--epsilon', '2', '--run', str(run)]
    rows = private.main(options)
    assert 1.9 < float(rows[0]['epsilon']) <= 2 and rows[1]['epsilon'] == 'none'
    folder = Path(nf_zoo.publish(run, tmp_path / 'hub'))
    privacy = json.loads((folder / 'manifest.json').read_text())['privacy']
    assert 1.9 < privacy['epsilon'] <= 2 and privacy['delta'] == 1e-4 and privacy['clip'] == 1 and privacy['noise'] > 0
    assert f'epsilon {privacy["epsilon"]:g} at delta 0.0001' in (folder / 'README.md').read_text()
    nf_zoo.verify(str(run), data_dir=str(tmp_path))  # nf-zoo measures the accuracy that the example wrote


@pytest.mark.parametrize('table', sorted((EXAMPLES.parent / 'results' / 'examples').glob('*.md')), ids=lambda p: p.stem)
def test_the_documentation_has_the_measured_table(table: Path) -> None:
    pages = (EXAMPLES.parent / 'docs' / 'how-to').glob('*.md')
    assert any(table.read_text() in page.read_text() for page in pages)
