"""Exports with real images, smaller types, varying sizes, other formats, and all names at once."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import nf_zoo
from nf_zoo.cli import main as cli
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.export import (
    export_aoti,
    export_onnx,
    export_pt2,
    export_torchscript,
    formats,
    int8,
    norms,
    onnx_file,
    survey,
)
from nf_zoo.inference.images import preprocessing
from nf_zoo.train.data.pictures import read_image

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

SIZE = (3, 8, 8)


def build(name: str = 'nf_resnet20_cifar', **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **{'depths': (1, 1, 1), **kwargs}).eval()
    survey.randomize(model)
    return model


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures in three folders, 'a' to 'c'."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / 'pictures' / 'abc'[i % 3] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10 + i, 12, 3), dtype=np.uint8)).save(path)
    return tmp_path / 'pictures'


def abc(name: str = 'nf_resnet20_cifar') -> nn.Module:
    cfg = dict(label_names=('b', 'a', 'c'), input_size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return build(name, num_classes=3, pretrained_cfg_overlay=cfg)


def test_accuracy_is_that_of_the_pictures(pictures: Path, tmp_path: Path) -> None:
    model, path = abc(), tmp_path / 'model.onnx'
    report = export_onnx(model, path, images=pictures)
    transform, mode = preprocessing(model)
    right = 0
    for file in pictures.rglob('*.png'):
        x = transform(read_image(file, mode))[None]
        right += 'bac'[model(x).argmax()] == file.parent.name
        np.testing.assert_allclose(session(path).run(None, {'input': x.numpy()})[0], model(x).detach(), atol=1e-4)
    assert report.top1 == (pytest.approx(100 * right / 12), pytest.approx(100 * right / 12), 12)
    assert report.images == 8
    (pictures / 'c').rename(pictures / 'other')
    assert export_torchscript(model, tmp_path / 'model.pt', images=pictures / 'other').top1 is None


@pytest.mark.parametrize('name', ['nf_resnet20_cifar', 'eunnet20_cifar'])
def test_int8(name: str, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'model.onnx'
    report = export_onnx(abc(name), path, dtype='int8', calibration=pictures, tolerance=0.5)
    assert capfd.readouterr() == ('', '')
    assert report.top1 is not None and report.top1[2] == 12
    proto = onnx.load(path)
    weights = {t.name: t for t in proto.graph.initializer}
    made_by = {node.output[0]: node for node in proto.graph.node}
    convs = [node for node in proto.graph.node if node.op_type == 'Conv']
    assert len(convs) == 9
    for conv in convs:
        assert made_by[conv.input[0]].op_type == 'DequantizeLinear'
        weight, scale = (weights[n] for n in made_by[conv.input[1]].input[:2])
        assert weight.data_type == onnx.TensorProto.INT8
        assert list(scale.dims) == [weight.dims[0]]
    assert json.loads(session(path).get_modelmeta().custom_metadata_map['class_names']) == ['b', 'a', 'c']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model.onnx', 'pictures']


@pytest.mark.parametrize(('name', 'maximum'), [('fixup_resnet20_cifar', 'Clip'), ('rescalenet20_cifar', 'Max')])
def test_biases_before_padding(name: str, maximum: str, tmp_path: Path) -> None:
    """ReLU has taken them up in floating point. For 8 bits it gives them back, and each form computes the same."""
    model = build(name, depths=(2, 2, 1)).double()
    folded, x = nf_zoo.fold(model), torch.randn(2, *SIZE, dtype=torch.float64)
    text, of_8_bits = repr(folded), int8.padded(folded)
    for form in (folded, of_8_bits):
        torch.testing.assert_close(form(x), model(x), rtol=1e-10, atol=1e-10)
    kinds = [Counter(type(m).__name__ for m in form.stages.modules()) for form in (folded, of_8_bits)]
    assert [kind['ShiftedReLU'] for kind in kinds] == [5, 0]  # before the second convolution of each block
    assert (kinds[1]['ConstantPad2d'], kinds[1]['Shift']) == ((10, 0) if maximum == 'Clip' else (0, 10))
    assert repr(folded) == text
    assert export_onnx(model.float(), tmp_path / 'model.onnx', input_size=SIZE).ops[maximum] == 5


def test_float16_stores_half_the_bytes(tmp_path: Path) -> None:
    model = build()
    whole = export_onnx(model, tmp_path / 'whole.onnx', input_size=SIZE)
    half = export_onnx(model, tmp_path / 'half.onnx', input_size=SIZE, dtype='float16')
    assert half.bytes < 0.6 * whole.bytes and whole.max_abs_diff < half.max_abs_diff < 1e-2
    assert half.ops['Cast'] == half.ops['Conv'] + half.ops['Gemm']
    assert {t.type for t in session(tmp_path / 'half.onnx').get_inputs()} == {'tensor(float)'}
    conv = nn.Conv2d(3, 3, 1).eval()
    nn.init.constant_(conv.weight, 1e5)
    with pytest.raises(UserError, match="above float16's largest, 65504"):
        export_onnx(conv, tmp_path / 'half.onnx', input_size=SIZE, fold=False, dtype='float16')


@pytest.mark.parametrize('name', ['nf_resnet20_cifar', 'eunnet20_cifar'])
def test_any_height_and_width(name: str, tmp_path: Path) -> None:
    model = build(name, depths=(1, 1, 1))
    export_onnx(model, tmp_path / 'model.onnx', input_size=SIZE, dynamic_size=True)
    export_pt2(model, tmp_path / 'model.pt2', input_size=SIZE, dynamic_size=True)
    loaded = torch.export.load(tmp_path / 'model.pt2').module()
    x = torch.randn(3, 3, 17, 12)
    expected = model(x).detach()
    np.testing.assert_allclose(session(tmp_path / 'model.onnx').run(None, {'input': x.numpy()})[0], expected, atol=1e-4)
    torch.testing.assert_close(loaded(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(('side', 'defer', 'attn'), [(7, True, None), (8, True, 'se'), (8, False, None)])
def test_the_normalisation_in_means_is_exact(side: int, defer: bool, attn: str | None) -> None:
    """With strided, padded, widening and narrowing convolutions; a blank image is no division by 0."""
    folded = nf_zoo.fold(build('eunnet50', depths=(2, 2, 1, 1), attn_layer=attn)).double()
    network = norms.in_means(folded, defer)
    kinds = Counter(type(m) for m in network.modules())
    assert kinds[norms._DeferredConv] == (11 if defer else 0) and kinds[norms._Norm] == (11 if defer else 22)
    assert not any(type(m).__module__ == norms.__name__ for m in folded.modules())
    x = torch.randn(3, 3, 8 * side, 64).double()
    x[2] = 0.5
    torch.testing.assert_close(network(x), folded(x), atol=1e-9, rtol=1e-9)
    twice, x = nn.Sequential(folded.stages[1][1], folded.stages[1][1]), torch.randn(2, 512, 5, 5).double()
    assert norms.in_means(twice) is twice  # not known to be folded
    twice.is_folded = True  # type: ignore[assignment]
    torch.testing.assert_close(norms.in_means(twice, defer)(x), twice(x), atol=1e-9, rtol=1e-9)
    plain = nf_zoo.fold(build())
    assert norms.in_means(plain) is plain


def test_means_over_any_axes(tmp_path: Path) -> None:
    """Height and width as a pooling, which takes no matrices."""

    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x - x.mean((1, 2, 3), keepdim=True) + x.mean((1, 2, 3))[:, None, None, None] + x.mean(1, keepdim=True)
            z = y.mean((2, 3)) + y.mean((2, 3), keepdim=True).flatten(1)
            return z - z.mean(1, keepdim=True)

    report = export_onnx(Means().eval(), tmp_path / 'model.onnx', input_size=SIZE, fold=False)
    assert report.ops['GlobalAveragePool'] == 2 and report.ops['ReduceMean'] == 4  # equal nodes become one


def test_traced_torchscript_and_pt2(tmp_path: Path) -> None:
    model = build()
    traced = export_torchscript(model, tmp_path / 'model.pt', input_size=SIZE, trace=True)
    assert traced.ops['aten::_convolution'] == 9
    program = export_pt2(model, tmp_path / 'model.pt2', input_size=SIZE)
    assert program.ops['aten.conv2d.default'] == 9 and program.bytes == (tmp_path / 'model.pt2').stat().st_size
    facts = {'nf_zoo.json': ''}
    x = torch.randn(4, *SIZE)
    loaded = torch.export.load(tmp_path / 'model.pt2', extra_files=facts).module()
    for run in (loaded, torch.jit.load(tmp_path / 'model.pt')):
        torch.testing.assert_close(run(x), model(x), atol=1e-4, rtol=1e-4)
    assert json.loads(facts['nf_zoo.json'])['input_size'] == list(SIZE)


@pytest.mark.kit  # it compiles C++
@pytest.mark.timeout(600)
def test_aoti(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    path = tmp_path / 'model.pt2'
    try:
        report = export_aoti(net, path, input_size=SIZE, fold=False)
    except UserError as error:
        pytest.skip(str(error))
    loaded = torch._inductor.aoti_load_package(str(path))
    x = torch.randn(3, *SIZE)
    torch.testing.assert_close(loaded(x), net(x), atol=1e-5, rtol=1e-5)
    assert json.loads(loaded.get_metadata()['nf_zoo.json'])['input_size'] == list(SIZE)
    assert report.nodes == 2 and list(tmp_path.iterdir()) == [path]
    model = build('eunnet20_cifar', depths=(1, 1, 1))
    report = export_aoti(model, path, input_size=SIZE)
    assert report.ops['aten.mean.dim'] > 0 and not any('group_norm' in op for op in report.ops)
    x = torch.randn(3, *SIZE)
    torch.testing.assert_close(torch._inductor.aoti_load_package(str(path))(x), model(x), atol=1e-4, rtol=1e-4)


def test_aoti_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, 'get_cpp_compiler', missing)
    with pytest.raises(UserError, match='needs a C.. compiler: install g'):
        export_aoti(build(), tmp_path / 'model.pt2', input_size=SIZE)
    assert not list(tmp_path.iterdir())


def test_the_manifest_of_published_weights(tmp_path: Path) -> None:
    model = timm.create_model('eunnet20_cifar.cifar10', pretrained=True).eval()
    manifest = Path(nf_zoo.__file__).parent / 'hub' / 'bundled' / 'eunnet20_cifar.cifar10' / 'manifest.json'

    def facts() -> dict[str, Any]:
        extra = {'nf_zoo.json': ''}
        export_torchscript(model, tmp_path / 'model.pt', input_size=SIZE)
        torch.jit.load(tmp_path / 'model.pt', _extra_files=extra)
        return json.loads(extra['nf_zoo.json'])

    found = facts()
    assert found['manifest_sha256'] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert found['weights_sha256'] == json.loads(manifest.read_text())['sha256']
    assert found['class_names'][0] == 'airplane' and found['num_classes'] == 10
    with torch.no_grad():
        model.head.fc.bias[0] += 1  # other weights, though of the same name
    assert 'manifest_sha256' not in facts()


def test_one_channel_has_one_mean(tmp_path: Path) -> None:
    export_onnx(build(in_chans=1), tmp_path / 'model.onnx', dynamic_batch=False)
    facts = session(tmp_path / 'model.onnx').get_modelmeta().custom_metadata_map
    assert json.loads(facts['input_size']) == [1, 32, 32] and len(json.loads(facts['mean'])) == 1


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(dtype='int4'), "dtype='int4': use one of float32, float16, int8; did you mean 'int8'"),
        (dict(dtype='int8'), 'int8 needs one'),
        (dict(calibration='pictures'), 'goes with int8'),
        (dict(images='pictures/a/0.png'), 'no folder'),
        (dict(images='empty'), 'no images in'),
    ],
)
def test_bad_input_is_one_line(
    kwargs: dict[str, Any], message: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    Path('empty').mkdir()
    with pytest.raises(UserError, match=message) as error:
        export_onnx(build(), 'model.onnx', **kwargs)
    assert '\n' not in str(error.value) and not Path('model.onnx').exists()


# ---- the command


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ('eunnet20_cifar', '-o FILE to write, or --check'),
        ('eunnet20_cifar --check -o a.onnx', '-o FILE to write, or --check'),
        ('--check', 'give the NAME of a model, or --all'),
        ('eunnet20_cifar --check', "'eunnet20_cifar' names no weights: give --pretrained .* or --random"),
        ('eunnet20_cifar --check --random --pretrained', 'exclude one another'),
        ('eunnet* --all -o folder', 'give --pretrained, or --random'),
        ('dm_nf_resnet50 --check --pretrained', 'no weights of dm_nf_resnet50'),
        (
            'eunnet20_cifar --random -o a.pt --dtype float16',
            '--dtype is an option of the format onnx, not of',
        ),
        ('eunnet20_cifar --random -o a.onnx --trace', '--trace is an option of the format torchscript, not of onnx'),
        ('eunnet20_cifar --random -o a.pt --fixed-batch', '--fixed-batch is no option'),
        ('eunet* --all --check', "no model matches 'eunet.'; did you mean 'eunnet"),
        ('eunnet20_cifar -o a --format onxx', 'invalid choice'),
    ],
)
def test_wrong_options(
    argv: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(['export', *argv.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith('nf-zoo: error: ') and err.count('\n') == 1 and not list(tmp_path.iterdir())
    assert re.search(message, err)


def test_the_options_are_those_of_the_exporters() -> None:
    from nf_zoo.cli import export as command

    assert command.FORMATS == tuple(formats.SUFFIXES) and command.DTYPES == tuple(onnx_file.TOLERANCES)


def test_the_suffix_says_the_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ['export', 'nf_resnet20_cifar', '--random', '--input-size', '3', '8', '8']
    assert cli.main([*argv, '-o', str(tmp_path / 'a.pt')]) == 0
    assert 'aten::conv2d 21' in capsys.readouterr().out
    assert cli.main([*argv, '-o', str(tmp_path / 'a.pt2'), '--json']) == 0
    assert json.loads(capsys.readouterr().out)['ops']['aten.conv2d.default'] == 21
    assert cli.main([*argv, '--check', '--format', 'torchscript']) == 0
    out = capsys.readouterr().out
    assert 'on noise' in out and out.endswith('weights: random\n')
    assert cli.main(['export', 'nf_resnet20_cifar.cifar10', *argv[3:], '--check', '--format', 'torchscript']) == 0
    assert re.search(r'weights: .*nf_resnet20_cifar.cifar10\n$', capsys.readouterr().out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.pt', 'a.pt2']


def test_all_names_in_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ['export', '*_resnet20_cifar', '--all', '--check', '--format', 'torchscript']
    names = nf_zoo.list_models('*_resnet20_cifar')
    assert cli.main(argv) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ['name', 'input', 'nodes', 'diff'] and [row.split()[0] for row in rows] == names
    assert all(0 <= float(row.split()[3]) < 1e-4 and 'aten::conv2d:' in row for row in rows)

    def load(name: str, *args: Any) -> nn.Module:
        model = build(name)
        if name.startswith('fixup'):
            nn.init.constant_(model.head.fc.bias, float('nan'))
        return model

    monkeypatch.setattr(survey, 'load_model', load)
    assert cli.main([*argv, '--json']) == 1
    out, err = capsys.readouterr()
    found = {row['name']: row['error'] for row in map(json.loads, out.splitlines())}
    assert list(found) == names and [name for name, error in found.items() if error] == ['fixup_resnet20_cifar']
    assert 'nan' in found['fixup_resnet20_cifar']
    assert f'1 of {len(names)} failed: fixup_resnet20_cifar' in err


def test_randomize_leaves_no_scalar_as_it_was() -> None:
    model = timm.create_model('skipinit_resnet20_cifar', depths=(1, 1, 1))
    before = {k: p.clone() for k, p in model.named_parameters()}
    survey.randomize(model)
    same = {k for k, p in model.named_parameters() if torch.equal(p, before[k])}
    assert same == {k for k in before if k.endswith('conv.weight') or re.search(r'conv\d.weight', k)}


def test_a_wrong_int8_is_a_failed_check(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match='nothing written'):
        export_onnx(abc(), tmp_path / 'a.onnx', dtype='int8', calibration=pictures, tolerance=1e-9)
    assert not (tmp_path / 'a.onnx').exists()
