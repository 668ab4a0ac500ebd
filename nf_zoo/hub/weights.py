"""Pretrained weights: where they are, whether they are the ones that were published, and what is in them.

A hub is a place with one folder (or Hugging Face repository) per ``name.tag``: model.safetensors, config.json (timm's
format), manifest.json, README.md. Every file that is used here is read into memory once, hashed, and those very bytes
are parsed. Names, keys and arguments from a place are checked against closed lists before they become a path or reach
timm, and nothing is ever unpickled.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CheckFailed, UserError, nearest
from . import tensors
from .huggingface import Unreachable
from .places import (
    BUNDLED,
    MANIFEST,
    ORGANIZATION,
    DirPlace,
    HfPlace,
    Place,
    index,
    known,
    parse,
    readable,
    search_path,
    tags,
)
from .schema import (
    CONFIG_KEYS,
    FORMAT,
    MANIFEST_KEYS,
    MANIFEST_OPTIONS,
    MODEL_ARGS,
    PRETRAINED_CFG_KEYS,
    read_json,
    short,
    validate,
)

__all__ = [
    'BUNDLED',
    'ORGANIZATION',
    'DirPlace',
    'Folder',
    'Found',
    'HfPlace',
    'Place',
    'Weights',
    'cfg_of',
    'find',
    'index',
    'known',
    'load',
    'locate',
    'open_folder',
    'opened',
    'parse',
    'parse_config',
    'search_path',
    'tags',
]

_logger = logging.getLogger(__name__)

WEIGHTS, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'
SMALL_LIMIT = 4 << 20  # bytes of any other file; a config with the 21,843 class names of ImageNet-21k has 1 MB


@dataclass(frozen=True)
class Found:
    """A place that has, or should have, the weights ``name.tag``."""

    place: Place
    name: str
    tag: str

    @property
    def name_tag(self) -> str:
        return f'{self.name}.{self.tag}'

    def __str__(self) -> str:
        return f'{self.place}/{self.name_tag}'


@dataclass(frozen=True)
class Folder(Found):
    """One published ``name.tag`` as it was when it was opened; every byte read from it is the published one."""

    path: Path
    manifest: dict[str, Any]
    manifest_bytes: bytes

    def read(self, filename: str) -> bytes:
        """A file of the manifest. Raises CheckFailed: not the one that was published; UserError: it is missing."""
        path, limit = self.sized(filename)
        data = _read(path, limit)
        self.compare(path, filename, hashlib.sha256(data).hexdigest())
        return data

    def check(self, filename: str) -> None:
        """`read` without keeping what was read: in the memory of one megabyte, whatever the size of the file."""
        path, limit = self.sized(filename)
        sha256 = hashlib.sha256()
        with readable(path), path.open('rb') as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                if file.tell() > limit:
                    raise UserError(f'{path} has more than {limit} bytes')
        self.compare(path, filename, sha256.hexdigest())

    def check_all(self) -> None:
        for filename in self.manifest['files']:
            self.check(filename)

    def is_still_there(self) -> bool:
        """Whether it has not been replaced by another since it was opened."""
        return _read(self.path / MANIFEST, SMALL_LIMIT) == self.manifest_bytes

    def sized(self, filename: str) -> tuple[Path, int]:
        path = self.place.file(self.name_tag, self.path, filename)
        if filename != WEIGHTS:
            return path, SMALL_LIMIT
        limit, size = self.manifest['bytes'], path.stat().st_size
        if size != limit:
            raise CheckFailed(f'{self}/{filename} has {size} bytes instead of {limit}; {_remedy(self, path)}')
        return path, limit

    def compare(self, path: Path, filename: str, actual: str) -> None:
        _same(actual, self.manifest['files'][filename], f'{self}/{filename}', _remedy(self, path))


@dataclass(frozen=True)
class Opened:
    """Weights that can be read: their folder, the open file and what timm's builder takes."""

    folder: Folder
    file: BinaryIO
    size: int
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]

    def read(self, like: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The verified weights, of the dtype and on the device of their namesakes in ``like``.

        Raises:
            CheckFailed: not the published file; UserError: no weights.
        """
        folder, path, where = self.folder, Path(self.file.name), f'{self.folder}/{WEIGHTS}'
        with readable(path):
            content = tensors.read(self.file, self.size)
        if content is None:
            raise CheckFailed(f'{where} has not {self.size} bytes any more; {_remedy(folder, path)}')
        buffer, sha256 = content
        folder.compare(path, WEIGHTS, sha256)
        return tensors.unpack(buffer, where, like)


@dataclass(frozen=True)
class Weights:
    """Verified weights; ``pretrained_cfg`` and ``model_args`` are what timm's builder takes."""

    state_dict: dict[str, torch.Tensor]
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]
    manifest: dict[str, Any]
    place: Place
    tag: str


INDEX_CFG = (
    'num_classes',
    'input_size',
    'mean',
    'std',
    'interpolation',
    'crop_pct',
    'crop_mode',
    'label_names',
    'license',
)


def cfg_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The part of an index entry that timm's PretrainedCfg takes."""
    cfg = {key: entry[key] for key in INDEX_CFG if key in entry}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}


def find(name: str, tag: str | None = None) -> Found | None:
    """The first place on the search path with weights of this name; without a tag, of its best one.

    A place that can't be reached is passed over with a warning.

    Raises:
        UserError: a name that is none; Unreachable: nothing was found, and a place could not be asked.
    """
    name, tag = parse(f'{name}.{tag}' if tag is not None else name)
    if tag is None:
        tag = next(iter(tags(name)), None)
    if tag is None:
        return None
    silent: Unreachable | None = None
    for place in search_path():
        try:
            if place.has(f'{name}.{tag}'):
                return Found(place, name, tag)
        except Unreachable as error:
            _logger.warning(f'{place} is passed over: {error}')
            silent = silent or error
    if silent is not None:
        raise silent
    return None


def locate(name: str, tag: str | None = None, place: Place | None = None) -> Found:
    """``find``, or the same in one place only; UserError with the nearest known name if there is nothing."""
    if place is None:
        found = find(name, tag)
        places, names = search_path(), [f'{n}.{t}' for n, ts in known().items() for t in ts]
    else:
        name, tag = parse(f'{name}.{tag}' if tag is not None else name)
        names, places = place.contents() if tag is None else place.names(), [place]
        if tag is None:
            tag = next((n.partition('.')[2] for n in names if n.partition('.')[0] == name), None)
        found = Found(place, name, tag) if tag is not None and place.has(f'{name}.{tag}') else None
    if found is None:
        wanted = f'{name}.{tag}' if tag else name
        raise UserError(f'there are no weights of {wanted} in {", ".join(map(str, places))}{nearest(wanted, names)}')
    return found


def load(name: str, tag: str | None = None, place: Place | None = None) -> Weights:
    """Read and verify weights; nothing is built from a byte before its hash has been checked.

    Raises:
        UserError: there are none, or their files are not of the form that a hub has.
        CheckFailed: a file is not the one that was published.
    """
    with opened(name, tag, place) as found:
        folder = found.folder
        return Weights(found.read(), found.pretrained_cfg, found.model_args, folder.manifest, folder.place, folder.tag)


@contextmanager
def opened(name: str, tag: str | None = None, place: Place | None = None) -> Iterator[Opened]:
    """``load`` without reading the weights yet; their file is open, so that no other can take its place any more."""
    found = locate(name, tag, place)
    with ExitStack() as stack:
        while True:
            folder = open_folder(found)
            failure: CheckFailed | None = None
            try:
                path, size = folder.sized(WEIGHTS)
                with readable(path):
                    file = stack.enter_context(path.open('rb'))
                config = folder.read(CONFIG)
            except CheckFailed as error:
                failure = error
            if folder.is_still_there():
                break
        if failure is not None:
            raise failure
        yield Opened(folder, file, size, *parse_config(config, found))


def open_folder(found: Found) -> Folder:
    """Read and check the manifest; its ``files`` are the hashes that the index pins where the place is a pinned one.

    Raises:
        UserError: none there, not of a manifest's form, or of another model.
        CheckFailed: a pinned place, and not the manifest that the index pins.
    """
    path = found.place.snapshot(found.name_tag)
    file = found.place.file(found.name_tag, path, MANIFEST)
    data = _read(file, SMALL_LIMIT)
    where = f'{found}/{MANIFEST}'
    pins: dict[str, str] = {}
    if found.place.pinned:
        entry = index()[found.name_tag]
        pins = {**entry['files'], WEIGHTS: entry['sha256']}
        _same(hashlib.sha256(data).hexdigest(), pins.pop(MANIFEST), where, _remedy(found, file))
    manifest = read_json(data, where)
    if isinstance(manifest.get('format'), int) and manifest['format'] > FORMAT:
        raise UserError(f'{where} is of a newer format ({manifest["format"]}); upgrade nf-zoo')
    validate({key: manifest.get(key) for key in MANIFEST_KEYS}, MANIFEST_KEYS, where)
    validate({key: manifest[key] for key in MANIFEST_OPTIONS if key in manifest}, MANIFEST_OPTIONS, where)
    owner = f'{manifest["architecture"]}.{manifest["tag"]}'
    if owner != found.name_tag:
        raise UserError(f'{where} is the one of {owner}; {_remedy(found, file)}')
    if manifest['files'].get(WEIGHTS) != manifest['sha256'] or CONFIG not in manifest['files']:
        raise UserError(f'{where}: its hashes contradict one another; {_remedy(found, file)}')
    manifest['files'].update(pins)
    return Folder(found.place, found.name, found.tag, path, manifest, data)


def _same(actual: str, expected: str, where: str, remedy: str) -> None:
    if actual != expected:
        raise CheckFailed(f'{where} is not the published file (sha256 {actual} instead of {expected}); {remedy}')


def _remedy(found: Found, path: Path | None = None) -> str:
    """What to do about a bad folder, or one bad file of it; the copies of other revisions are left alone."""
    if isinstance(found.place, HfPlace) and path is not None:
        return f'delete {path.resolve()} and fetch it again'
    if isinstance(found.place, HfPlace):
        return f'tell {found.place.org}, or take another revision'
    return 'reinstall nf-zoo' if found.place.pinned else f'publish {found.name_tag} again'


def _read(path: Path, limit: int) -> bytes:
    with readable(path), path.open('rb') as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f'{path} has more than {limit} bytes')
    return data


_REQUIRED = ('num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')


def parse_config(data: bytes, found: Found) -> tuple[dict[str, Any], dict[str, Any]]:
    """timm's config.json as the keyword arguments of timm's PretrainedCfg, and the model's own.

    Raises:
        UserError: no such config, one of another model, or a key or value that is not allowed.
    """
    where = f'{found}/{CONFIG}'
    config = read_json(data, where)
    cfg, model_args = config.get('pretrained_cfg'), config.get('model_args', {})
    validate(config, CONFIG_KEYS, where)
    if config.get('architecture') != found.name:
        raise UserError(f'{where} is the one of {short(config.get("architecture"))}; {_remedy(found)}')
    if cfg is None:
        raise UserError(f'{where} has no pretrained_cfg; {_remedy(found)}')
    validate(cfg, PRETRAINED_CFG_KEYS, where)
    validate(model_args, MODEL_ARGS, where)
    # the root of the file wins, as in timm
    cfg.update({key: config[key] for key in ('num_classes', 'label_names', 'label_descriptions') if key in config})
    cfg.update(architecture=found.name, tag=found.tag)
    missing = [key for key in _REQUIRED if cfg.get(key) is None]
    if missing:
        raise UserError(f'{where} has no {missing[0]}; {_remedy(found)}')
    channels = cfg['input_size'][0]
    for key in ('mean', 'std'):
        if len(cfg[key]) not in (1, channels):
            raise UserError(f'{where}: {key} has {len(cfg[key])} values for {channels} channels')
    if cfg.get('label_names') and len(cfg['label_names']) != cfg['num_classes']:
        raise UserError(f'{where}: {len(cfg["label_names"])} label_names for {cfg["num_classes"]} classes')
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
    return frozen, model_args
