"""One published NAME.TAG: its manifest and config, parsed strictly, and its files, each compared with its hash.

Every file is read into memory once, hashed, and those very bytes are parsed. Nothing is ever unpickled.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckFailed, UserError
from ..files import read_json, readable
from .index import index
from .names import CONFIG, MANIFEST, WEIGHTS
from .places import HfPlace, Place
from .schema import (
    CONFIG_KEYS,
    FORMAT,
    MANIFEST_KEYS,
    MANIFEST_OPTIONS,
    METRICS,
    MODEL_ARGS,
    PRETRAINED_CFG_KEYS,
    SMALL_LIMIT,
    short,
    validate,
)


@dataclass(frozen=True)
class Entry:
    """The address of one set of weights: a place and a NAME.TAG. It need not exist."""

    place: Place
    name: str
    tag: str

    @property
    def name_tag(self) -> str:
        """NAME.TAG."""
        return f'{self.name}.{self.tag}'

    def __str__(self) -> str:
        return f'{self.place}/{self.name_tag}'


@dataclass(frozen=True)
class Folder(Entry):
    """One published NAME.TAG as it was when it was opened. Only the published bytes are ever read from it."""

    path: Path
    manifest: dict[str, Any]
    manifest_bytes: bytes

    def read(self, filename: str) -> bytes:
        """A file of the manifest.

        Raises:
            CheckFailed: the file is not the published one.
            UserError: the file is missing or too large.
        """
        path, limit = self.locate(filename)
        data = _read(path, limit)
        self.compare(path, filename, hashlib.sha256(data).hexdigest())
        return data

    def check(self, filename: str) -> None:
        """``read`` without keeping the bytes: takes one megabyte of memory, whatever the size of the file."""
        path, limit = self.locate(filename)
        sha256 = hashlib.sha256()
        with readable(path), path.open('rb') as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
                if file.tell() > limit:
                    raise UserError(f'{path} has more than {limit:,} bytes')
        self.compare(path, filename, sha256.hexdigest())

    def check_all(self) -> None:
        """Check the hash of every file that the manifest names. Raises as :meth:`check` does."""
        for filename in self.manifest['files']:
            self.check(filename)

    def is_still_there(self) -> bool:
        """Whether it has not been replaced by another since it was opened."""
        return _read(self.path / MANIFEST, SMALL_LIMIT) == self.manifest_bytes

    def locate(self, filename: str) -> tuple[Path, int]:
        """The path of a file of the manifest, and the bytes that it may have."""
        if filename != WEIGHTS:
            return self.place.file(self.name_tag, self.path, filename), SMALL_LIMIT
        limit = self.manifest['bytes']
        path = self.place.file(self.name_tag, self.path, filename, limit)
        size = path.stat().st_size
        if size != limit:
            raise CheckFailed(f'{self}/{filename} has {size} bytes instead of {limit}; {remedy(self, path)}')
        return path, limit

    def compare(self, path: Path, filename: str, actual: str) -> None:
        """Raise `CheckFailed` if ``actual`` is not the hash that the manifest has for ``filename``."""
        _same(actual, self.manifest['files'][filename], f'{self}/{filename}', remedy(self, path))


def open_folder(entry: Entry) -> Folder:
    """Read and check the manifest. In a pinned place, its ``files`` are the hashes of the package's index.

    Raises:
        UserError: there is no manifest, or it is malformed or that of another model.
        CheckFailed: the place is pinned, and this is not the manifest that the index pins.
    """
    path = entry.place.snapshot(entry.name_tag)
    file = entry.place.file(entry.name_tag, path, MANIFEST)
    data = _read(file, SMALL_LIMIT)
    pins: dict[str, str] = {}
    if entry.place.pinned:
        pinned = index()[entry.name_tag]
        pins = {**pinned['files'], WEIGHTS: pinned['sha256']}
        _same(hashlib.sha256(data).hexdigest(), pins.pop(MANIFEST), f'{entry}/{MANIFEST}', remedy(entry, file))
    manifest = parse_manifest(data, entry, file)
    manifest['files'].update(pins)
    return Folder(entry.place, entry.name, entry.tag, path, manifest, data)


def parse_manifest(data: bytes, entry: Entry, file: Path | None = None) -> dict[str, Any]:
    """The manifest of ``entry`` from its bytes, which lie in ``file``.

    Raises:
        UserError: it is malformed, contradicts itself, or is that of another model.
    """
    where = f'{entry}/{MANIFEST}'
    manifest = read_json(data, where)
    if isinstance(manifest.get('format'), int) and manifest['format'] > FORMAT:
        raise UserError(f'{where} has the newer format {manifest["format"]}; upgrade nf-zoo')
    validate({key: manifest.get(key) for key in MANIFEST_KEYS}, MANIFEST_KEYS, where)
    validate({key: manifest[key] for key in MANIFEST_OPTIONS if key in manifest}, MANIFEST_OPTIONS, where)
    metrics = manifest['metrics']
    validate({key: metrics[key] for key in METRICS if metrics.get(key) is not None}, METRICS, f'{where}, metrics')
    if (metrics.get('top1') or 0) > (100 if metrics.get('top5') is None else metrics['top5']):
        raise UserError(f'{where}: top1 = {metrics["top1"]} is more than top5 = {metrics["top5"]}')
    owner = f'{manifest["architecture"]}.{manifest["tag"]}'
    if owner != entry.name_tag:
        raise UserError(f'{where} is the manifest of {owner}; {remedy(entry, file)}')
    if manifest['files'].get(WEIGHTS) != manifest['sha256'] or CONFIG not in manifest['files']:
        raise UserError(f'{where}: its hashes contradict one another; {remedy(entry, file)}')
    return manifest


_REQUIRED = ('num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')


def parse_config(data: bytes, entry: Entry) -> tuple[dict[str, Any], dict[str, Any]]:
    """timm's config.json, as the keyword arguments of timm's PretrainedCfg and those of the model.

    Raises:
        UserError: it is malformed, contradicts itself, is that of another model, or has a key or value that is not
            allowed.
    """
    where = f'{entry}/{CONFIG}'
    config = read_json(data, where)
    cfg, model_args = config.get('pretrained_cfg'), config.get('model_args', {})
    validate(config, CONFIG_KEYS, where)
    if config.get('architecture') != entry.name:
        raise UserError(f'{where} is the config of {short(config.get("architecture"))}; {remedy(entry)}')
    if cfg is None:
        raise UserError(f'{where} has no pretrained_cfg; {remedy(entry)}')
    validate(cfg, PRETRAINED_CFG_KEYS, where)
    validate(model_args, MODEL_ARGS, where)
    # the root of the file wins, as in timm
    cfg.update({key: config[key] for key in ('num_classes', 'label_names', 'label_descriptions') if key in config})
    cfg.update(architecture=entry.name, tag=entry.tag)
    missing = [key for key in _REQUIRED if cfg.get(key) is None]
    if missing:
        raise UserError(f'{where} has no {missing[0]}; {remedy(entry)}')
    channels = cfg['input_size'][0]
    for key in ('mean', 'std'):
        if len(cfg[key]) not in (1, channels):
            raise UserError(f'{where}: {key} has {len(cfg[key])} values for {channels} channels')
    if cfg.get('label_names') and len(cfg['label_names']) != cfg['num_classes']:
        raise UserError(f'{where}: {len(cfg["label_names"])} label_names for {cfg["num_classes"]} classes')
    # A model of other classes or channels would keep random values where the weights don't fit.
    for key, expected in (('num_classes', cfg['num_classes']), ('in_chans', channels)):
        if model_args.get(key, expected) != expected:
            raise UserError(f'{where}: {key} is {model_args[key]} in model_args, {expected} in pretrained_cfg')
    frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
    return frozen, model_args


def remedy(entry: Entry, path: Path | None = None) -> str:
    """What to do about a bad folder, or about the bad file ``path`` in it. Copies of other revisions stay."""
    if isinstance(entry.place, HfPlace) and path is not None:
        return f'delete {path.resolve()} and fetch it again'
    if isinstance(entry.place, HfPlace):
        return f'tell {entry.place.org}, or take another revision'
    return 'reinstall nf-zoo' if entry.place.pinned else f'publish {entry.name_tag} again'


def _same(actual: str, expected: str, where: str, remedy: str) -> None:
    if actual != expected:
        raise CheckFailed(f'{where} is not the published file (sha256 {actual} instead of {expected}); {remedy}')


def _read(path: Path, limit: int) -> bytes:
    with readable(path), path.open('rb') as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(f'{path} has more than {limit:,} bytes')
    return data
