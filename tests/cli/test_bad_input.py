"""Every subcommand, given what it can't use: one line on standard error, nothing on standard output, no traceback."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from nf_zoo.cli import main as cli
from nf_zoo.errors import nearest

MODEL = 'nf_resnet20_cifar'
TAGGED = 'eunnet20_cifar.cifar10'

# {missing} and so on are paths; see `paths`.
BAD = (
    """
list nosuch
list [
list --nope
list a b
info
info eunet50
info eunnet20
info hf-hub:someone/something
info local-dir:{missing}
info eunnet20_cifar.nowhere
info {missing}
info {folder}
info {text}
info ''
info ../../etc/passwd
info \x1b[31mred
info LONG
recipes nosuch
recipes a b
train
train {missing}
train {empty}
train {text}
train {folder}
train {pipe}
train {yaml}
train cifar10/eunet20_cifar
train {yaml} --nope
evaluate
evaluate eunet50
evaluate {missing}
evaluate {folder}
evaluate {text}
evaluate {pipe}
evaluate TAGGED --dataset nosuch
evaluate TAGGED --dataset torch/nosuch
evaluate TAGGED --device nosuch
evaluate TAGGED --device cuda:99
evaluate TAGGED --device meta
evaluate TAGGED --batch-size 0
evaluate TAGGED --batch-size x
evaluate TAGGED --data-dir {missing}
evaluate TAGGED --data-dir {text}
evaluate TAGGED --data-dir {folder}
evaluate TAGGED --dataset folder --data-dir {folder}
evaluate TAGGED --onnx {missing}
evaluate TAGGED --onnx {text}
evaluate TAGGED --onnx {folder}
evaluate TAGGED --onnx {pipe}
evaluate TAGGED --confusion -
evaluate TAGGED --confusion matrix.jpg
compare
compare {missing}
compare {folder} -o curves.svg
compare {folder}
compare {text}
compare {pipe}
compare {folder} -o -
predict
predict TAGGED
predict eunet50 {image}
predict {folder} {image}
predict {text} {image}
predict local-dir:{folder} {image}
predict TAGGED {missing}
predict TAGGED {empty}
predict TAGGED {text}
predict TAGGED {folder}
predict TAGGED {pipe}
predict TAGGED {cut}
predict TAGGED /dev/null
predict TAGGED {image} --top 0
predict TAGGED {image} --top 1.5
publish
publish {missing} --to {new}
publish {folder} --to {new}
publish {text} --to {new}
publish {pipe} --to {new}
publish {folder}
publish TAGGED --to {text}
publish TAGGED --to {new} --name ../x.y
publish eunet50 --to {new}
fetch
fetch eunet50
fetch eunnet20_cifar.nowhere
fetch ../x.y
fetch eunnet20_cifar.x --hub {missing}
fetch eunnet20_cifar.x --hub {text}
fetch eunnet20_cifar.x --hub {pipe}
verify
verify eunet50
verify eunnet20_cifar --all
verify eunnet20_cifar.nowhere
verify eunnet20_cifar.x --hub {folder}
verify --all --hub {missing}
verify --all --hub {text}
hub
hub index
hub index {missing}
hub index {text}
hub index {pipe}
hub indx {folder}
hub index {folder} --csv -
export
export --check
export eunnet20_cifar
export eunnet20_cifar --random -o -
export eunnet20_cifar --random -o ''
export eunnet20_cifar --random -o {folder}
export eunnet20_cifar --random -o {text}/a.onnx
export eunnet20_cifar --random -o {new} --check
export eunet50 --random -o {new}
export {missing} -o {new}
export {folder} -o {new}
export {text} -o {new}
export eunnet20_cifar.nowhere -o {new}
export eunnet20_cifar --random -o {new} --tolerance nan
export eunnet20_cifar --random -o {new} --tolerance inf
export eunnet20_cifar --random -o {new} --tolerance x
export eunnet20_cifar --random -o {new} --input-size 3 0 8
export eunnet20_cifar --random -o {new} --input-size 3 8
export eunnet20_cifar --random -o {new} --input-size 1 8 8
export eunnet20_cifar --random -o {new} --dtype int8
export eunnet20_cifar --random -o {new} --dtype int4
export eunnet20_cifar --random -o {new} --dtype int8 --calibration {missing}
export eunnet20_cifar --random -o {new} --dtype int8 --calibration {folder}
export eunnet20_cifar --random -o {new} --images {missing}
export eunnet20_cifar --random -o {new} --images {text}
export eunnet20_cifar --random -o {new} --images {bad_images}
export eunnet20_cifar --random -o {new} --format nosuch
export nosuch* --all --check
export eunnet20_cifar --random -o model.foo
export eunnet20_cifar --random -o model
signal
signal eunet50
signal {missing}
signal {text}
signal {folder}
signal eunnet20_cifar.nowhere --pretrained
signal vit_tiny_patch16_224 --img-size 32
signal eunnet20_cifar --seed 99999999999999999999
signal eunnet20_cifar --model-kwargs pretrained=True
signal eunnet20_cifar --model-kwargs checkpoint_path={pipe}
signal eunnet20_cifar -o a.png --csv a.png
convert
convert bn_resnet20_cifar.cifar10
convert eunet50 -o {new}
convert eunnet20_cifar.cifar10 -o {new}
convert {missing} -o {new}
convert {folder} -o {new}
convert {text} -o {new}
convert bn_resnet20_cifar.nowhere -o {new}
convert bn_resnet20_cifar.cifar10 -o {new} --to nosuch
convert bn_resnet20_cifar.cifar10 -o {new} --to eunnet
convert bn_resnet20_cifar.cifar10 -o {new} --to eunnet --images {missing}
convert bn_resnet20_cifar.cifar10 -o {new} --to eunnet --images {folder}
convert bn_resnet20_cifar.cifar10 -o {new} --steps 2
convert bn_resnet20_cifar.cifar10 -o {new} --images {folder}
convert bn_resnet20_cifar.cifar10 -o {text}
convert bn_resnet20_cifar -o {new} --weights {missing}
convert bn_resnet20_cifar -o {new} --weights {text}
convert bn_resnet20_cifar -o {new} --weights {folder}
convert bn_resnet20_cifar -o {new} --weights {pipe}
bench nosuch
bench engine epoch
nosuch
exprt
--nope
""".replace('TAGGED', TAGGED)
    .replace('LONG', 5000 * 'x')
    .strip()
    .splitlines()
)


@pytest.fixture(scope='module')
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a user may give in a file's place. 'new' is a path at which nothing may appear."""
    folder = tmp_path_factory.mktemp('paths')
    names = ('missing', 'empty', 'text', 'folder', 'pipe', 'yaml', 'image', 'cut', 'bad_images')
    found = {name: folder / name for name in names} | {'new': folder / 'new.onnx'}
    found['empty'].write_bytes(b'')
    found['text'].write_text('{[hello\nworld')
    found['yaml'].write_text('model: eunnet20_cifar\nepochs: [\n')
    found['folder'].mkdir()
    os.mkfifo(found['pipe'])
    found['image'] = folder / 'image.png'
    Image.new('RGB', (40, 40), 'red').save(found['image'])
    found['cut'].write_bytes(found['image'].read_bytes()[:60])
    found['bad_images'].mkdir()
    (found['bad_images'] / 'a.png').write_text('no image')
    return found


def test_no_command_is_forgotten() -> None:
    assert {line.split()[0] for line in BAD} >= set(cli.COMMANDS)


@pytest.mark.timeout(60)
@pytest.mark.parametrize('line', BAD)
def test_bad_input_is_one_line(
    line: str,
    paths: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [arg.format(**paths) if '{' in arg else arg for arg in shlex.split(line)]
    code = cli.main(argv)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ''), err
    assert err.startswith('nf-zoo: error: ') and err.endswith('\n') and err.count('\n') == 1, err
    assert err[:-1].isprintable() and len(err) < 1600
    assert not caplog.records  # outside of pytest they are lines on standard error too
    assert not paths['new'].exists() and not list(tmp_path.iterdir())


def test_an_unknown_option_gets_the_nearest_one_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    for line, hint in {
        'publish a --to b --trace': "; did you mean '--replace'?",  # export has --trace
        'export a --img-size 32': "; did you mean '--input-size'?",
        'list --pretraned': "; did you mean '--pretrained'?",
    }.items():
        assert cli.main(line.split()) == 2
        said = capsys.readouterr().err
        assert said.endswith(f'{hint} (`nf-zoo {line.split()[0]} --help` shows the usage)\n'), said


@pytest.mark.parametrize('bench', ['memory', 'training'])
def test_a_size_that_a_network_cannot_take_is_one_line(bench: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(['bench', bench, 'eunnet20_cifar', *'--img-size 1 --batch-size 1 --rounds 1'.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith('nf-zoo: error: eunnet20_cifar cannot be measured') and said.count('\n') == 1, said


@pytest.mark.parametrize(
    ('command', 'library'),
    [(['-m', 'nf_zoo', 'list'], 'timm'), (['-m', 'nf_zoo.demo'], 'torch'), (['nf-zoo', 'list'], 'torch')],
)
def test_ctrl_c_during_the_imports_is_one_line(command: list[str], library: str, tmp_path: Path) -> None:
    """A library that is interrupted while it is imported, and that hides the interrupt as numpy does."""
    (tmp_path / f'{library}.py').write_text(
        'import os, signal, time\n'
        'try:\n'
        f'    os.kill(os.getpid(), {int(signal.SIGINT)})\n'
        '    time.sleep(30)\n'
        'except KeyboardInterrupt:\n'
        '    raise ImportError\n'
    )
    (tmp_path / 'nf-zoo').write_text('import sys\nfrom nf_zoo.cli.main import main\nsys.exit(main())\n')
    root = Path(cli.__file__).parents[2]
    env = os.environ | {'PYTHONPATH': f'{tmp_path}{os.pathsep}{root}'}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, '', 'nf-zoo: interrupted\n')


@pytest.mark.parametrize(
    ('given', 'candidates', 'found'),
    [
        ('eunnet20', ['eunnet50', 'eunnet20_cifar', 'eunnet200_cifar'], 'eunnet20_cifar'),
        ('--learning-rate', ['--lr', '--decay-rate', '--log-interval'], '--lr'),
        ('--weight-decy', ['--weight-decay', '--wd'], '--weight-decay'),
        ('--batch_size', ['--batch-size', '--bs'], '--batch-size'),
        ('exprt', ['export', 'list'], 'export'),
        ('zzz', ['export', 'list'], ''),
        ('', ['export', 'list'], ''),
        ('-', ['--export', '--list'], ''),
    ],
)
def test_the_nearest_name(given: str, candidates: list[str], found: str) -> None:
    assert nearest(given, candidates) == (f"; did you mean '{found}'?" if found else '')
