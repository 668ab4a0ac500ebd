"""Data sets that timm opens by name.

Some have random access (``torch/``, ``hfds/``). The others are read from their start as a stream (``wds/`` WebDataset's
shards, ``hfids/`` Hugging Face's in streaming mode, ``tfds/`` TensorFlow's).
"""

import os
import re
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from ...errors import UserError, nearest, one_line
from ..recipe import Recipe
from .memory import KNOWN
from .pictures import look_through, read_picture

STREAMS = ('hfids', 'tfds', 'wds')
_PACKAGES = {
    'hfds': ('datasets',),
    'hfids': ('datasets',),
    'tfds': ('tensorflow', 'tensorflow_datasets'),
    'wds': ('webdataset',),
}
# The sets of torchvision that timm opens.
_TORCH = ('cifar10', 'cifar100', 'fashion_mnist', 'image_folder', 'folder', 'imagenet', 'inat', 'inaturalist', 'kmnist',
          'mnist', 'places365', 'qmnist')  # fmt: skip
_SHARD = re.compile(r'\w[\w.+=-]*(/\w[\w.+=-]*)*')


def open_named(recipe: Recipe, split: str) -> 'TimmSet | StreamSet':
    """The ``split`` of the data set that timm opens by the recipe's name.

    Raises `UserError` for a name that timm doesn't know, a package or data that isn't there, and a set that doesn't say
    how many images or classes it has.
    """
    check_named(recipe)
    return (StreamSet if _kind(recipe) in STREAMS else TimmSet)(recipe, split)


def check_named(recipe: Recipe) -> None:
    """Raises `UserError` for a set whose packages are missing, and for a name that timm doesn't know.

    timm itself would take such a name for an image folder.
    """
    name, kind = recipe.dataset, _kind(recipe)
    given, _, rest = name.partition('/')
    if kind in _PACKAGES and rest:
        missing = [package.replace('_', '-') for package in _PACKAGES[kind] if not find_spec(package)]
        if missing:
            raise UserError(f'{kind}/ data sets need {" and ".join(missing)}: pip install {" ".join(missing)}')
        return
    if given == 'torch' and rest.lower() in _TORCH:
        return
    known = [*KNOWN, 'folder', *(f'torch/{each}' for each in _TORCH), *(f'{each}/NAME' for each in _PACKAGES)]
    raise UserError(f'unknown data set {name!r} (known: {", ".join(known)}){nearest(name, known)}')


def _kind(recipe: Recipe) -> str:
    return recipe.dataset.partition('/')[0].lower()


def _open(recipe: Recipe, split: str, **options: Any) -> Any:
    """What timm's ``create_dataset`` makes of the recipe's name."""
    name, root, kind = recipe.dataset, recipe.data_dir, _kind(recipe)
    if root is None and kind not in ('hfds', 'hfids', 'tfds'):  # which have places of their own
        raise UserError(f'{name} needs its folder: --data-dir DIR')
    if kind in _PACKAGES:
        options |= {'input_key': recipe.input_key, 'target_key': recipe.target_key}
    options |= {'download': recipe.dataset_download, 'input_img_mode': picture_mode(recipe)}
    try:
        return create_dataset(name, root, split, is_training=split == recipe.train_split, **options)
    except Exception as error:  # each of the packages behind the names has classes of its own
        said = one_line(error)
        said = said.replace('please pass `num_samples` explicitly', f'give {_count_option(recipe, split)} N')
        raise UserError(f'{name} cannot be read from {root}: {said}') from None


def _count_option(recipe: Recipe, split: str) -> str:
    return '--train-num-samples' if split == recipe.train_split else '--val-num-samples'


def channels_of(recipe: Recipe) -> int:
    """Channels of the pictures: what ``input_size`` or ``in_chans`` says, else 3, as in timm's train.py."""
    return recipe.input_size[0] if recipe.input_size else (recipe.in_chans or 3)


def picture_mode(recipe: Recipe) -> str:
    """Pillow's mode of the pictures: grey for models of one channel, as in timm's train.py."""
    return 'L' if channels_of(recipe) == 1 else 'RGB'


def _classes(found: Any, recipe: Recipe) -> list[str]:
    """The names of the classes, or their numbers if the recipe says how many: counting labels would cost an epoch."""
    named = getattr(found, 'classes', None) or getattr(getattr(found, 'reader', None), 'class_to_idx', None)
    classes = [str(c) for c in named or range(recipe.num_classes or 0)]
    if not classes:
        raise UserError(f'{recipe.dataset} does not name its classes; say how many with --num-classes')
    return classes


class TimmSet(Dataset):
    """Pictures and labels by number."""

    def __init__(self, recipe: Recipe, split: str) -> None:
        self.pictures, self.mode = _open(recipe, split), picture_mode(recipe)
        if isinstance(self.pictures, ImageFolder):  # read like our own folders: nothing but pictures, each once
            look_through(Path(self.pictures.root))
            self.pictures.loader = partial(read_picture, mode=self.mode)
        self.classes = _classes(self.pictures, recipe)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        picture, label = self.pictures[number]
        return picture.convert(self.mode), label


class StreamSet:
    """Pictures and labels one after the other.

    ``pictures`` is timm's ``IterableImageDataset``. Its reader gives a share to each worker of each process of the run.
    The length is the number of images that the set announces.
    """

    def __init__(self, recipe: Recipe, split: str) -> None:
        self.name, self.split = recipe.dataset, split
        count = recipe.train_num_samples if split == recipe.train_split else recipe.val_num_samples
        self.pictures = _open(
            recipe, split, batch_size=recipe.batch_size, seed=recipe.seed, num_samples=count, repeats=0
        )
        self.reader = self.pictures.reader
        if not self.reader.num_samples:
            option = _count_option(recipe, split)
            raise UserError(f'{self.name} does not say how many images {split} has; give {option} N')
        self.classes = _classes(self.pictures, recipe)
        self.most_workers = self._most_workers()

    def __len__(self) -> int:
        return int(self.reader.num_samples)

    def _most_workers(self) -> int:
        """The largest number of workers that all find a share. timm's other readers refuse too many themselves."""
        if not self.name.lower().startswith('wds/'):
            return sys.maxsize
        shards, processes = self.reader.split_info.filenames, self.reader.dist_num_replicas
        for name in shards:
            if not _SHARD.fullmatch(name) or '..' in name:  # WebDataset gives some names to a shell
                raise UserError(f'{self.name}: {name!r} is no name of a shard in {self.reader.root}')
            path = os.path.join(self.reader.root, name)
            if '://' not in path and not os.path.isfile(path):  # timm would go on without it
                raise UserError(f'{self.name}: the shard {path} is missing')
        if len(shards) < processes and self.reader.is_training:
            raise UserError(f'{self.name}: {len(shards)} shards of {self.split} are too few for {processes} processes')
        return max(1, len(shards) // processes)
