"""A recipe's transforms are those of timm's train.py, and on a GPU its prefetcher gives the same batches."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from torchvision import transforms

from nf_zoo.errors import UserError
from nf_zoo.train import Recipe, load_recipe
from nf_zoo.train.data.folder import FolderData, open_folders
from nf_zoo.train.data.memory import seed_everything
from nf_zoo.train.data.pipeline import Pipeline, _collate

CONFIGS = sorted((Path(__file__).parents[2] / 'configs' / 'imagenet').glob('*.yaml'))
EVERYTHING: dict[str, Any] = {
    'aa': 'rand-m9-mstd0.5-inc1',
    'reprob': 0.7,
    'recount': 3,
    'scale': [0.3, 0.9],
    'ratio': [0.8, 1.2],
    'hflip': 0.3,
    'interpolation': 'bicubic',
    'crop_pct': 0.9,
    'img_size': 20,
    'mean': [0.1, 0.2, 0.3],
    'std': [0.4, 0.5, 0.6],
}
VARIANTS: list[dict[str, Any]] = [
    {},
    EVERYTHING,
    EVERYTHING | {'remode': 'const', 'aa': 'original', 'train_interpolation': 'bilinear'},
    EVERYTHING | {'remode': 'rand', 'aa': None, 'color_jitter': 0.2, 'train_interpolation': ''},
    {'color_jitter': 0.0, 'img_size': 16},
]


def loaders(recipe: Recipe, config: dict[str, Any], folder: Path) -> list[Any]:
    """What timm's train.py makes of the recipe, without its prefetcher."""
    shared = {'batch_size': 2, 'num_workers': 0, 'use_prefetcher': False, 'device': torch.device('cpu')}
    shared |= {key: config[key] for key in ('input_size', 'mean', 'std')}
    sets = [create_dataset('', str(folder), split, is_training=split == 'train') for split in ('train', 'validation')]
    train = create_loader(
        sets[0],
        **shared,
        is_training=True,
        re_prob=recipe.reprob,
        re_mode=recipe.remode,
        re_count=recipe.recount,
        scale=recipe.scale,
        ratio=recipe.ratio,
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.aa,
        interpolation=recipe.train_interpolation or config['interpolation'],
    )
    return [train, create_loader(sets[1], **shared, interpolation=config['interpolation'], crop_pct=config['crop_pct'])]


def config_of(recipe: Recipe) -> dict[str, Any]:
    return resolve_data_config({k: v for k, v in recipe.as_dict().items() if v is not None})


def flat(transform: Any) -> list[str]:
    parts = transform.transforms if isinstance(transform, transforms.Compose) else [transform]
    return [text for part in parts for text in ([repr(part)] if part is transform else flat(part))]


def drawn(transform: Any, picture: Image.Image) -> torch.Tensor:
    seed_everything(3)
    return torch.stack([transform(picture) for _ in range(5)])


@pytest.mark.parametrize('options', VARIANTS, ids=str)
def test_a_picture_becomes_what_timm_makes_of_it(images: Path, options: dict[str, Any]) -> None:  # noqa: F811
    recipe = Recipe().with_options(options)
    config = config_of(recipe)
    ours, theirs = Pipeline(recipe, config, torch.device('cpu')), loaders(recipe, config, images)
    picture = Image.open(next(images.rglob('*.png'))).convert('RGB').resize((61, 47))
    assert torch.equal(drawn(ours.train(0), picture), drawn(theirs[0].dataset.transform, picture))
    assert torch.equal(drawn(ours.val, picture), drawn(theirs[1].dataset.transform, picture))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_has_the_transforms_of_timms_train_py(images: Path, path: Path) -> None:  # noqa: F811
    recipe = load_recipe(path)
    config = config_of(recipe)
    ours, theirs = Pipeline(recipe, config, torch.device('cpu')), loaders(recipe, config, images)
    assert recipe.train_interpolation != 'random', 'papers resize in one way'
    assert flat(ours.train(0)) == flat(theirs[0].dataset.transform)
    if recipe.val_img_size:  # timm's train.py evaluates at the size of training
        config['input_size'] = (3, recipe.val_img_size, recipe.val_img_size)
    assert flat(ours.val) == flat(loaders(recipe, config, images)[1].dataset.transform)


@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's own reader leaves them to the collector
def test_validation_is_bit_for_bit_that_of_timms_loader(images: Path) -> None:  # noqa: F811
    recipe = Recipe().with_options({'data_dir': str(images), 'batch_size': 2, 'workers': 0, 'img_size': 16})
    config = config_of(recipe)
    data = FolderData(*open_folders(str(images), 'train', 'validation'), recipe, config, torch.device('cpu'))
    batches = zip(data.val_batches(), loaders(recipe, config, images)[1], strict=True)
    count = 0
    for (x, y), (expected, labels) in batches:
        assert torch.equal(x, expected) and torch.equal(y, labels)
        count += len(y)
    assert count == 6


def test_timms_prefetcher_gives_the_same_batches(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    recipe = Recipe().with_options({'data_dir': str(images), 'batch_size': 2, 'workers': 0, 'img_size': 16})
    config = config_of(recipe)
    sets = open_folders(str(images), 'train', 'validation')
    plain = FolderData(*sets, recipe, config, torch.device('cpu'))
    monkeypatch.setattr(Pipeline, 'prefetches', lambda self, recipe: True)
    ahead = FolderData(*sets, recipe, config, torch.device('cpu'))
    for name in ('train_batches', 'val_batches'):
        arguments = (1, 0) if name == 'train_batches' else ()
        random.seed(0), np.random.seed(0)
        pairs = zip(getattr(ahead, name)(*arguments), getattr(plain, name)(*arguments), strict=True)
        for (x, y), (expected, labels) in pairs:
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
            assert torch.equal(y, labels)


def test_the_prefetcher_is_for_gpus_and_leaves_erasing_to_the_workers() -> None:
    recipe, config = Recipe(), config_of(Recipe())
    found = {
        (name, prob): Pipeline(recipe.with_options({'reprob': prob}), config, torch.device(name)).prefetch
        for name in ('cpu', 'cuda')
        for prob in (0.0, 0.5)
    }
    assert [key for key, prefetch in found.items() if prefetch] == [('cuda', 0.0)]


def test_an_error_among_images_that_are_passed_over_is_not_lost() -> None:
    error = UserError('a reader ends')
    assert _collate([None, None, error]) is error and _collate([None, None]) is None
    assert _collate([(torch.zeros(2), 1)] * 3)[0].shape == (3, 2)
