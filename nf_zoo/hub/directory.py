"""Writing into a hub that is a directory: a folder NAME.TAG appears whole or not at all.

It is written beside under a hidden name and renamed.
"""

import ctypes
import errno
import os
import shutil
import sys
import time
import uuid
from pathlib import Path

from ..errors import CheckFailed, UserError
from .folder import Entry, open_folder
from .names import MANIFEST, parse
from .package import Package
from .places import DirPlace

_STALE = 3600  # seconds after which a hidden folder is one that a killed publish left behind


def put(where: DirPlace, package: Package, *, replace: bool, dry_run: bool) -> Path:
    """Write ``package`` into ``where``, unless it is there already; its folder.

    Raises:
        UserError: other weights or facts are there and may not be replaced, or the directory cannot be written to.
        CheckFailed: what is there is damaged and may not be replaced.
    """
    target = where.path / package.name_tag
    if not _is_present(where, package, replace) and not dry_run:
        try:
            _write_folder(where.path, package, replace)
        except FileExistsError:  # another publish was faster
            _is_present(where, package, replace=False)
    return target


def _is_present(where: DirPlace, package: Package, replace: bool) -> bool:
    """Whether the package is in the hub already. Raises if another or a damaged one is, and ``replace`` is false."""
    target = where.path / package.name_tag
    if target.is_symlink():
        raise UserError(f'{target} is a link; publish to where it points')
    if not os.path.lexists(target):
        return False
    if not os.path.lexists(target / MANIFEST):  # a user's own file or folder is never replaced
        raise UserError(f'{target} is there, but was not published: it has no {MANIFEST}; move it away')
    name, tag = parse(package.name_tag)
    try:
        folder = open_folder(Entry(where, name, tag or ''))
        folder.check_all()
    except (CheckFailed, UserError) as error:
        if replace:
            return False
        raise CheckFailed(f'the published folder is damaged, replace it (--replace): {error}') from None
    if replace:
        return package.same_as(folder.manifest)
    package.refuse_others(str(target), folder.manifest)
    return True


def _write_folder(root: Path, package: Package, replace: bool) -> None:
    target = root / package.name_tag
    fresh = root / f'.{package.name_tag}.{uuid.uuid4().hex}'
    try:
        root.mkdir(parents=True, exist_ok=True)
        for old in root.glob(f'.{package.name_tag}.{"?" * 32}'):
            if time.time() - old.stat().st_mtime > _STALE:
                shutil.rmtree(old, ignore_errors=True)
        try:
            fresh.mkdir()
            for name, data in package.files.items():
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
