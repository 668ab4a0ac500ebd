"""The deployment kits of export/ give PyTorch's answers, from nothing but the exported file and the images."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import nf_zoo
from nf_zoo.bench.kits import KITS, served
from nf_zoo.inference.images import preprocessing
from nf_zoo.inference.loading import class_names
from nf_zoo.inference.predict import predict

pytestmark = [pytest.mark.kit, pytest.mark.timeout(300)]

# Pillow 13 resizes tall pictures' height first, and the kits with it.
TALL = [(37, 100), (37, 500)] if int(PIL.__version__.partition('.')[0]) >= 13 else []
TOLERANCE = 1e-4  # of probabilities
MODELS = ('eunnet20_cifar.cifar10', 'nf_resnet20_cifar.cifar10', 'digits', 'photos', 'grey')

Answer = list[tuple[str, float]]
Files = Callable[[str, str], Path]


def digits_model() -> torch.nn.Module:
    """The bundled network with a new head, fitted on 500 of the digits."""
    model = timm.create_model(
        'nf_resnet20_cifar.cifar10',
        pretrained=True,
        pretrained_cfg_overlay={'label_names': [f'digit {i}' for i in range(10)]},
    ).eval()
    transform, mode = preprocessing(model)
    digits = load_digits()
    x = torch.stack([transform(scan(image).convert(mode)) for image in digits.images[:500]])
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        fit = LogisticRegression(max_iter=1000).fit(features.numpy(), digits.target[:500])
        head = model.get_classifier()
        head.weight.copy_(torch.from_numpy(fit.coef_))
        head.bias.copy_(torch.from_numpy(fit.intercept_))
    return model


def random_model(name: str, num_classes: int, **kwargs: Any) -> torch.nn.Module:
    """Weights that tell images apart, so that a pixel prepared otherwise shows."""
    model = timm.create_model(name, num_classes=num_classes, **kwargs).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    return model


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == 'digits':
        return digits_model()
    if name == 'photos':  # a crop of a larger picture, bilinear; fewer classes than five, without names
        cfg = dict(input_size=(3, 64, 64), crop_pct=0.9, interpolation='bilinear')
        return random_model('nf_resnet26', 4, pretrained_cfg_overlay=cfg)
    if name == 'grey':
        cfg = dict(input_size=(1, 24, 40), crop_pct=0.8, mean=(0.5,), std=(0.25,))
        return random_model('nf_resnet20_cifar', 6, in_chans=1, pretrained_cfg_overlay=cfg)
    return timm.create_model(name, pretrained=True).eval()


def scan(image: np.ndarray) -> Image.Image:
    return Image.fromarray((image * 255 / 16).astype(np.uint8))


@pytest.fixture(scope='session')
def models() -> Callable[[str], torch.nn.Module]:
    cache: dict[str, torch.nn.Module] = {}

    def get(name: str) -> torch.nn.Module:
        if name not in cache:
            cache[name] = build(name)
        return cache[name]

    return get


@pytest.fixture(scope='session')
def files(models: Callable[[str], torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The exported file of a model, written when it is first asked for."""
    folder = tmp_path_factory.mktemp('models')

    def get(name: str, extension: str) -> Path:
        path = folder / f'{name}.{extension}'
        if not path.exists():
            (nf_zoo.export_onnx if extension == 'onnx' else nf_zoo.export_torchscript)(models(name), path)
        return path

    return get


@pytest.fixture(scope='session')
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Digits, enlarged digits, and smooth and rough pictures of awkward sizes and modes, as PNG files."""
    folder = tmp_path_factory.mktemp('images')
    scans = load_digits().images[-20:]
    pictures = {f'digit{i:02}': scan(image) for i, image in enumerate(scans)}
    pictures['enlarged'] = scan(scans[0]).resize((230, 310))
    rng = np.random.default_rng(0)
    for width, height in [(1, 1), (3, 2), (32, 32), (33, 31), (31, 70), (64, 64), (640, 427), (50, 37), *TALL]:
        rough = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        smooth = Image.fromarray(rough[:4, :5]).resize((width, height), Image.Resampling.BICUBIC)
        pictures |= {f'rough{width}x{height}': Image.fromarray(rough), f'smooth{width}x{height}': smooth}
    picture = pictures['smooth640x427']
    pictures |= {'palette': picture.quantize(), 'grey': picture.convert('L')}
    for name, one in pictures.items():
        one.save(folder / f'{name}.png')
    return sorted(folder.iterdir())


@pytest.fixture(scope='session')
def cifar_images(cifar_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The first images of CIFAR-10's test batch, as PNG files."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path_factory.mktemp('cifar')
    data = CIFAR10(str(cifar_dir), train=False).data[:32]
    for i, image in enumerate(data):
        Image.fromarray(image).save(folder / f'{i:02}.png')
    return sorted(folder.iterdir())


def answers(command: list[Any], images: list[Path]) -> list[Answer]:
    """What a kit's program prints for each image: its path, and below it a probability and a name a line."""
    run = subprocess.run([*map(str, command), *map(str, images)], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    rows: list[Answer] = []
    for line in run.stdout.splitlines():
        if found := re.fullmatch(r'  ([01]\.\d{6})  (.+)', line):
            rows[-1].append((found[2], float(found[1])))
        else:
            assert line == str(images[len(rows)])
            rows.append([])
    return rows


def agree(model: torch.nn.Module, images: list[Path], rows: list[Answer], tolerance: float = TOLERANCE) -> None:
    """The five most probable classes and their probabilities are PyTorch's (two of one probability in any order)."""
    top = min(5, len(class_names(model)))
    assert len(rows) == len(images)
    for path, found, expected in zip(images, rows, predict(model, images, top=10**6), strict=True):
        assert len(found) == len({name for name, _ in found}) == top, path
        for (name, probability), (_, at_this_rank) in zip(found, expected[:top], strict=True):
            assert abs(probability - at_this_rank) <= tolerance, (path, found, expected)
            assert abs(probability - dict(expected)[name]) <= tolerance, (path, found, expected)


@pytest.fixture(scope='session')
def python_kit() -> tuple[list[Any], str]:
    # As where PyTorch isn't installed.
    code = (
        "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], {}, '__main__')"
    )
    return [sys.executable, '-c', code, KITS / 'python' / 'classify.py'], 'onnx'


@pytest.fixture(scope='session')
def node_kit() -> tuple[list[Any], str]:
    if not shutil.which('node') or not (KITS / 'node' / 'node_modules').is_dir():
        pytest.skip("Node or the kit's packages are missing: make kit-test installs them")
    return ['node', KITS / 'node' / 'classify.js'], 'onnx'


@pytest.fixture(scope='session')
def cpp_kit(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str]:
    if not all(map(shutil.which, ('cmake', 'g++'))) or not Path('/usr/include/stb/stb_image.h').exists():
        pytest.skip('CMake, g++ or stb_image.h are missing: make kit-test installs them')
    folder = tmp_path_factory.mktemp('build')
    for command in (
        ['cmake', '-S', KITS / 'cpp', '-B', folder, f'-DPython3_EXECUTABLE={sys.executable}'],
        ['cmake', '--build', folder],
    ):
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert run.returncode == 0, run.stdout
    return [folder / 'classify'], 'pt'


@pytest.fixture(params=['python', 'node', 'cpp'])
def kit(request: pytest.FixtureRequest) -> tuple[list[Any], str]:
    """A kit's command, and the kind of file that it reads."""
    return request.getfixturevalue(f'{request.param}_kit')


@pytest.mark.parametrize('name', MODELS)
def test_answers_are_those_of_pytorch(kit: Any, name: str, models: Any, files: Files, images: list[Path]) -> None:
    command, extension = kit
    rows = answers([*command, files(name, extension)], images)
    agree(models(name), images, rows)
    if name == 'digits':
        right = sum(row[0][0] == f'digit {label}' for row, label in zip(rows, load_digits().target[-20:], strict=False))
        assert right > 10


def test_answers_on_cifar10(kit: Any, models: Any, files: Files, cifar_images: list[Path]) -> None:
    command, extension = kit
    name = 'eunnet20_cifar.cifar10'
    agree(models(name), cifar_images, answers([*command, files(name, extension)], cifar_images))


def test_what_is_transparent_is_white(kit: Any, models: Any, files: Files, tmp_path: Path) -> None:
    command, extension = kit
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 4), dtype=np.uint8)
    pixels[..., 3] = np.arange(256)
    path = tmp_path / 'clear.png'
    Image.fromarray(pixels).save(path)
    agree(models('photos'), [path], answers([*command, files('photos', extension)], [path]))


def photograph(folder: Path) -> Path:
    """A JPEG file that its EXIF data say lies on its side."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC).save(folder / 'photograph.jpg', exif=exif)
    return folder / 'photograph.jpg'


@pytest.mark.parametrize('kit', ['python', 'node'], indirect=True)
def test_a_photograph_is_decoded_and_turned(kit: Any, models: Any, files: Files, tmp_path: Path) -> None:
    command, extension = kit
    path = photograph(tmp_path)
    agree(models('photos'), [path], answers([*command, files('photos', extension)], [path]))


@pytest.mark.parametrize('kit', ['cpp'], indirect=True)
def test_a_portable_pixmap(kit: Any, models: Any, files: Files, images: list[Path], tmp_path: Path) -> None:
    command, extension = kit
    Image.open(images[-1]).save(tmp_path / 'image.ppm')
    rows = answers([*command, files('photos', extension)], [tmp_path / 'image.ppm'])
    agree(models('photos'), images[-1:], rows)


@pytest.mark.parametrize('size', [(1, 20_000), (20_000, 3)])
def test_the_middle_of_a_very_long_picture(
    kit: Any, size: tuple[int, int], models: Any, files: Files, tmp_path: Path
) -> None:
    command, extension = kit
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'long.png')
    found = answers([*command, files('photos', extension)], [tmp_path / 'long.png'])
    agree(models('photos'), [tmp_path / 'long.png'], found)


@pytest.fixture(scope='session')
def bad_files(models: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths by what is wrong with them: as a model, each is bad; as an image, each but 'image' is."""
    folder = tmp_path_factory.mktemp('bad')
    found = {kind: folder / f'{kind}.png' for kind in ('missing', 'empty', 'text', 'folder', 'pipe', 'cut', 'image')}
    found['empty'].write_bytes(b'')
    found['text'].write_text('hello\nworld\n')
    found['folder'].mkdir()
    os.mkfifo(found['pipe'])
    Image.new('RGB', (40, 40), 'red').save(found['image'])
    found['cut'].write_bytes(found['image'].read_bytes()[:50])
    return found


def one_line(command: list[Any]) -> str:
    """The line on standard error of a command that fails, and prints nothing else."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and not run.stdout, run
    assert run.stderr.count('\n') == 1 and run.stderr.endswith('\n'), run.stderr
    return run.stderr


@pytest.mark.parametrize('wrong', ['missing', 'empty', 'text', 'folder', 'pipe', 'cut', 'image'])
def test_a_bad_file_is_said_in_a_line(kit: Any, wrong: str, bad_files: dict[str, Path], files: Files) -> None:
    command, extension = kit
    path = bad_files[wrong]
    assert str(path) in one_line([*command, path, bad_files['image']])
    if wrong != 'image':
        assert str(path) in one_line([*command, files('photos', extension), path])
    assert 'usage' in one_line([*command, path])


def metadata_alone(**facts: Any) -> bytes:
    """An ONNX file of a network without a node."""
    import onnx

    proto = onnx.ModelProto()
    onnx.helper.set_model_props(
        proto, {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    )
    return proto.SerializeToString()


GOOD = dict(
    model='x', input_size=[3, 8, 8], mean=[0.1, 0.2, 0.3], std=[1, 1, 1], crop_pct=1.0, interpolation='bicubic',
    crop_mode='center', num_classes=2, class_names=['a', 'b'],
)  # fmt: skip


def test_facts_of_any_bytes(node_kit: Any, tmp_path: Path) -> None:
    """Every beginning of a file, thousands of changed and of random ones: read or refused, never a loop."""
    (tmp_path / 'good.onnx').write_bytes(metadata_alone(**GOOD))
    command = ['node', KITS / 'browser' / 'fuzz.js', tmp_path / 'good.onnx']
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found['read'] > 100 and found['refused'] > 5_000


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (dict(input_size=None), 'no metadata of an image size'),
        (dict(input_size=[3, 8]), 'no metadata of an image size'),
        (dict(input_size=[3, 10**9, 8]), 'no metadata of an image size'),
        (dict(input_size=[2, 8, 8], mean=[0, 0], std=[1, 1]), 'takes 2 channels'),
        (dict(std=[0, 1, 1]), 'damaged'),
        (dict(mean=[0.5]), 'damaged'),
        (dict(crop_pct=0), 'damaged'),
        (dict(interpolation='lanczos'), 'interpolation lanczos'),
        (dict(interpolation='constructor'), 'interpolation constructor'),
        (dict(crop_mode='squash'), 'crop_mode squash'),
        (dict(class_names='ab'), 'class_names'),
    ],
)
def test_facts_that_cannot_be_used(node_kit: Any, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / 'model.onnx'
    path.write_bytes(metadata_alone(**{**GOOD, **changed}))
    assert message in one_line([*node_kit[0], path, tmp_path / 'x.png'])


@pytest.fixture(params=['digits', 'nf_resnet20_cifar.cifar10', 'eunnet50.imagenette'])
def page(request: pytest.FixtureRequest, models: Any, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A network, and the browser kit's address with it, folded and not folded, served as its README says."""
    if not all(map(shutil.which, ('node', 'chromium'))) or not (KITS / 'browser' / 'node_modules').is_dir():
        pytest.skip("Node, Chromium or the page's packages are missing: make kit-test installs them")
    site = tmp_path / 'site'
    site.mkdir()
    nf_zoo.export_onnx(models(request.param), site / 'folded.onnx')
    nf_zoo.export_onnx(models(request.param), site / 'unfolded.onnx', fold=False)
    with served(site) as address:
        yield request.param, address


def test_the_page_in_a_browser(page: tuple[str, str], models: Any, images: list[Path], tmp_path: Path) -> None:
    """Files, drawings by mouse, keyboard and finger or the camera; nothing from elsewhere, no finding of axe."""
    network, address = page
    tolerance = TOLERANCE
    if network == 'eunnet50.imagenette':  # a hundred times as long, and 53 normalisations in WebAssembly's arithmetic
        images, tolerance = images[::8], 1e-3
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 4), dtype=np.uint8)
    pixels[..., 3] = pixels[..., 3] // 128 * 255
    Image.fromarray(pixels).save(tmp_path / 'clear.png')
    images = [*images, tmp_path / 'clear.png', photograph(tmp_path)]
    command = [shutil.which('node'), KITS / 'browser' / 'test.js', address, tmp_path, *images]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert not found['problems']
    model = models(network)
    weights = 'nf_resnet20_cifar.cifar10' if network == 'digits' else network
    assert found['about'].startswith(f'{weights},')
    assert all(name in found['knows'] for name in class_names(model))
    assert (len(found['drawings']), 'camera' in found) == ((3, False) if network == 'digits' else (0, True))
    for form in ('folded', 'unfolded'):
        agree(model, images, found['files'][form], tolerance)
    agree(model, images[:1], [found['dropped']], tolerance)
    for name, answer in found['drawings']:
        ink = np.asarray(Image.open(tmp_path / name).convert('L'), float)
        assert 0.02 < (ink > 128).mean() < 0.5 and np.ptp((ink > 128).nonzero()[0]) > 180  # from top to bottom
        coarse = Image.fromarray(ink.reshape(8, 35, 8, 35).mean((1, 3)).round().astype(np.uint8))
        coarse.save(tmp_path / 'scan.png')
        agree(model, [tmp_path / 'scan.png'], [answer])
