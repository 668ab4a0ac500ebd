"""The command line: what each subcommand says, and one line with the right exit code for every mistake."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from forked import python
from PIL import Image
from torch import nn

import nf_zoo
from nf_zoo.analysis.catalogue import SIZES_FILE
from nf_zoo.cli import main as cli
from nf_zoo.cli.parser import print_json
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.hub.index import index

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(arg) for arg in argv])
        except SystemExit as stop:  # --help and --version
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope='module')
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub with a random eunnet20_cifar whose classes are letters."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('hub')
    metrics = {'top1': 10.0, 'top5': 50.0, 'loss': 2.3, 'n': 10000}
    model = timm.create_model('eunnet20_cifar')
    facts = {'dataset': 'letters', 'classes': list('abcdefghij'), 'metrics': metrics}
    nf_zoo.publish(model, folder, 'eunnet20_cifar.letters', **facts)
    return folder


@pytest.fixture
def hubs(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('NF_ZOO_HUB', str(hub))
    return hub


def failed(result: tuple[int, str, str], code: int = 2) -> str:
    """The one line of a failed command."""
    assert result[0] == code
    assert result[1] == ''
    assert result[2].startswith('nf-zoo: error: ')
    assert result[2].count('\n') == 1 and result[2].endswith('\n')
    return result[2]


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(run: Run, command: str) -> None:
    code, out, _ = run(command, '--help')
    _, example, options, function = cli.COMMANDS[command]
    assert code == 0
    assert 'example' in out
    if options:
        assert example in ' '.join(out.split())
        program, *argv = shlex.split(example)
        assert program == 'nf-zoo'
        assert cli.parser().parse_args(argv).function is function


def test_help_lists_every_command(run: Run) -> None:
    _, out, _ = run('--help')
    assert all(f'    {command} ' in out for command in cli.COMMANDS)
    assert run('--version')[1] == f'nf-zoo {nf_zoo.__version__}\n'
    assert 'COMMAND' in failed(run())


@pytest.mark.parametrize('wrong', ['lst', 'predit', 'exports'])
def test_a_misspelt_command(run: Run, wrong: str) -> None:
    assert 'did you mean' in failed(run(wrong))


@pytest.mark.parametrize('command', ['info', 'evaluate', 'predict', 'export', 'signal'])
def test_an_unknown_model_gets_the_nearest_name(run: Run, command: str, tmp_path: Path) -> None:
    rest = {'predict': [tmp_path / 'a.png'], 'export': ['-o', tmp_path / 'a.onnx']}.get(command, [])
    for name, meant in (
        ('eunet20_cifar', 'eunnet20_cifar'),
        ('eunnet20', 'eunnet20_cifar'),
        ('nf_resnet20', 'nf_resnet200'),
    ):
        assert f"did you mean '{meant}" in failed(run(command, name, *rest))


@pytest.mark.parametrize(
    ('error', 'code'),
    [
        (UserError('bad\ninput'), 2),
        (CheckFailed('a check'), 1),
        (OSError(28, 'No space left on device', 'a.onnx'), 2),
        (MemoryError(), 2),
        (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB.\nMore words'), 2),
    ],
)
def test_failures_become_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    def fail(args: object) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, 'list', (*cli.COMMANDS['list'][:3], fail))
    line = failed(run('list'), code)
    assert 'Errno' not in line


def test_too_little_memory_is_one_line(run: Run) -> None:
    assert 'too little memory' in failed(run('signal', 'eunnet20_cifar', '--img-size', '9999999'))


def test_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, 'list', (*cli.COMMANDS['list'][:3], interrupt))
    code, _, err = run('list')
    assert (code, err) == (130, 'nf-zoo: interrupted\n')


def test_a_closed_pipe_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, '-m', 'nf_zoo', 'list'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == ''
    assert process.wait() == 0


def test_list(run: Run) -> None:
    names = nf_zoo.list_models()
    assert run('list', '--names')[1].split() == names
    assert run('list', 'eunnet', '--names')[1].split() == [name for name in names if 'eunnet' in name]
    assert run('list', 'eunnet*_cifar', '--names')[1].split() == nf_zoo.list_models('eunnet*_cifar')
    assert "did you mean 'eunnet50'" in failed(run('list', 'eunet50'))


def test_list_is_a_table(run: Run) -> None:
    head, *lines = run('list')[1].splitlines()
    assert [line.split()[0] for line in lines] == nf_zoo.list_models()
    left = head.index('paper')
    sizes = json.loads(SIZES_FILE.read_bytes())
    for line in lines:
        model, params, macs, *_ = line.split()
        assert dict(params=int(params.replace(',', '')), macs=int(macs.replace(',', ''))) == sizes[model]
        assert re.match(r'\w.* 20\d\d\b', line[left:]), 'authors and year'
    row = next(line for line in lines if line.startswith('eunnet20_cifar '))
    assert '3 x 32 x 32' in row and 'Nguyen et al. 2023' in row
    assert f'cifar10 {index()["eunnet20_cifar.cifar10"]["top1"]:.2f} %' in row
    found = json.loads(run('list', '--json')[1])
    assert [entry['name'] for entry in found] == nf_zoo.list_models()


def test_list_pretrained_has_timms_tags_and_ours(run: Run) -> None:
    found = run('list', '--pretrained', '--names')[1].split()
    assert {'nf_resnet50.ra2_in1k', 'eunnet20_cifar.cifar10'} <= set(found)
    assert all(timm.is_model_pretrained(name) for name in found)
    assert {name.partition('.')[0] for name in found} <= set(nf_zoo.list_models())
    for pattern in ('eunnet*', 'nf_resnet50'):
        _, *lines = run('list', pattern, '--pretrained')[1].splitlines()
        names = nf_zoo.list_models(pattern if '*' in pattern else f'*{pattern}*')
        assert [line.split()[0] for line in lines] == [name for name in found if name.partition('.')[0] in names]


def test_list_pretrained_has_the_size_of_the_weights_and_the_hubs_tags(run: Run, hubs: Path) -> None:
    """The weights of eunnet50 have ten classes and 128 pixels, where the layout has 1000 and 224."""
    rows = {row['name']: row for row in json.loads(run('list', 'eunnet', '--pretrained', '--json')[1])}
    model = timm.create_model('eunnet50.imagenette', device='meta')
    assert rows['eunnet50.imagenette']['params'] == sum(p.numel() for p in model.parameters()) == 23_501_978
    assert rows['eunnet50.imagenette']['input'] == [3, 128, 128]
    assert rows['eunnet50.imagenette']['macs'] == 1_334_595_584
    assert rows['eunnet20_cifar.letters']['weights'] == {'letters': 10.0}
    (row,) = json.loads(run('list', 'eunnet20_cifar', '--json')[1])
    assert list(row['weights']) == ['letters', 'cifar10']


def test_every_command_takes_a_hubs_tag_and_its_folder(run: Run, hubs: Path, tmp_path: Path) -> None:
    Image.new('RGB', (50, 40)).save(tmp_path / 'a.png')
    for name in ('eunnet20_cifar.letters', hubs / 'eunnet20_cifar.letters'):
        facts = json.loads(run('info', name, '--json')[1])
        assert facts['weights']['letters']['dataset'] == 'letters'
        (found,) = json.loads(run('signal', name, '--pretrained', '--json')[1]).values()
        assert len(found['blocks']) == 10  # and the stem
        (row,) = json.loads(run('predict', name, tmp_path / 'a.png', '--json')[1])
        assert row['classes'][0]['name'] in 'abcdefghij'
        code, out, _ = run('export', name, '--check', '--format', 'torchscript', '--json')
        assert code == 0 and json.loads(out)['weights'].endswith('eunnet20_cifar.letters')
        assert 'letters' in failed(run('evaluate', name))


def test_timms_spelling_of_options() -> None:
    args = cli.parser().parse_args(['evaluate', 'a_b', '--batch_size=4', '--data_dir', 'a_b', '--per_class'])
    assert (args.name, args.batch_size, args.data_dir, args.per_class) == ('a_b', 4, 'a_b', True)


def test_json_is_json_whatever_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({'a': [1.5, float('nan')], 'b': (float('inf'), {'c': -float('inf')})})
    assert json.loads(capsys.readouterr().out) == {'a': [1.5, None], 'b': [None, {'c': None}]}


def multiply_adds(model: nn.Module, size: list[int]) -> int:
    """Counted independently: the outputs of every convolution and linear layer, times the inputs of each."""
    counts = []

    def count(layer: nn.Module, args: object, out: torch.Tensor) -> None:
        counts.append(out[0].numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    model(torch.zeros(1, *size))
    return sum(counts)


@pytest.mark.parametrize('name', ['eunnet20_cifar', 'nf_resnet26', 'nf_resnet20_cifar'])
def test_info_is_measured(run: Run, name: str) -> None:
    facts = json.loads(run('info', name, '--json')[1])
    model = timm.create_model(name)
    assert facts['parameters'] == sum(p.numel() for p in model.parameters())
    assert facts['MACs'] == multiply_adds(model, facts['input'])
    assert facts['input'] == list(model.pretrained_cfg['input_size'])
    text = run('info', name)[1]
    assert f'{facts["parameters"]:,}' in text and facts['paper'] in text


def test_info_shows_timms_weights(run: Run) -> None:
    assert json.loads(run('info', 'nf_resnet50', '--json')[1])['weights'] == {
        'ra2_in1k': {'at': 'hf://timm/nf_resnet50.ra2_in1k'}
    }


def test_predict(run: Run, hubs: Path, tmp_path: Path) -> None:
    for name, colour in (('a.png', 'red'), ('longer.jpg', 'blue')):
        Image.new('RGB', (50, 40), colour).save(tmp_path / name)
    images = [tmp_path / 'a.png', tmp_path / 'longer.jpg']
    _, out, _ = run('predict', 'eunnet20_cifar.letters', *images, '--top', 3)
    lines = out.splitlines()
    assert len(lines) == 6
    assert len({line.index('%') for line in lines}) == 1
    code, out, _ = run('predict', 'eunnet20_cifar.letters', *images, '--top', 10, '--json')
    found = json.loads(out)
    assert [row['image'] for row in found] == [str(image) for image in images]
    for row in found:
        assert sorted(entry['name'] for entry in row['classes']) == list('abcdefghij')
        assert sum(entry['probability'] for entry in row['classes']) == pytest.approx(1)
    assert lines[0].split()[1] == found[0]['classes'][0]['name']
    code, out, err = run('predict', 'eunnet20_cifar.letters', images[0], tmp_path / 'b.png', images[1])
    assert code == 2 and len(out.splitlines()) == 10
    assert 'b.png' in err and err.count('\n') == 1
    code, out, _ = run('predict', 'eunnet20_cifar.letters', tmp_path)
    assert code == 0 and [line.split()[0] for line in out.splitlines()[::5]] == [str(image) for image in images]


def test_info_fetch_and_verify(run: Run, hubs: Path) -> None:
    code, out, _ = run('fetch', 'eunnet20_cifar.letters', '--hub', hubs)
    folder = Path(out.strip())
    assert code == 0 and (folder / 'model.safetensors').is_file()
    code, out, _ = run('verify', 'eunnet20_cifar.letters')
    sha256 = json.loads((folder / 'manifest.json').read_text())['sha256']
    assert code == 0 and sha256 in out


def test_a_flipped_byte(run: Run, hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'hub' / 'eunnet20_cifar.letters'
    folder.mkdir(parents=True)
    for file in (hub / folder.name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(data)
    for command in ('fetch', 'verify'):
        failed(run(command, folder.name, '--hub', tmp_path / 'hub'), 1)


def test_publishing_nothing_leaves_nothing(run: Run, tmp_path: Path) -> None:
    assert 'nowhere' in failed(
        run('publish', tmp_path / 'nowhere', '--to', tmp_path / 'hub', '--name', 'eunnet20_cifar.x')
    )
    assert not (tmp_path / 'hub').exists()


def test_evaluate_needs_a_known_data_set(run: Run, hubs: Path) -> None:
    assert 'letters' in failed(run('evaluate', 'eunnet20_cifar.letters'))
    assert '--data-dir' in failed(run('evaluate', 'eunnet20_cifar.letters', '--dataset', 'cifar10'))


def test_evaluate(run: Run, hubs: Path, tmp_path: Path) -> None:
    pytest.importorskip('sklearn')
    assert 'digits has other classes than the model' in failed(
        run('evaluate', 'eunnet20_cifar.letters', '--dataset', 'digits')
    )
    numbers = [str(number) for number in range(10)]
    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1])
    folder = nf_zoo.publish(model, tmp_path, 'eunnet20_cifar.digits', dataset='digits', classes=numbers)
    code, out, _ = run('evaluate', folder, '--json')
    found = json.loads(out)
    assert code == 0 and found['n'] == 360
    _, out, _ = run('evaluate', folder)
    assert f'{found["top1"]:.2f} %' in out and f'of {found["n"]}' in out


def shallow(name: str, hub: Path) -> str:
    """The folder of random weights for ``name`` with a block a stage, published in ``hub``: soon exported."""
    model = timm.create_model(name, depths=[1, 1, 1])
    return nf_zoo.publish(model, hub, f'{name}.shallow', dataset='letters', classes=list('abcdefghij'))


@pytest.mark.parametrize(
    ('name', 'options'),
    [('eunnet20_cifar', []), ('nf_resnet20_cifar', ['--no-fold', '--fixed-batch', '--input-size', 3, 40, 48])],
)
def test_export(run: Run, tmp_path: Path, name: str, options: list[object]) -> None:
    onnx = pytest.importorskip('onnx')
    code, out, err = run('export', shallow(name, tmp_path / 'hub'), '-o', tmp_path / 'a.onnx', *options)
    assert code == 0, err
    graph = onnx.load(tmp_path / 'a.onnx').graph
    assert f'{len(graph.node)} nodes' in out
    assert 'Conv' in out and 'largest difference' in out
    sizes = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ([1, 3, 40, 48] if options else [0, 3, 32, 32])


def test_export_above_the_tolerance_is_a_failed_check(run: Run, tmp_path: Path) -> None:
    pytest.importorskip('onnxruntime')
    folder = shallow('nf_resnet20_cifar', tmp_path / 'hub')
    code, _, err = run('export', folder, '-o', tmp_path / 'a.onnx', '--tolerance', '1e-12')
    assert code == 1
    assert err.startswith('nf-zoo: error: ') and 'tolerance' in err
    assert [path.name for path in tmp_path.iterdir()] == ['hub']


def test_python_m_nf_zoo_is_the_command() -> None:
    done = python('-m', 'nf_zoo', 'list', 'eunet', env={**os.environ, 'PYTHONWARNINGS': 'error'}, check=False)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('nf-zoo: error: ') and done.stderr.count('\n') == 1
