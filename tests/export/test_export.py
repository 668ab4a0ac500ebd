"""Exported files: the original's answers, plain graphs, nothing written when something is wrong."""

import json
import sys
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from nf_zoo import export, fold
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.export import case, export_onnx, export_pt2, export_torchscript, onnx_file, programs

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

SIZE = (3, 8, 8)
METHODS = ('eunnet20_cifar', 'nf_resnet20_cifar')
every = pytest.mark.parametrize('write', [export_onnx, export_torchscript, export_pt2, programs.export_aoti])


@pytest.fixture(autouse=True)
def _no_warning_reaches_the_user() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def build(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **{'depths': (2, 1, 1), **kwargs}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(('gain', 'bias')):
                parameter.normal_()
    return model


def run(path: Path, x: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return session.run(None, {'input': x.numpy()})


@pytest.mark.parametrize('name', METHODS)
def test_onnx_gives_the_original_answers(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, path = build(name), tmp_path / 'new' / 'model.onnx'
    report = export_onnx(model, path, input_size=SIZE)
    assert list(path.parent.iterdir()) == [path] and report.bytes == path.stat().st_size
    x = torch.randn(3, *SIZE)
    expected = model(x)
    np.testing.assert_allclose(run(path, x)[0], expected.detach(), atol=1e-4)
    assert 0 < report.max_rel_diff <= report.max_abs_diff < 1e-4
    assert report.batch_sizes == (2, 1, 5) and report.input_size == SIZE

    proto = onnx.load(path)
    ops = Counter(node.op_type for node in proto.graph.node)
    assert report.ops == ops and report.nodes == len(proto.graph.node)
    plain = {'Conv', 'Relu', 'Add', 'GlobalAveragePool', 'Reshape', 'Gemm'}
    norm = {'Mul', 'ReduceMean', 'Sub', 'Pow', 'Sqrt', 'Concat', 'Expand'}
    plain_only, convs = name.startswith('nf'), 1 + 4 * 2 + 2
    assert set(ops) == (plain if plain_only else plain | norm)
    assert ops['Conv'] == (convs if plain_only else convs + 4) and (ops['Add'] == 4 or not plain_only)
    assert str(Path.home()) not in str(proto) and str(Path(export.__file__).parent) not in str(proto)
    out, err = capfd.readouterr()
    assert out == err == ''


def test_the_metadata_prepare_an_image(tmp_path: Path) -> None:
    labels = tuple(f'class {i}' for i in range(10))
    cfg = dict(label_names=labels, tag='mine')
    model = build('nf_resnet20_cifar', depths=(1, 1, 1), pretrained_cfg_overlay=cfg)
    path = tmp_path / 'model.onnx'
    export_onnx(model, path, input_size=SIZE, dynamic_batch=False)
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    facts = session.get_modelmeta().custom_metadata_map
    assert facts['model'] == 'nf_resnet20_cifar' and facts['tag'] == 'mine'
    assert json.loads(facts['class_names']) == list(labels)
    assert json.loads(facts['input_size']) == list(SIZE)
    assert json.loads(facts['mean']) == list(model.pretrained_cfg['mean'])
    assert json.loads(facts['std']) == list(model.pretrained_cfg['std'])
    assert facts['interpolation'] == 'bicubic' and json.loads(facts['crop_pct']) == 1.0
    assert len(facts['weights_sha256']) == 64
    assert session.get_inputs()[0].shape == [1, *SIZE]


def test_onnx_without_folding(tmp_path: Path) -> None:
    model, size = build('nf_resnet20_cifar', depths=(1, 1, 1), in_chans=1), (1, 9, 7)
    before = export_onnx(model, tmp_path / 'before.onnx', input_size=size, fold=False)
    assert before.ops['BatchNormalization'] > 0 and before.ops['Mul'] > 0


def test_onnx_of_features(tmp_path: Path) -> None:
    model, path = build('eunnet20_cifar', depths=(1, 1, 1), features_only=True), tmp_path / 'features.onnx'
    export_onnx(model, path, input_size=SIZE)
    x = torch.randn(2, *SIZE)
    for y, expected in zip(run(path, x), model(x), strict=True):
        np.testing.assert_allclose(y, expected.detach(), atol=1e-4)


def test_the_graph_of_nf_resnet50(tmp_path: Path) -> None:
    model = build('nf_resnet50', depths=(3, 4, 6, 3), width=0.5)
    path, optimised = tmp_path / 'model.onnx', tmp_path / 'optimised.onnx'
    report = export_onnx(model, path, input_size=(3, 65, 65))  # every pooling meets an odd size
    assert report.nodes <= 125
    assert {k: report.ops[k] for k in ('Conv', 'Relu', 'Add', 'MaxPool', 'AveragePool', 'Gemm')} == {
        'Conv': 53, 'Relu': 49, 'Add': 16, 'MaxPool': 1, 'AveragePool': 3, 'Gemm': 1
    }  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    assert len(onnx.load(optimised).graph.node) <= 75


@pytest.mark.parametrize('name', METHODS)
def test_torchscript_gives_the_original_answers(name: str, tmp_path: Path) -> None:
    model, path = build(name), tmp_path / 'model.pt'
    report = export_torchscript(model, path, input_size=SIZE)
    assert report.bytes == path.stat().st_size and report.max_abs_diff < 1e-4
    assert report.ops['aten::conv2d'] == 1 + 4 * 2 + 2 and report.nodes == sum(report.ops.values())
    x = torch.randn(3, 3, 9, 12)  # any size
    extra = {'nf_zoo.json': ''}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        loaded = torch.jit.load(path, _extra_files=extra)
        torch.testing.assert_close(loaded(x), model(x), atol=1e-4, rtol=1e-4)
    assert json.loads(extra['nf_zoo.json'])['model'] == name


def test_a_wrong_answer_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: nn.Module) -> nn.Module:
        folded = fold(model)
        folded.head.fc.bias.data[0] += 1e-2
        return folded

    monkeypatch.setattr(case, 'fold_model', wrong)
    model, path = build('nf_resnet20_cifar', depths=(1, 1, 1)), tmp_path / 'model'
    path.write_text('old')
    for write in (export_onnx, export_torchscript, export_pt2):
        with pytest.raises(CheckFailed, match=r'nothing written .* differs from PyTorch by 1\.0e-02'):
            write(model, path, input_size=SIZE)
        assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    assert export_torchscript(model, path, input_size=SIZE, tolerance=0.1).max_abs_diff > 1e-3


def test_not_a_number_is_not_written(tmp_path: Path) -> None:
    model = build('nf_resnet20_cifar')
    model.head.fc.bias.data[0] = float('nan')
    with pytest.raises(CheckFailed, match='nan'):
        export_torchscript(model, tmp_path / 'model.pt', input_size=SIZE)
    assert not list(tmp_path.iterdir())


def on_meta() -> nn.Module:
    return timm.create_model('nf_resnet20_cifar', device='meta').eval()


@every
@pytest.mark.parametrize(
    ('make', 'kwargs', 'message'),
    [
        (partial(build, 'eunnet20_cifar'), dict(input_size=(1, 8, 8)), r'takes 3 channels, so give \(3, 8, 8\)'),
        (partial(build, 'eunnet20_cifar'), dict(input_size=(3, 8)), 'give channels, height and width'),
        (partial(build, 'eunnet20_cifar'), dict(input_size=8), 'give channels, height and width'),
        (partial(build, 'eunnet20_cifar'), dict(input_size=(3, 0, 8)), 'give channels, height and width'),
        (partial(build, 'eunnet20_cifar'), dict(path='.'), 'is a folder'),
        (partial(build, 'eunnet20_cifar'), dict(path='file/model'), 'file is not a folder'),
        (lambda: build('eunnet20_cifar').double(), {}, 'only float32'),
        (on_meta, {}, "device 'meta'"),
        (lambda: build('eunnet20_cifar').train(), {}, r'training mode; call model\.eval'),
        (lambda: nn.Conv2d(3, 3, 1).eval(), dict(fold=False), 'no pretrained_cfg'),
        (lambda: nn.Conv2d(4, 3, 1).eval(), dict(fold=False, input_size=SIZE), "can't take 3x8x8 images"),
        (lambda: nn.Conv2d(3, 3, 1).eval(), {}, 'nothing to fold'),
        (partial(build, 'eunnet20_cifar'), dict(images='nowhere'), "no folder 'nowhere' of images"),
        (
            partial(build, 'eunnet20_cifar', in_chans=4),
            dict(images='.', input_size=(4, 8, 8)),
            'image files give 3 or 1',
        ),
        (lambda: 'eunnet20_cifar', {}, 'give the PyTorch model itself'),
    ],
)
def test_bad_input_is_one_line(write: Any, make: Any, kwargs: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    kwargs = {'path': 'model', **kwargs}
    with pytest.raises(UserError, match=message) as error:
        write(make(), tmp_path / kwargs.pop('path'), **kwargs)
    assert '\n' not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('name', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs {name}, which is not installed: pip install 'nf-zoo\[export\]'"):
        export_onnx(build('nf_resnet20_cifar'), tmp_path / 'model.onnx')


def test_a_file_above_the_limit_of_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, 'ONNX_LIMIT', 1000)
    with pytest.raises(UserError, match='the format ends at 1,000'):
        export_onnx(nn.Conv2d(3, 30, 3).eval(), tmp_path / 'model.onnx', input_size=SIZE, fold=False)
    assert not list(tmp_path.iterdir())
