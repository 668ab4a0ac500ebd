"""`nf-zoo evaluate`: per class it adds up to the whole, and other forms of a network must agree with it."""

import json
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_toys import run_toy, toys  # noqa: F401

import nf_zoo
from nf_zoo.cli.main import main
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.inference.scoring import EvaluateReport, OnnxFile, Score, _tolerance, draw_confusion, load, score
from nf_zoo.train import evaluate

pytestmark = pytest.mark.usefixtures('toys')


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        from train_toys import toy_set

        from nf_zoo.train.data import memory as data

        patch.setitem(data._LOADERS, 'toys', toy_set)
        folder = tmp_path_factory.mktemp('run')
        run_toy(folder, model='nf_resnet20_cifar', lr=0.02)
    return folder


@given(data=st.data(), n=st.integers(1, 30), classes=st.integers(2, 8))
def test_the_confusion_of_a_score_holds_every_image_once(data: st.DataObject, n: int, classes: int) -> None:
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)))
    found = Score(torch.zeros(classes, classes, dtype=torch.int64), names=[str(i) for i in range(classes)])
    for part, some in zip(logits.split(7), labels.split(7), strict=True):
        found.add(part, some)
    metrics = found.metrics()
    assert metrics['n'] == n
    assert metrics['top1'] == pytest.approx(100 * float((logits.argmax(1) == labels).double().mean()))
    assert metrics['loss'] == pytest.approx(float(torch.nn.functional.cross_entropy(logits.double(), labels)))
    confidence, answers = logits.double().softmax(1).max(1)
    error = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            accuracy = (answers == labels)[inside].double().mean()
            error += inside.double().mean().item() * abs(confidence[inside].mean() - accuracy).item()
    assert metrics['ece'] == pytest.approx(100 * error)
    rows = found.by_class()
    assert [row['n'] for row in rows] == labels.bincount(minlength=classes).tolist()
    assert sum(row['n'] * (row['top1'] or 0) for row in rows) == pytest.approx(n * metrics['top1'])
    assert metrics['top5'] >= metrics['top1'] - 1e-9


def test_a_run_is_evaluated_as_it_was_when_it_ended(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((run / 'result.json').read_text())
    assert main(['evaluate', str(run), '--json', '--folded']) == 0
    found = json.loads(capsys.readouterr().out)
    for key in ('top1', 'top5', 'n'):
        assert found[key] == result['metrics'][key]
    assert found['loss'] == pytest.approx(result['metrics']['loss'], rel=1e-5)
    assert [row['class'] for row in found['classes']] == ['red', 'green', 'blue']
    assert found['forms']['folded']['top1'] == found['top1'] and found['forms']['folded']['difference'] < 1e-4


def test_the_table_the_picture_and_the_onnx_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, dataset, recipe = load(str(run))
    assert dataset == recipe['dataset'] == 'toys'
    nf_zoo.export_onnx(model, tmp_path / 'net.onnx', input_size=(3, 16, 16))
    picture = tmp_path / 'confusion.png'
    options = ['--per-class', '--confusion', str(picture), '--onnx', str(tmp_path / 'net.onnx')]
    assert main(['evaluate', str(run), *options]) == 0
    out = capsys.readouterr().out
    assert 'net.onnx: top-1' in out and '0 other predictions' in out and '\ngreen ' in out
    assert 'of the largest, at most 0.001 is allowed' in out
    assert picture.read_bytes().startswith(b'\x89PNG')


def test_an_onnx_file_may_be_as_far_off_as_its_export_allows(run: Path, tmp_path: Path) -> None:
    model = load(str(run))[0]
    for dtype, tolerance in (('float32', 1e-3), ('float16', 1e-2)):
        nf_zoo.export_onnx(model, tmp_path / dtype, input_size=(3, 16, 16), dtype=dtype)
        assert OnnxFile(tmp_path / dtype).tolerance == tolerance
        assert main(['evaluate', str(run), '--onnx', str(tmp_path / dtype)]) == 0


def test_an_onnx_file_for_one_image_at_a_time_is_fed_one_by_one(run: Path, tmp_path: Path) -> None:
    model, *_ = load(str(run))
    nf_zoo.export_onnx(model, tmp_path / 'one.onnx', input_size=(3, 16, 16), dynamic_batch=False)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(OnnxFile(tmp_path / 'one.onnx')(x), model(x).detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match=r'takes images of \[3, 16, 16\]'):
        OnnxFile(tmp_path / 'one.onnx')(torch.randn(1, 3, 32, 32))


def test_the_confusion_matrix_says_what_it_shows(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both axes are named, the title has data set and accuracy, and a name with dollar signs is no formula."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    found = Score(torch.tensor([[3, 1], [0, 4]]), names=['$a', 'b$\x1b[31m'])
    draw_confusion(tmp_path / 'c.png', EvaluateReport('net', 'toys', found, {}))
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('prediction', 'true class')
    assert axes.get_title() == 'net on toys\ntop-1 87.50 % of 8 images'
    assert [label.get_text() for label in axes.get_xticklabels()] == [r'\$a', r'b\$?[31m']


def test_an_onnx_file_cannot_declare_that_anything_agrees() -> None:
    assert [_tolerance({'tolerance': value}) for value in ('0.25', '1e9', 'inf', 'nan', '-1', 'x')] == [
        0.25, 1.0, 1.0, 0.0, 0.0, 0.0
    ]  # fmt: skip
    assert _tolerance({}) == 0.0


def test_nan_is_no_accuracy(run: Path) -> None:
    model, *_ = load(str(run))
    torch.nn.init.constant_(model.get_classifier().bias, float('nan'))
    with pytest.raises(CheckFailed, match='gives NaN or infinity'):
        score(model, [(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))], ['a', 'b', 'c'], {})
    digits = timm.create_model('eunnet20_cifar', depths=(1, 1, 1))
    torch.nn.init.constant_(digits.head.fc.bias, float('nan'))
    with pytest.raises(CheckFailed, match='gives NaN or infinity on digits'):
        evaluate(digits, 'digits')
    with pytest.raises(UserError, match='no images'):
        score(model, [], ['a', 'b', 'c'], {})


def test_a_run_knows_where_its_data_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on folders of pictures, and evaluated without a word about them."""
    from PIL import Image

    from nf_zoo.train import Recipe, train

    for split in ('train', 'validation'):
        for colour in ('red', 'blue'):
            folder = tmp_path / 'data' / split / colour
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new('RGB', (16, 16), colour).save(folder / f'{i}.png')
    options = dict(
        model='nf_resnet20_cifar', model_kwargs={'depths': [1, 1, 1]}, dataset='folder',
        data_dir=str(tmp_path / 'data'),
        img_size=16, batch_size=2, epochs=1, warmup_epochs=0, workers=0, output=str(tmp_path / 'run'), device='cpu',
    )  # fmt: skip
    train(Recipe().with_options(options), log=lambda line: None)
    assert main(['evaluate', str(tmp_path / 'run')]) == 0
    assert 'of 4)' in capsys.readouterr().out
    assert main(['predict', str(tmp_path / 'run'), str(tmp_path / 'data' / 'validation'), '--top', '1']) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    for command in (['info'], ['signal'], ['export', '--check', '--format', 'torchscript']):
        assert main([*command, str(tmp_path / 'run')]) == 0
    assert 'weights: ' + str(tmp_path / 'run') in capsys.readouterr().out


def test_a_form_that_differs_is_a_failed_check(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, *_ = load(str(run))
    batches = [(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(
        CheckFailed, match=r'other differs from the model by .* of the largest logit .* of 4 predictions'
    ):
        score(model, batches, ['a', 'b', 'c'], {'other': lambda x: model(x) * 1.01})
    with pytest.raises(CheckFailed, match='differs from the model by nan'):
        score(model, batches, ['a', 'b', 'c'], {'other': lambda x: model(x) * float('nan')})
    other = timm.create_model('nf_resnet20_cifar', depths=[1, 1, 1], num_classes=3).eval()
    nf_zoo.export_onnx(other, tmp_path / 'other.onnx', input_size=(3, 16, 16))
    assert main(['evaluate', str(run), '--onnx', str(tmp_path / 'other.onnx')]) == 1
    assert 'other.onnx differs from the model' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--onnx', 'nothing.onnx'], 'nothing.onnx: no such file'),
        (['--onnx', __file__], 'is no ONNX file that runs'),
        (['--dataset', 'toy'], "unknown data set 'toy'"),
        (['--dataset', 'digits'], 'digits has other classes than the model'),
    ],
)
def test_bad_input_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(['evaluate', str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


def test_an_unfinished_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['evaluate', str(tmp_path)]) == 2
    assert 'is not a finished run' in capsys.readouterr().err


def test_grey_images_get_the_channels_of_the_model(tmp_path: Path) -> None:
    from train_toys import fashion

    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1])
    folder = fashion(tmp_path)
    assert evaluate(model, 'fashion_mnist', folder)['n'] == 6
    model.reset_classifier(11)
    with pytest.raises(UserError, match='fashion_mnist has 10 classes, the model has 11'):
        evaluate(model, 'fashion_mnist', folder)
