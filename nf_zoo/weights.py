"""Pretrained weights: where they are, whether they are the ones that were published, and what is in them.

A hub is a place with one folder (or Hugging Face repository) per ``name.tag``: model.safetensors, config.json (timm's
format), manifest.json, README.md. Every file that is used here is read into memory once, hashed, and those very bytes
are parsed. Names, keys and arguments from a place are checked against closed lists before they become a path or reach
timm, and nothing is ever unpickled.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import CheckFailed, UserError, nearest
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
    'parse',
    'parse_config',
    'search_path',
    'tags',
]

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
    sha256: str  # of the manifest

    def read(self, filename: str) -> bytes:
        """A file of the manifest. Raises CheckFailed: not the one that was published; UserError: it is missing."""
        where = f'{self}/{filename}'
        limit = SMALL_LIMIT
        if filename == WEIGHTS:
            limit = self.manifest['bytes']
            size = self.place.file(self.name_tag, self.path, filename).stat().st_size
            if size != limit:
                raise CheckFailed(f'{where} has {size} bytes instead of {limit}; {_remedy(self)}')
        check_hash(
            data := _read(self, self.path, filename, limit), self.manifest['files'][filename], where, _remedy(self)
        )
        return data


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

    Raises:
        UserError: a name that is none, or a place that can't be reached.
    """
    name, tag = parse(f'{name}.{tag}' if tag is not None else name)
    if tag is None:
        tag = next(iter(tags(name)), None)
    if tag is None:
        return None
    return next((Found(p, name, tag) for p in search_path() if p.has(f'{name}.{tag}')), None)


def locate(name: str, tag: str | None = None, place: Place | None = None) -> Found:
    """``find``, or the same in one place only; UserError with the nearest known name if there is nothing."""
    if place is None:
        found = find(name, tag)
        places, names = search_path(), [f'{n}.{t}' for n, ts in known().items() for t in ts]
    else:
        name, tag = parse(f'{name}.{tag}' if tag is not None else name)
        names, places = place.names(), [place]
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
    found = locate(name, tag, place)
    folder = open_folder(found)
    try:
        config, data = folder.read(CONFIG), folder.read(WEIGHTS)
    except CheckFailed:
        # The folder may have been replaced by another since its manifest was read.
        again = open_folder(found)
        if again.manifest == folder.manifest:
            raise
        folder, config, data = again, again.read(CONFIG), again.read(WEIGHTS)
    cfg, model_args = parse_config(config, found)
    return Weights(_tensors(data, found), cfg, model_args, folder.manifest, found.place, found.tag)


def open_folder(found: Found) -> Folder:
    """Read and check the manifest; its ``files`` are the hashes that the index pins where the place is a pinned one.

    Raises:
        UserError: none there, not of a manifest's form, or of another model.
        CheckFailed: a pinned place, and not the manifest that the index pins.
    """
    path = found.place.snapshot(found.name_tag)
    data = _read(found, path, MANIFEST, SMALL_LIMIT)
    where = f'{found}/{MANIFEST}'
    pins: dict[str, str] = {}
    if found.place.pinned:
        entry = index()[found.name_tag]
        pins = {**entry['files'], WEIGHTS: entry['sha256']}
        check_hash(data, pins.pop(MANIFEST), where, _remedy(found))
    manifest = read_json(data, where)
    if isinstance(manifest.get('format'), int) and manifest['format'] > FORMAT:
        raise UserError(f'{where} is of a newer format ({manifest["format"]}); upgrade nf-zoo')
    validate({key: manifest.get(key) for key in MANIFEST_KEYS}, MANIFEST_KEYS, where)
    owner = f'{manifest["architecture"]}.{manifest["tag"]}'
    if owner != found.name_tag:
        raise UserError(f'{where} is the one of {owner}; {_remedy(found)}')
    if manifest['files'].get(WEIGHTS) != manifest['sha256'] or CONFIG not in manifest['files']:
        raise UserError(f'{where}: its hashes contradict one another; {_remedy(found)}')
    manifest['files'].update(pins)
    return Folder(found.place, found.name, found.tag, path, manifest, hashlib.sha256(data).hexdigest())


def check_hash(data: bytes, expected: str, where: str, remedy: str) -> None:
    """Raises CheckFailed: another sha256."""
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise CheckFailed(f'{where} is not the published file (sha256 {actual} instead of {expected}); {remedy}')


def _remedy(found: Found) -> str:
    if isinstance(found.place, HfPlace):
        return f'delete models--{found.place.org}--{found.name_tag} in the cache of huggingface_hub and fetch it again'
    return 'reinstall nf-zoo' if found.place.pinned else f'publish {found.name_tag} again'


def _read(found: Found, snapshot: Path, filename: str, limit: int) -> bytes:
    path = found.place.file(found.name_tag, snapshot, filename)
    with readable(path), path.open('rb') as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f'{path} has more than {limit} bytes')
    return data


def _tensors(data: bytes, found: Found) -> dict[str, torch.Tensor]:
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f'{found}/{WEIGHTS} is no valid safetensors file: {reason[:200]}') from None
    if not tensors:
        raise UserError(f'{found}/{WEIGHTS} has no tensors')
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() and tensor.dtype != torch.int64:
            raise UserError(f'{found}/{WEIGHTS}: {short(key)} is of {tensor.dtype}; weights are floating point')
    return tensors


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
