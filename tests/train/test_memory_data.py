"""In-memory sets: crops are windows of the padded image, an epoch follows from seed and epoch, damage is noticed."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image
from train_toys import fashion

from nf_zoo.errors import UserError
from nf_zoo.train import MemorySet, Recipe, load_dataset
from nf_zoo.train.build import build_data, data_config, read_sets
from nf_zoo.train.data.memory import MemoryData, crop_and_flip, fold_seed, with_channels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DEVICE = torch.device('cpu')


def numbered(n: int = 12, side: int = 8) -> MemorySet:
    """Images of random pixels, each labelled by its own number."""
    pixels = torch.randint(1, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return MemorySet(pixels, torch.arange(n), [str(i) for i in range(n)])


def make(**options: object) -> MemoryData:
    settings = {'batch_size': 4, 'val_batch_size': 5, 'mean': MEAN, 'std': STD, 'device': torch.device('cpu')}
    return MemoryData(numbered(), numbered(), **{**settings, **options})  # type: ignore[arg-type]


def pixels_of(x: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((x * std + mean) * 255).round().byte()


def is_window(crop: Tensor, padded: Tensor) -> bool:
    side = crop.shape[-1]
    windows = padded.unfold(1, side, 1).unfold(2, side, 1)
    return any(bool((windows == c[:, None, None]).all(-1).all(-1).all(0).any()) for c in (crop, crop.flip(-1)))


@given(side=st.integers(3, 12), pad=st.integers(0, 4), seed=st.integers(0, 2**32))
def test_a_training_image_is_a_window_of_its_padded_image_or_the_mirror_of_one(side: int, pad: int, seed: int) -> None:
    side = min(side, 8 + 2 * pad)
    data = make(train_sizes={0: side}, size=8, crop_pad=pad, seed=seed)
    padded = F.pad(numbered().images, (pad,) * 4)
    for x, labels in data.train_batches(0, 0):
        assert x.shape == (4, 3, side, side) and x.is_contiguous(memory_format=torch.channels_last)
        for crop, label in zip(pixels_of(x), labels, strict=True):
            assert is_window(crop, padded[label])


def test_crop_and_flip_takes_the_window_asked_for() -> None:
    image = torch.arange(5 * 6).view(1, 5, 6, 1)
    corners = torch.tensor([[1, 1], [2, 2]])
    plain, mirror = crop_and_flip(image, torch.tensor([0, 0]), corners, torch.tensor([False, True]), 3)
    assert torch.equal(plain, image[0, 1:4, 2:5])
    assert torch.equal(mirror, image[0, 1:4, 2:5].flip(1))


def test_all_offsets_and_both_mirrors_occur() -> None:
    data = make(crop_pad=1)
    seen: set[bytes] = set()
    for epoch in range(200):
        for x, y in data.train_batches(epoch, 0):
            seen |= {crop.numpy().tobytes() for crop in pixels_of(x)[y == 3]}
    assert len(seen) == 3 * 3 * 2


def test_without_augmentation_an_epoch_is_the_normalised_set_in_some_order() -> None:
    data = make(crop_pad=0, hflip=0.0)
    batches = list(data.train_batches(3, 0))
    labels = torch.cat([y for _, y in batches])
    assert sorted(labels.tolist()) == list(range(12)) and labels.tolist() != list(range(12))
    expected = (numbered().images / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), expected[labels])


def test_an_epoch_is_a_function_of_seed_and_epoch_and_can_start_anywhere() -> None:
    whole = list(make(seed=5).train_batches(2, 0))
    torch.rand(7)  # the global generator has no say
    tail = list(make(seed=5).train_batches(2, 1))
    for (x, y), (x2, y2) in zip(whole[1:], tail, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    for other in (make(seed=5).train_batches(3, 0), make(seed=6).train_batches(2, 0)):
        assert not torch.equal(next(iter(other))[0], whole[0][0])


def test_train_sizes_hold_from_their_epoch_on_and_evaluation_is_at_full_size() -> None:
    data = make(train_sizes={0: 5, 2: 8, 4: 6})
    assert [next(iter(data.train_batches(e, 0)))[0].shape[-1] for e in range(6)] == [5, 5, 8, 8, 6, 6]
    assert {x.shape[-1] for x, _ in data.val_batches()} == {8}


def test_smaller_crops_keep_the_scale_of_enlarged_images() -> None:
    whole, part = make(size=16, crop_pad=0), make(size=16, crop_pad=0, train_sizes={0: 12})
    x, _ = next(iter(part.train_batches(0, 0)))
    assert x.shape[-1] == 12
    crop = next(iter(make(train_sizes={0: 6}, crop_pad=0).train_batches(0, 0)))[0]
    torch.testing.assert_close(x, F.interpolate(crop, size=(12, 12), mode='bicubic', antialias=True))
    assert next(iter(whole.train_batches(0, 0)))[0].shape[-1] == next(iter(part.val_batches()))[0].shape[-1] == 16


def test_validation_is_every_image_once_in_order() -> None:
    batches = list(make().val_batches())
    assert torch.cat([y for _, y in batches]).tolist() == list(range(12))
    assert torch.equal(pixels_of(torch.cat([x for x, _ in batches])), numbered().images)


def test_another_size_resizes_both_splits() -> None:
    data = make(size=16)
    assert next(iter(data.train_batches(0, 0)))[0].shape[-2:] == (16, 16)
    assert next(iter(data.val_batches()))[0].shape[-2:] == (16, 16)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=4, unique=True))
def test_seeds_depend_on_the_order_of_the_numbers(numbers: list[int]) -> None:
    assert fold_seed(*numbers) != fold_seed(*reversed(numbers))
    assert 0 <= fold_seed(*numbers) < 2**63


def test_an_unknown_data_set_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_dataset('cifar01', '.', 'train')


def test_a_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_dataset('torch/cifar10', tmp_path, 'train')
    message = str(caught.value)
    assert str(tmp_path) in message and '--dataset-download' in message and '\n' not in message
    with pytest.raises(UserError, match='--data-dir'):
        load_dataset('cifar100', None, 'train')


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.mkdir, (self.path,)


def test_a_file_with_a_wrong_md5_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    for name in [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch', 'batches.meta']:
        (folder / name).write_bytes(pickle.dumps(_Trap(tmp_path / 'ran')))
    with pytest.raises(UserError, match='no intact CIFAR10'):
        load_dataset('cifar10', tmp_path, 'train')
    assert not (tmp_path / 'ran').exists()


def test_a_truncated_file_is_refused(cifar_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    for file in (cifar_dir / 'cifar-10-batches-py').iterdir():
        if file.name != 'data_batch_3':
            (folder / file.name).symlink_to(file)
    (folder / 'data_batch_3').write_bytes((cifar_dir / 'cifar-10-batches-py' / 'data_batch_3').read_bytes()[:-1])
    with pytest.raises(UserError, match='no intact CIFAR10'):
        load_dataset('cifar10', tmp_path, 'train')


def test_cifar10_is_whole_and_balanced(cifar_dir: Path) -> None:
    found = load_dataset('cifar10', cifar_dir, 'validation')
    assert found.images.shape == (10_000, 3, 32, 32) and found.images.dtype == torch.uint8
    assert found.labels.bincount().tolist() == [1000] * 10
    assert found.classes[0] == 'airplane' and found.classes[9] == 'truck'


def test_digits_hold_a_fifth_of_each_class_out_and_keep_the_scans_grey_levels() -> None:
    train, held_out = (load_dataset('digits', None, split) for split in ('train', 'validation'))
    assert len(train.labels) + len(held_out.labels) == 1797
    share = held_out.labels.bincount() / (train.labels.bincount() + held_out.labels.bincount())
    assert bool(((share > 0.18) & (share < 0.22)).all())
    assert train.images.shape[1:] == (3, 32, 32) and train.images.dtype == torch.uint8
    assert train.images.max() == 255 and train.images.min() == 0
    known = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in known for image in held_out.images) == 0


def test_fashion_mnist_is_grey_and_gets_three_channels_unless_the_model_takes_one(tmp_path: Path) -> None:
    recipe = Recipe(model='x', dataset='torch/fashion_mnist', data_dir=str(fashion(tmp_path)))
    train, val = read_sets(recipe)
    assert train.images.shape == (6, 3, 28, 28) and val.labels.tolist() == list(range(6))
    assert bool((train.images == train.images[:, :1]).all()) and train.classes[0] == 'T-shirt/top'
    assert read_sets(recipe.with_options({'in_chans': 1}))[0].images.shape == (6, 1, 28, 28)
    (tmp_path / 'FashionMNIST' / 'raw' / 'train-images-idx3-ubyte').unlink()
    with pytest.raises(UserError, match='no intact fashion_mnist in .*--dataset-download'):
        read_sets(recipe)


@pytest.mark.parametrize('keys', [{}, {'img_size': 64}])
def test_the_recorded_preparation_is_that_of_the_evaluation(keys: dict[str, int]) -> None:
    """A network with ImageNet's layout and defaults, and its weights later given files of the same images."""
    recipe = Recipe().with_options({'model': 'eunnet18', 'dataset': 'toys', **keys})
    steps = torch.linspace(0, 255, 32)
    images = torch.stack([steps.outer(torch.ones(32)), steps.expand(32, 32), steps.flip(0).expand(32, 32)])
    images = images.round().byte()[None]
    sets = (MemorySet(images, torch.zeros(1, dtype=torch.long), ['a']),) * 2
    config = data_config(recipe, timm.create_model('eunnet18', device='meta'), sets)
    (evaluated, _), *_ = build_data(recipe, sets, config, torch.device('cpu'), 1).val_batches()
    from_file = create_transform(**config)(to_pil_image(images[0]))
    assert evaluated.shape[1:] == config['input_size']
    torch.testing.assert_close(evaluated[0], from_file, rtol=0, atol=2 / 255 / min(config['std']))


def test_a_policy_for_single_pictures_works_on_in_memory_sets_and_crops_as_without_it() -> None:
    recipe = Recipe().with_options(
        {'model': 'x', 'dataset': 'toys', 'aa': 'rand-m0-n0', 'batch_size': 4, 'workers': 0, 'crop_pad': 2}
    )
    config = {'input_size': (3, 8, 8), 'interpolation': 'bilinear', 'mean': MEAN, 'std': STD, 'crop_pct': 0.875}
    data = build_data(recipe, (numbered(), numbered()), config, torch.device('cpu'), 4)
    padded = F.pad(numbered().images, (2,) * 4)
    for x, labels in data.train_batches(0, 0):
        for crop, label in zip(pixels_of(x), labels, strict=True):
            assert is_window(crop, padded[label])
    assert torch.equal(pixels_of(torch.cat([x for x, _ in data.val_batches()])), numbered().images)
    smaller = build_data(recipe.with_options({'train_sizes': {0: 6, 1: 10}}), (numbered(),) * 2, config, DEVICE, 4)
    for epoch, side in enumerate((6, 10)):
        for x, labels in smaller.train_batches(epoch, 0):
            assert x.shape[-2:] == (side, side)
            for crop, label in zip(pixels_of(x), labels, strict=True):
                assert is_window(crop, padded[label])
    with pytest.raises(UserError, match='train_sizes: 13 is not within the padded image'):
        build_data(recipe.with_options({'train_sizes': {0: 13}}), (numbered(),) * 2, config, DEVICE, 4)


def test_grey_pixels_are_those_of_pillow() -> None:
    colours = torch.randint(0, 256, (3, 3, 9, 7), dtype=torch.uint8)
    found = with_channels(MemorySet(colours, torch.zeros(3).long(), ['a']), 1).images
    grey = [np.asarray(Image.fromarray(c.permute(1, 2, 0).numpy()).convert('L')) for c in colours]
    assert torch.equal(found, torch.from_numpy(np.stack(grey))[:, None])
    assert torch.equal(
        with_channels(MemorySet(found, torch.zeros(3).long(), ['a']), 3).images, found.repeat(1, 3, 1, 1)
    )
