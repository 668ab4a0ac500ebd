"""Publishing, fetching and verifying weights in a hub: a directory, or a Hugging Face organization.

A folder ``name.tag`` appears in a hub whole or not at all: it is written beside under a hidden name and renamed (in an
organization: it is one commit).
"""

import ctypes
import errno
import hashlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckFailed, UserError
from ..files import write_whole
from .organization import commit
from .package import Contents, gather, json_bytes
from .places import BUNDLED, MANIFEST, DirPlace, HfPlace, index, parse, place
from .verification import VerifyReport, verify
from .weights import CONFIG, INDEX_CFG, Folder, Found, locate, open_folder, parse_config

__all__ = ['VerifyReport', 'bundle', 'fetch', 'publish', 'verify', 'write_index']

_STALE = 3600  # seconds after which a hidden folder is what a killed publish left behind


def publish(
    run_or_model: str | Path | nn.Module,
    hub: str | Path,
    name: str | None = None,
    *,
    tag: str | None = None,
    replace: bool = False,
    private: bool = False,
    dry_run: bool = False,
    dtype: str | None = None,
    license: str | None = None,
    allow_dead: bool = False,
    **facts: Any,
) -> Path | str:
    """Put the weights of a training run, of a model, or published ones, into a hub.

    Args:
        run_or_model: The output folder of ``nf-zoo train``, a model made by ``timm.create_model``, or NAME or NAME.TAG
            of weights on the search path, which are copied byte for byte unless another option changes them.
        hub: A directory, ``hf://ORG`` or ``hf://ORG@BRANCH``.
        name: NAME or NAME.TAG; the run's or model's own name if it is not given.
        tag: The tag, if ``name`` has none; by default the name of the data set.
        replace: Replace other weights that are there under this name.
        private: Make a new repository private; one that is there keeps its visibility.
        dry_run: Check everything, also that the hub would not refuse the weights, and write nothing.
        dtype: Store floating-point weights as 'float32', 'float16' or 'bfloat16'; by default as they are.
        license: SPDX identifier, in the Hub's lower case; by default that of published weights, else apache-2.0.
        allow_dead: Publish a run though some of its blocks contribute nothing.
        **facts: What a run's result.json says, for a model or instead of it: ``dataset``, ``classes`` (their names),
            ``metrics`` (top1, top5, loss, n), ``recipe``, ``seed``, ``mean``, ``std`` ...; see ``contents.Facts``.

    Returns:
        The folder, or for an organization the address of the repository.

    Raises:
        UserError: unusable input, other weights under this name, or a hub that can't be written to.
        CheckFailed: the run's weights have changed since, or what is there under this name is damaged.
    """
    where = place(hub)
    if private and isinstance(where, DirPlace):
        raise UserError(f'private is for hf://ORG; who may read {where} is up to its file system')
    contents = gather(run_or_model, name, tag, dtype, license, facts, allow_dead)
    if isinstance(where, HfPlace):
        return commit(where, contents, replace=replace, private=private, dry_run=dry_run)
    target = where.path / contents.name_tag
    if not _present(where, contents, replace) and not dry_run:
        try:
            _write_folder(where.path, contents, replace)
        except FileExistsError:  # another publish was faster
            _present(where, contents, replace=False)
    return target


def fetch(name: str, hub: str | Path | None = None) -> Path:
    """A local folder with the verified files of NAME or NAME.TAG: the hub's own, or one in huggingface_hub's cache.

    Raises:
        UserError: there is none.
        CheckFailed: a file is not the one that was published.
    """
    folder = open_folder(locate(*parse(name), place(hub) if hub is not None else None))
    folder.check_all()
    return folder.path


def bundle(run_or_model: str | Path | nn.Module, name: str | None = None, **options: Any) -> Path:
    """``publish`` into the package itself, and pin the weights in its index; for those who build a release."""
    folder = publish(run_or_model, BUNDLED, name, **options)
    write_index()
    return Path(folder)


def write_index(pins: Sequence[tuple[str, str | Path]] = ()) -> Path:
    """Refresh the package's index from the manifests of the bundled folders.

    Args:
        pins: (NAME.TAG, directory) of published weights that are pinned without being bundled; they are then taken from
            ``hf://nf-zoo``, where the very same files must be.

    Returns:
        index.json. Its order is that of preference: what was there stays where it is, what is new comes last.
    """
    bundled = DirPlace(BUNDLED)
    found = {n: _index_entry(open_folder(locate(*parse(n), bundled))) | {'bundled': True} for n in bundled.names()}
    for name_tag, hub in pins:
        found[name_tag] = _index_entry(open_folder(locate(*parse(name_tag), place(hub)))) | {'bundled': False}
    kept = {n: found.get(n, entry) for n, entry in index().items() if n in found or not entry['bundled']}
    write_whole(BUNDLED / 'index.json', json_bytes(kept | found))
    return BUNDLED / 'index.json'


def _index_entry(folder: Folder) -> dict[str, Any]:
    folder.check_all()
    cfg, _ = parse_config(folder.read(CONFIG), folder)
    manifest = folder.manifest
    return {
        **{key: manifest[key] for key in ('sha256', 'bytes', 'dataset')},
        **{key: cfg[key] for key in INDEX_CFG if cfg.get(key) is not None},
        'top1': manifest['metrics'].get('top1'),
        'n': manifest['metrics'].get('n'),
        'files': {CONFIG: manifest['files'][CONFIG], MANIFEST: hashlib.sha256(folder.manifest_bytes).hexdigest()},
    }


# --- Writing ---


def _present(where: DirPlace, contents: Contents, replace: bool) -> bool:
    """Whether these weights are in the hub already. Raises: others are, or damaged ones, and may not be replaced."""
    target = where.path / contents.name_tag
    if target.is_symlink():
        raise UserError(f'{target} is a link; publish to where it points')
    if not where.has(contents.name_tag):
        return False
    name, tag = parse(contents.name_tag)
    try:
        folder = open_folder(Found(where, name, tag or ''))
        folder.check_all()
    except (CheckFailed, UserError) as error:
        if replace:
            return False
        raise CheckFailed(f'what is there already is damaged, replace it (--replace): {error}') from None
    if replace:
        return contents.same_as(folder.manifest)
    contents.refuse_others(str(target), folder.manifest)
    return True


def _write_folder(root: Path, contents: Contents, replace: bool) -> None:
    target = root / contents.name_tag
    fresh = root / f'.{contents.name_tag}.{uuid.uuid4().hex}'
    try:
        root.mkdir(parents=True, exist_ok=True)
        for old in root.glob(f'.{contents.name_tag}.{"?" * 32}'):
            if time.time() - old.stat().st_mtime > _STALE:
                shutil.rmtree(old, ignore_errors=True)
        try:
            fresh.mkdir()
            for name, data in contents.files.items():
                with open(fresh / name, 'wb') as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            if replace and target.exists():
                _exchange(fresh, target)
            else:
                os.rename(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and target.exists():
            raise FileExistsError(target) from None
        reason = error.strerror or error
        raise UserError(f"can't write to the hub {root}: {reason}; free space there, or choose another hub") from None


def _exchange(fresh: Path, target: Path) -> None:
    """Swap two folders in one step where the system has a call for it, so that ``target`` is there at any moment."""
    if sys.platform == 'linux':
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        call = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
        if call is not None and call(here, os.fsencode(fresh), here, os.fsencode(target), exchange) == 0:
            return
    aside = fresh.with_name(f'.{target.name}.{uuid.uuid4().hex}')
    os.rename(target, aside)
    try:
        os.rename(fresh, target)
    except OSError:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
