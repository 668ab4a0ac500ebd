"""Publishing, fetching and verifying weights in a hub: a directory, or a Hugging Face organization.

A folder ``name.tag`` appears in a hub whole or not at all: it is written beside under a hidden name and renamed (in an
organization: it is one commit).
"""

import ctypes
import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from . import card
from .contents import Contents, gather, json_bytes
from .errors import CheckFailed, UserError
from .files import write_whole
from .places import BUNDLED, MANIFEST, DirPlace, HfPlace, hf_errors, index, parse, place
from .schema import read_json
from .weights import CARD, CONFIG, INDEX_CFG, Folder, Found, Weights, cfg_of, load, locate, open_folder, parse_config

_STALE = 3600  # seconds after which a hidden folder is what a killed publish left behind


def publish(
    run_or_model: str | Path | nn.Module,
    hub: str | Path,
    name: str | None = None,
    *,
    tag: str | None = None,
    replace: bool = False,
    dry_run: bool = False,
    dtype: str | None = None,
    license: str = 'apache-2.0',
    **facts: Any,
) -> Path | str:
    """Put the weights of a training run, or of a model, into a hub.

    Args:
        run_or_model: The output folder of ``nf-zoo train``, or a model made by ``timm.create_model``.
        hub: A directory, ``hf://ORG`` or ``hf://ORG@BRANCH``.
        name: NAME or NAME.TAG; the run's or model's own name if it is not given.
        tag: The tag, if ``name`` has none; by default the name of the data set.
        replace: Replace other weights that are there under this name.
        dry_run: Check everything that can be checked without the hub, and write nothing.
        dtype: Store floating-point weights as 'float32', 'float16' or 'bfloat16'; by default as they are.
        license: SPDX identifier, in the Hub's lower case.
        **facts: What a run's result.json says, for a model or instead of it: ``dataset``, ``classes`` (their names),
            ``metrics`` (top1, top5, loss, n), ``recipe``, ``seed``, ``mean``, ``std`` ...; see ``contents.Facts``.

    Returns:
        The folder, or for an organization the address of the repository.

    Raises:
        UserError: unusable input, other weights under this name, or a hub that can't be written to.
        CheckFailed: the run's weights have changed since, or what is there under this name is damaged.
    """
    where = place(hub)
    contents = gather(run_or_model, name, tag, dtype, license, facts)
    if isinstance(where, HfPlace):
        return _commit(where, contents, replace, dry_run)
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
    _read_all(folder)
    return folder.path


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found; there is only one where everything held."""

    name_tag: str
    place: str
    path: Path
    files: Mapping[str, str]  # sha256 by name
    recorded: Mapping[str, float]  # metrics of the manifest
    measured: Mapping[str, float] | None  # those of today, if they were measured

    def __str__(self) -> str:
        lines = [
            f'{self.name_tag} in {self.place}: verified',
            *(f'  {sha}  {file}' for file, sha in self.files.items()),
        ]
        metrics = {'recorded': self.recorded, 'measured': self.measured or {}}
        lines += [f'  {k}: top-1 {m["top1"]:.2f} % of {m["n"]}' for k, m in metrics.items() if 'top1' in m and 'n' in m]
        return '\n'.join(lines)


def verify(name: str, data_dir: str | Path | None = None, hub: str | Path | None = None) -> VerifyReport:
    """Check NAME or NAME.TAG through: every file's hash, that manifest, config, card and registry agree, that the
    weights are the architecture's, and, with ``data_dir``, that the accuracy is the recorded one.

    Raises:
        UserError: there is nothing of this name.
        CheckFailed: one of these does not hold.
    """
    folder = open_folder(locate(*parse(name), place(hub) if hub is not None else None))
    files = _read_all(folder)
    weights = load(folder.name, folder.tag, folder.place)
    if weights.manifest != folder.manifest:
        raise CheckFailed(f'{folder} was replaced while it was verified; run it again')
    _agree(folder, weights, files)
    try:
        model = timm.create_model(folder.name, pretrained_cfg=weights.pretrained_cfg, **weights.model_args)
        model.load_state_dict(weights.state_dict)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise CheckFailed(f'{folder}: these are no weights of {folder.name}: {reason}') from None
    recorded, measured = folder.manifest['metrics'], None
    if data_dir is not None:
        measured = _measure(folder, model, data_dir)
    return VerifyReport(folder.name_tag, str(folder.place), folder.path, folder.manifest['files'], recorded, measured)


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
    files = _read_all(folder)
    cfg, _ = parse_config(files[CONFIG], folder)
    manifest = folder.manifest
    return {
        **{key: manifest[key] for key in ('sha256', 'bytes', 'dataset')},
        **{key: cfg[key] for key in INDEX_CFG if cfg.get(key) is not None},
        'top1': manifest['metrics'].get('top1'),
        'n': manifest['metrics'].get('n'),
        'files': {CONFIG: manifest['files'][CONFIG], MANIFEST: folder.sha256},
    }


def _read_all(folder: Folder) -> dict[str, bytes]:
    """Every file of the manifest, by name, each verified."""
    return {name: folder.read(name) for name in folder.manifest['files']}


def _agree(folder: Folder, weights: Weights, files: dict[str, bytes]) -> None:
    manifest, cfg = folder.manifest, weights.pretrained_cfg
    claims: list[tuple[str, Any, Any]] = [
        (f'num_classes in {CONFIG}', cfg.get('num_classes'), manifest['num_classes']),
        (f'license in {CONFIG}', cfg.get('license'), manifest['license']),
        (f'model_args in {CONFIG}', weights.model_args, manifest.get('model_args', {})),
    ]
    if CARD in files:
        try:
            shown = card.metadata(files[CARD])
        except ValueError as error:
            raise CheckFailed(f'{folder}/{CARD}: {str(error).splitlines()[0][:200]}; publish it again') from None
        claims += [
            (f'license in {CARD}', shown['license'], manifest['license']),
            (f'library_name in {CARD}', shown['library_name'], 'timm'),
            (f'metrics in {CARD}', shown['metrics'], card.metric_names(manifest['metrics'])),
        ]
    entry = index().get(folder.name_tag, {})
    registered = folder.name_tag in timm.list_models(folder.name_tag, pretrained=True)
    if registered and entry.get('sha256') == manifest['sha256']:
        default = timm.get_pretrained_cfg(folder.name_tag).to_dict()
        claims += [(f'{key} in the registry', default.get(key), cfg.get(key)) for key in cfg_of(entry)]
    for what, said, expected in claims:
        if said != expected:
            raise CheckFailed(f'{folder}: {what} is {said}, not {expected}; publish it again')


def _measure(folder: Folder, model: nn.Module, data_dir: str | Path) -> dict[str, float]:
    from .train import evaluate

    recorded = folder.manifest['metrics']
    measured = evaluate(model, folder.manifest['dataset'], data_dir)
    tolerance = folder.manifest.get('tolerance', {}).get('top1', 0.05)
    if measured['n'] != recorded.get('n') or not abs(measured['top1'] - recorded.get('top1', -1e9)) <= tolerance:
        raise CheckFailed(
            f'{folder}: top-1 is {measured["top1"]:.2f} % on {measured["n"]} images of {data_dir}, '
            f'recorded is {recorded.get("top1")} on {recorded.get("n")} (tolerance {tolerance} points)'
        )
    return measured


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
        _read_all(folder)
    except (CheckFailed, UserError) as error:
        if replace:
            return False
        raise CheckFailed(f'what is there already is damaged, replace it (--replace): {error}') from None
    if replace:
        return folder.sha256 == contents.manifest_sha256
    _refuse_others(str(target), folder.manifest, contents)
    return True


def _refuse_others(target: str, manifest: dict[str, Any], contents: Contents) -> None:
    if manifest.get('sha256') != contents.manifest['sha256']:
        raise UserError(f'{target} has other weights; replace them (--replace), or choose another tag')


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


def _commit(where: HfPlace, contents: Contents, replace: bool, dry_run: bool) -> str:
    """One commit with all files; it fails, instead of mixing two, if somebody else commits meanwhile."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo = f'{where.org}/{contents.name_tag}'
    api = HfApi(library_name='nf_zoo')
    address = f'{api.endpoint}/{repo}'
    if dry_run:
        return address
    with hf_errors(repo):
        head, old = _head(api, repo, where.revision)
        if old and replace and old == contents.manifest:
            return address
        if old and not replace:
            _refuse_others(f'hf://{repo}', old, contents)
            return address
        if head is None:
            api.create_repo(repo, exist_ok=True)
            if where.revision:
                api.create_branch(repo, branch=where.revision, exist_ok=True)
        gone = {name for name in old.get('files', {}) if name not in contents.files}
        operations: list[Any] = [CommitOperationAdd(name, data) for name, data in contents.files.items()]
        operations += [CommitOperationDelete(name) for name in sorted(gone)]
        message = f'{contents.name_tag} {contents.manifest["sha256"][:12]}'
        api.create_commit(repo, operations, commit_message=message, revision=where.revision, parent_commit=head)
    return address


def _head(api: Any, repo: str, revision: str | None) -> tuple[str | None, dict[str, Any]]:
    """The current commit and its manifest; None if there is no such repository, {} if it has no manifest."""
    from huggingface_hub import errors

    try:
        head = api.model_info(repo, revision=revision).sha
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        return None, {}
    try:
        path = Path(api.hf_hub_download(repo, MANIFEST, revision=head))
    except errors.LocalEntryNotFoundError:  # the Hub can't be reached
        raise
    except errors.EntryNotFoundError:
        return head, {}
    return head, read_json(path.read_bytes(), f'hf://{repo}/{MANIFEST}')
