"""Pictures one by one: the same batches whatever the number of workers, and one line for what can't be read."""

import os
import re
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folders import CONFIG, equal
from PIL import Image
from train_toys import toy_recipe

from nf_zoo.errors import UserError
from nf_zoo.inference.images import transform
from nf_zoo.train import Recipe, engine
from nf_zoo.train.build import read_sets
from nf_zoo.train.data.folder import FolderData, open_folders
from nf_zoo.train.data.pictures import read_image, read_picture
from nf_zoo.train.engine import Run


def make(images: Path, **options: object) -> FolderData:
    recipe = Recipe(
        model='x', dataset='folder', data_dir=str(images), batch_size=2, workers=0, aa='rand-m9-n2', reprob=0.5
    ).with_options(options)
    sets = open_folders(recipe.data_dir, recipe.train_split, recipe.val_split)
    return FolderData(*sets, recipe, CONFIG, torch.device('cpu'))


def test_batches_do_not_depend_on_workers_or_on_where_an_epoch_starts(images: Path) -> None:
    alone = list(make(images).train_batches(1, 0))
    assert [tuple(x.shape) for x, _ in alone] == [(2, 3, 16, 16)] * 5
    torch.rand(3)
    assert equal(list(make(images, workers=2).train_batches(1, 0)), alone)
    assert equal(list(make(images).train_batches(1, 2)), alone[2:])


def test_another_epoch_or_seed_gives_other_batches(images: Path) -> None:
    first = list(make(images).train_batches(1, 0))
    assert not equal(list(make(images).train_batches(2, 0)), first)
    assert not equal(list(make(images, seed=1).train_batches(1, 0)), first)


def test_validation_is_every_image_once_in_order(images: Path) -> None:
    batches = list(make(images, validation_batch_size=4).val_batches())
    assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    assert equal(list(make(images, validation_batch_size=4, workers=2).val_batches()), batches)


def bomb(path: Path) -> None:
    head = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', head), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    body = b''.join(struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + body)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    'FIFO': (os.mkfifo, 'is a pipe (FIFO), not a file'),
    'folder': (os.mkdir, 'is a folder, not a file'),
    'device': (lambda path: path.symlink_to('/dev/zero'), 'is a device, not a file'),
    'socket': (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), 'is a socket, not a file'),
    'bomb': (bomb, 'could be decompression bomb'),
    'strip': (lambda path: Image.new('L', (1, 5000)).save(path), '1 x 5000 pixels; the longer side is over 100 times'),
    'floats': (lambda path: Image.new('F', (8, 8), -0.5).save(path, 'TIFF'), 'has values from -0.5 to -0.5'),
    'EPS': (lambda path: path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n'), 'is no image, or a damaged one'),
}


@pytest.mark.parametrize('kind', BAD)
def test_what_is_no_usable_picture_is_one_line_at_once(images: Path, kind: str) -> None:
    make_it, said = BAD[kind]
    path = images / 'train' / 'dog' / '3.png'
    path.unlink()
    make_it(path)
    with pytest.raises(UserError) as caught:
        read_picture(str(path))
    assert str(path) in str(caught.value) and said in str(caught.value) and '\n' not in str(caught.value)
    if kind != 'folder':  # which counts as a part of the class
        with pytest.raises(UserError, match=re.escape(said)):
            list(make(images).train_batches(0, 0))


def test_a_pipe_in_a_folder_that_timm_opens_is_one_line_at_once(images: Path) -> None:
    path = images / 'train' / 'dog' / '3.png'
    path.unlink()
    os.mkfifo(path)
    recipe = timm_recipe(images)
    data = FolderData(*read_sets(recipe), recipe, CONFIG, torch.device('cpu'))
    with pytest.raises(UserError, match='is a pipe .FIFO., not a file'):
        list(data.train_batches(0, 0))


def test_a_link_to_a_folder_above_it_is_refused_and_another_link_is_followed(images: Path, tmp_path: Path) -> None:
    extra = tmp_path / 'extra'
    extra.mkdir()
    (images / 'train' / 'dog' / '0.png').rename(extra / '0.png')
    (images / 'train' / 'dog' / 'more').symlink_to(extra)
    assert make(images).train_n == 10
    for target in ('.', '..', images):
        (extra / 'again').symlink_to(target)
        if target == images:
            with pytest.raises(UserError, match='again is a link to .*, a folder above it; remove the link'):
                make(images)
        (extra / 'again').unlink()
    (images / 'train' / 'dog' / 'again').symlink_to('.')
    with pytest.raises(UserError, match='again is a link to .*, a folder above it; remove the link'):
        make(images)


def test_files_that_are_no_pictures_are_counted(images: Path) -> None:
    for name in ('a.heic', 'b.txt', '.hidden'):
        (images / 'train' / 'cat' / name).write_text('')
    (images / 'train' / 'README').write_text('')
    said: list[str] = []
    read_sets(Recipe(model='x', dataset='folder', data_dir=str(images)), said.append)
    assert len(said) == 1 and said[0].startswith('train: files left out that are not named like pictures: 2 (')


def gradient(mode: str) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    return Image.fromarray(pixels, 'RGBA').convert(mode)


def on_its_side(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient('RGB').save(path, 'JPEG', exif=exif, quality=95)


KINDS: dict[str, Callable[[Path], object]] = {
    'on its side': on_its_side,
    'transparent': lambda path: gradient('RGBA').save(path, 'PNG'),
    'palette with transparency': lambda path: gradient('RGB').quantize(8).save(path, 'PNG', transparency=3),
    '16 bits': lambda path: Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20) * 130).save(path, 'PNG'),
    'floats': lambda path: Image.fromarray(np.linspace(0, 1, 480, dtype=np.float32).reshape(24, 20)).save(path, 'TIFF'),
    'CMYK': lambda path: gradient('CMYK').save(path, 'JPEG'),
    'GIF': lambda path: gradient('RGB').save(path, 'GIF', save_all=True, append_images=[gradient('L')]),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_picture_is_the_same_in_training_in_evaluation_and_in_prediction(images: Path, kind: str) -> None:
    path = images / 'validation' / 'cat' / ('0.gif' if kind == 'GIF' else '0.png')
    (images / 'validation' / 'cat' / '0.png').unlink()
    KINDS[kind](path)
    data = make(images)
    x, _ = next(iter(data.val_batches()))
    whole, mode = transform(CONFIG)
    assert torch.equal(x[0], whole(read_image(path, mode)))
    assert data.val_n == 6 and x[0].std() > 0.1
    for place in ('train', 'validation'):
        shutil.copy(path, images / place / 'dog' / path.name)
    train, val = open_folders(str(images), 'train', 'validation')
    shown = [np.asarray(found[list(found.targets).index(1)][0]) for found in (train, val)]
    assert np.array_equal(*shown)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_damaged_image_is_one_line_with_its_path(images: Path, workers: int) -> None:
    broken = images / 'train' / 'dog' / '3.png'
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        list(make(images, workers=workers).train_batches(0, 0))
    assert str(caught.value).startswith(f"cannot read the image '{broken}'") and '\n' not in str(caught.value)


def test_missing_folders_and_differing_classes_are_one_line(images: Path) -> None:
    with pytest.raises(UserError, match='no class folders with images there'):
        make(images, val_split='test')
    with pytest.raises(UserError, match='--data-dir'):
        open_folders(None, 'train', 'validation')
    (images / 'validation' / 'dog').rename(images / 'validation' / 'dogs')
    with pytest.raises(UserError, match='differ in the classes dog, dogs'):
        make(images)


def test_evaluation_may_have_another_size_than_training(images: Path) -> None:
    data = make(images, val_img_size=20)
    assert next(iter(data.train_batches(0, 0)))[0].shape[-2:] == (16, 16)
    assert next(iter(data.val_batches()))[0].shape[-2:] == (20, 20)


def test_training_images_grow_with_the_epochs(images: Path) -> None:
    data = make(images, train_sizes={0: 8, 2: 12, 3: 16}, workers=1)
    sides = [next(iter(data.train_batches(epoch, 0)))[0].shape[-2:] for epoch in range(5)]
    assert sides == [(8, 8), (8, 8), (12, 12), (16, 16), (16, 16)]
    assert next(iter(data.val_batches()))[0].shape[-2:] == (16, 16)
    assert equal(list(data.train_batches(3, 0)), list(make(images).train_batches(3, 0)))


def test_grey_images_are_those_of_timm(images: Path) -> None:
    recipe = timm_recipe(images, in_chans=1)
    config = CONFIG | {'input_size': (1, 16, 16), 'mean': (0.5,), 'std': (0.5,)}
    for dataset in ('folder', 'torch/image_folder'):
        val = FolderData(*read_sets(recipe.with_options({'dataset': dataset})), recipe, config, torch.device('cpu'))
        x = torch.cat([batch for batch, _ in val.val_batches()])
        grey = [Image.open(path).convert('L') for path in sorted((images / 'validation').rglob('*.png'))]
        assert torch.equal(x, torch.stack([val.pipeline.val(picture) for picture in grey])), dataset


def test_every_second_batch_is_the_share_of_one_of_two_processes(images: Path) -> None:
    data = make(images)
    whole = list(data.train_batches(0, 0))
    assert equal(list(data.train_batches(0, 0, 2)), whole[::2]) and equal(
        list(data.train_batches(0, 1, 2)), whole[1::2]
    )
    assert equal(list(data.val_batches(1, 2)), list(data.val_batches())[1::2])


def timm_recipe(images: Path, **options: object) -> Recipe:
    base = {'model': 'x', 'dataset': 'torch/image_folder', 'data_dir': str(images), 'batch_size': 2, 'workers': 0}
    return Recipe().with_options(base | options)


def test_a_data_set_that_timm_names_is_read_like_a_folder(images: Path) -> None:
    recipe = timm_recipe(images)
    sets = read_sets(recipe)
    assert sets[0].classes == ['cat', 'dog'] and (len(sets[0]), len(sets[1])) == (10, 6)
    data = FolderData(*sets, recipe, CONFIG, torch.device('cpu'))
    folder = FolderData(*open_folders(str(images), 'train', 'validation'), recipe, CONFIG, torch.device('cpu'))
    assert equal(list(data.train_batches(1, 1)), list(folder.train_batches(1, 1)))
    assert equal(list(data.val_batches()), list(folder.val_batches()))


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'dataset': 'torch/nothing'}, "unknown data set 'torch/nothing'"),
        ({'data_dir': 'nowhere'}, 'torch/image_folder cannot be read from nowhere'),
        ({'data_dir': None}, 'needs its folder'),
    ],
)
def test_a_timm_set_that_cannot_be_read_is_one_line(images: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_sets(timm_recipe(images, **options))
    assert said in str(caught.value) and '\n' not in str(caught.value)


class SlowPictures:
    classes = ['cat', 'dog']

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        time.sleep(0.05)
        return Image.effect_noise((20, 24), 30.0 + number).convert('RGB'), number % 2


@pytest.mark.parametrize('workers', [0, 1])
def test_a_loader_slower_than_training_is_reported_at_the_end_of_the_epoch(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, 'SLOW_SECONDS', 0)
    recipe = toy_recipe(tmp_path, dataset='folder', img_size=16, batch_size=4, epochs=1, workers=workers)
    said: list[str] = []
    Run(recipe, tmp_path, said.append, False, sets=(SlowPictures(), SlowPictures())).fit()
    (line,) = [line for line in said if 'loader is too slow' in line]
    assert f'--workers (now {workers})' in line and said.index(line) == len(said) - 2
