"""Any picture that a user may have becomes class names, or one clear line."""

import copy
import os
import socket
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.inference.images import RATIO, preprocessing
from nf_zoo.inference.loading import class_names, load_model
from nf_zoo.inference.predict import PredictReport, predict, predict_files
from nf_zoo.train.data.pictures import read_image

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


@pytest.mark.parametrize('dtype', ['float32', 'int32'])
@pytest.mark.parametrize('top', [1, 255, 65535])
def test_wider_numbers_are_neither_black_nor_white(tmp_path: Path, dtype: str, top: int) -> None:
    """A float TIFF of 0 to 1 or 0 to 255, 32-bit integers of 0 to 255 or 0 to 65,535: the same picture as in 8 bits."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = grey.astype(dtype) * {1: 1 / 255, 255: 1, 65535: 257}[top]
    Image.fromarray(wide.astype(dtype)).save(tmp_path / 'wide.tif')
    if (dtype, top) == ('float32', 65535):
        with pytest.raises(UserError, match='values from 0 to 65535; give a picture with values from 0 to 1 or 0 to'):
            read_image(tmp_path / 'wide.tif')
    elif (dtype, top) != ('int32', 1):
        assert np.array_equal(read_image(tmp_path / 'wide.tif', 'L'), grey)


@pytest.mark.parametrize('value', [-1.0, float('nan'), float('inf')])
def test_numbers_that_no_picture_has_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / 'odd.tif')
    with pytest.raises(UserError, match='values from'):
        read_image(tmp_path / 'odd.tif')


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


def test_single_modules_keep_their_mode_and_no_thread_sees_another_ones(model: torch.nn.Module) -> None:
    """A frozen batch normalization stays in eval mode while the rest trains, also during a prediction."""
    net = timm.create_model('bn_resnet20_cifar', depths=(1, 1, 1)).train()
    net.stages[0].eval()
    modes = {name: module.training for name, module in net.named_modules()}
    state = {key: value.clone() for key, value in net.state_dict().items()}
    seen: list[bool] = []
    net.stages[1].register_forward_pre_hook(lambda *_: seen.append(net.training))
    expected = predict(net, noise(8, 8))
    assert seen == [True]
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert expected == predict(net.eval(), noise(8, 8))


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    noise(64, 64).save(tmp_path / 'a.png')
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_image(tmp_path / 'a.png'), range(200)))
    assert warnings.filters == before


def test_nan_is_no_probability() -> None:
    net = timm.create_model('eunnet20_cifar', depths=(1, 1, 1)).eval()
    torch.nn.init.constant_(net.get_classifier().bias, float('nan'))
    with pytest.raises(CheckFailed, match='the model gives NaN'):
        predict(net, noise(8, 8))


def test_a_folder_is_its_images_and_a_bad_one_stops_nothing(model: torch.nn.Module, tmp_path: Path) -> None:
    for name in ('b.png', 'a/c.jpg', 'a/d.PNG'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(8, 8).save(tmp_path / name)
    (tmp_path / 'a' / 'loop').symlink_to(tmp_path)
    (tmp_path / 'note.txt').write_text('no picture')
    (tmp_path / 'bad.png').write_text('no picture')
    report = predict_files(model, [tmp_path, tmp_path / 'none.png'])
    names = [str(Path(image).relative_to(tmp_path)) for image, _ in report.rows]
    assert names == ['a/c.jpg', 'a/d.PNG', 'b.png', 'bad.png', 'none.png']
    assert [len(found) if isinstance(found, list) else found for _, found in report.rows][:3] == [5, 5, 5]
    assert [str(error).count('\n') for error in report.failures] == [0, 0]
    assert [row.get('error') is None for row in report.as_dicts()] == [True, True, True, False, False]
    with pytest.raises(UserError, match='no images in the folder'):
        predict_files(model, [tmp_path / 'a' / 'loop', tmp_path_without_images(tmp_path)])


def tmp_path_without_images(folder: Path) -> Path:
    (folder / 'empty').mkdir()
    return folder / 'empty'


@pytest.mark.parametrize('kind', ['pipe', 'device', 'socket', 'folder'])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / 'picture.png'
    with socket.socket(socket.AF_UNIX) as server:
        if kind == 'pipe':
            os.mkfifo(path)
        elif kind == 'socket':
            server.bind(str(path))
        elif kind == 'folder':
            path.mkdir()
        else:
            path.symlink_to('/dev/zero')
        with pytest.raises(UserError, match='picture.png') as caught:
            read_image(path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('size', [(1, 300_000), (300_000, 1), (3, 2_000)])
def test_a_very_long_picture_costs_what_its_middle_costs(model: torch.nn.Module, size: tuple[int, int]) -> None:
    """1 x 300,000 pixels would become 32 x 9,600,000. The crop sees the middle alone, so the rest may be anything."""
    picture = noise(*size)
    middle = [(side - min(side, RATIO * min(size))) // 2 for side in size]
    box = (*middle, *(side - cut for side, cut in zip(size, middle, strict=True)))
    transform, mode = preprocessing(model)
    assert transform(picture).shape == (3, 32, 32)
    assert torch.equal(transform(picture), transform(picture.crop(box)))


def test_the_middle_is_what_the_whole_picture_gives(model: torch.nn.Module) -> None:
    picture = noise(10, 4_000).resize((10, 4_000), Image.Resampling.BICUBIC)
    transform, _ = preprocessing(model)
    whole = create_transform(**resolve_model_data_config(model))
    assert (transform(picture) - whole(picture)).abs().max() < 0.2
    assert (transform(picture) - whole(picture)).abs().mean() < 0.01


def test_pixels_are_bounded_before_decoding(tmp_path: Path) -> None:
    """A file of a hundred kilobytes that declares 200 million pixels."""
    Image.new('1', (20_000, 10_000)).save(tmp_path / 'bomb.png')
    with pytest.raises(UserError, match='bomb.png'):
        read_image(tmp_path / 'bomb.png')
    Image.new('1', (16_000, 10_000)).save(tmp_path / 'large.tif', compression='group4')
    with pytest.raises(UserError, match='16000 x 10000 pixels'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        read_image(tmp_path / 'large.tif')


def test_a_network_in_16_bits_predicts_the_same(model: torch.nn.Module) -> None:
    (whole,), (half,) = (
        predict(model, noise(9, 9), top=10),
        predict(copy.deepcopy(model).bfloat16(), noise(9, 9), top=10),
    )
    assert dict(half) == pytest.approx(dict(whole), abs=0.05)


def test_grey_models_take_grey_pictures() -> None:
    grey = timm.create_model('eunnet20_cifar', in_chans=1)
    assert len(predict(grey, noise(9, 9))[0]) == 5
    with pytest.raises(UserError, match='no classifier'):
        predict(timm.create_model('eunnet20_cifar', num_classes=0), noise(9, 9))
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


def test_foreign_names_reach_no_terminal_raw() -> None:
    text = str(PredictReport([('a\x1b[31m\n.png', [('cat\n\x1b[0m', 0.5), ('dog', 0.25)])]))
    assert [line.isprintable() for line in text.splitlines()] == [True, True]


def test_bad_names_and_numbers() -> None:
    with pytest.raises(UserError, match="did you mean 'eunnet20_cifar'"):
        load_model('eunet20_cifar')
    with pytest.raises(UserError):
        load_model('eunnet20_cifar.nowhere')
    with pytest.raises(UserError, match='top'):
        predict('eunnet20_cifar', [], top=0)
