"""Putting weights into the package itself, for those who build a release."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..files import write_whole
from .folder import Folder, open_folder
from .index import CFG_KEYS, bundled, index
from .names import CONFIG, MANIFEST, is_name_tag, parse
from .package import json_bytes
from .places import DirPlace, parse_place
from .publishing import publish
from .weights import locate, read_config


def bundle(run_or_model: str | Path | nn.Module, name: str | None = None, **options: Any) -> Path:
    """``publish`` into the package itself, and pin the weights in its index."""
    folder = publish(run_or_model, bundled(), name, **options)
    write_index()
    return Path(folder)


def write_index(pins: Sequence[tuple[str, str | Path]] = ()) -> Path:
    """Refresh the package's index from the manifests of the bundled folders.

    Args:
        pins: (NAME.TAG, directory) of published weights to pin without bundling them. They are then taken from
            ``hf://nf-zoo``, where the very same files must be.

    Returns:
        index.json. Its order is that of preference: old entries keep their place, new ones come last.
    """
    place = DirPlace(bundled())
    names = [name_tag for name_tag in place.names() if is_name_tag(name_tag)]
    found = {n: _index_entry(open_folder(locate(*parse(n), place))) | {'bundled': True} for n in names}
    for name_tag, hub in pins:
        found[name_tag] = _index_entry(open_folder(locate(*parse(name_tag), parse_place(hub)))) | {'bundled': False}
    kept = {n: found.get(n, entry) for n, entry in index().items() if n in found or not entry['bundled']}
    path = bundled() / 'index.json'
    write_whole(path, json_bytes(kept | found))
    return path


def _index_entry(folder: Folder) -> dict[str, Any]:
    folder.check_all()
    cfg, _ = read_config(folder)
    manifest = folder.manifest
    return {
        **{key: manifest[key] for key in ('sha256', 'bytes', 'dataset')},
        **{key: cfg[key] for key in CFG_KEYS if cfg.get(key) is not None},
        'top1': manifest['metrics'].get('top1'),
        'n': manifest['metrics'].get('n'),
        'files': {CONFIG: manifest['files'][CONFIG], MANIFEST: hashlib.sha256(folder.manifest_bytes).hexdigest()},
    }
