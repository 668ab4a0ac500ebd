"""Any picture that a user may have becomes class names, or one clear line."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from nf_zoo.errors import UserError
from nf_zoo.inference.images import read_image
from nf_zoo.inference.loading import class_names, load_model
from nf_zoo.inference.predict import predict

COLOUR = (200, 100, 50)


@pytest.fixture(scope='module')
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    net = timm.create_model('eunnet20_cifar').eval()
    torch.nn.init.normal_(net.get_classifier().weight)
    return net


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ('mode', 'extension', 'tolerance'),
    [
        ('RGB', 'png', 0),
        ('RGBA', 'png', 0),
        ('P', 'png', 4),
        ('RGB', 'jpg', 4),
        ('CMYK', 'jpg', 4),
        ('RGB', 'webp', 8),
        ('RGB', 'bmp', 0),
        ('CMYK', 'tiff', 4),
    ],
)
def test_colours_survive_every_mode_and_format(tmp_path: Path, mode: str, extension: str, tolerance: int) -> None:
    path = tmp_path / f'picture.{extension}'
    source = Image.new('RGB', (20, 10), COLOUR)
    (source.quantize() if mode == 'P' else source.convert(mode)).save(path)
    picture = read_image(path)
    assert (picture.mode, picture.size) == ('RGB', (20, 10))
    assert np.abs(np.asarray(picture, dtype=int) - COLOUR).max() <= tolerance


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / '8.png')
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / '16.png')
    assert np.array_equal(read_image(tmp_path / '16.png'), read_image(tmp_path / '8.png'))
    assert np.array_equal(read_image(tmp_path / '16.png', 'L'), grey)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new('RGBA', (4, 4), (0, 0, 0, 0)).convert(mode)
    picture.save(tmp_path / 'clear.png', **({'transparency': 0} if mode == 'P' else {}))
    assert np.asarray(read_image(tmp_path / 'clear.png')).min() == 255


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    noise(30, 20).save(tmp_path / 'turned.jpg', exif=exif)
    assert read_image(tmp_path / 'turned.jpg').size == (20, 30)


@pytest.mark.parametrize('size', [(1, 1), (1, 500), (3, 2), (32, 32), (700, 31)])
def test_every_size_and_the_whole_distribution(model: torch.nn.Module, size: tuple[int, int]) -> None:
    (row,) = predict(model, noise(*size), top=1000)
    assert sorted(name for name, _ in row) == sorted(map(str, range(10)))
    probabilities = [probability for _, probability in row]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)


def test_the_same_as_timm_by_hand_and_alone_as_in_a_batch(model: torch.nn.Module) -> None:
    images = [noise(40 + seed, 50, seed) for seed in range(70)]  # more than one batch
    transform = create_transform(**resolve_model_data_config(model))
    with torch.inference_mode():
        expected = model(torch.stack([transform(image) for image in images])).softmax(1)
    rows = predict(model, images, top=1)
    assert [row[0][0] for row in rows] == [str(index) for index in expected.argmax(1).tolist()]
    assert [row[0][1] for row in rows] == pytest.approx(expected.amax(1).tolist(), abs=1e-5)
    (alone,) = predict(model, images[3])
    assert alone[0] == (rows[3][0][0], pytest.approx(rows[3][0][1], abs=1e-5))


def test_the_model_is_left_as_it_was(model: torch.nn.Module) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    predict(model, noise(8, 8))
    assert model.training
    model.eval()
    predict(model, noise(8, 8))
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_grey_models_take_grey_pictures() -> None:
    grey = timm.create_model('eunnet20_cifar', in_chans=1)
    assert len(predict(grey, noise(9, 9))[0]) == 5
    with pytest.raises(UserError, match='takes 2 channels'):
        predict(timm.create_model('eunnet20_cifar', in_chans=2), noise(9, 9))


def test_class_names_come_from_the_weights(model: torch.nn.Module) -> None:
    letters = tuple('abcdefghij')
    named = timm.create_model('eunnet20_cifar', pretrained_cfg_overlay={'label_names': letters})
    assert class_names(named) == list(letters)
    assert class_names(model) == [str(index) for index in range(10)]
    other = timm.create_model('eunnet20_cifar', pretrained_cfg_overlay={'label_names': letters}, num_classes=3)
    assert class_names(other) == ['0', '1', '2']
    imagenet = timm.create_model('nf_resnet50.ra2_in1k', device='meta')
    assert 'tench' in class_names(imagenet)[0]


def write(path: Path, content: bytes | None) -> Path:
    if content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize('content', [None, b'', b'hello', b'%!PS-Adobe-3.0 EPSF-3.0\n', b'\x89PNG\r\n\x1a\n'])
def test_what_is_no_picture_is_one_line(model: torch.nn.Module, tmp_path: Path, content: bytes | None) -> None:
    path = write(tmp_path / 'picture.png', content)
    with pytest.raises(UserError, match='picture.png') as caught:
        predict(model, path)
    assert '\n' not in str(caught.value)
    with pytest.raises(UserError):
        predict(model, tmp_path)


@given(st.data())
def test_damaged_files_never_do_worse_than_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp('damaged') / f'picture.{data.draw(st.sampled_from(["png", "jpg", "gif", "tiff"]))}'
    noise(16, 16).save(path)
    content = bytearray(path.read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_image(path).mode == 'RGB'
    except UserError as error:
        assert '\n' not in str(error)


def test_bad_names_and_numbers() -> None:
    with pytest.raises(UserError, match="did you mean 'eunnet20_cifar'"):
        load_model('eunet20_cifar')
    with pytest.raises(UserError):
        load_model('eunnet20_cifar.nowhere')
    with pytest.raises(UserError, match='top'):
        predict('eunnet20_cifar', [], top=0)
