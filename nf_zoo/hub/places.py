"""Where weights may lie: directories and Hugging Face organizations, and the names that may be asked of them."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import UserError, nearest
from .huggingface import hf_errors, patient
from .schema import read_json, short

_logger = logging.getLogger(__name__)

MANIFEST = 'manifest.json'
BUNDLED = Path(__file__).parent / 'bundled'
ORGANIZATION = 'nf-zoo'

_NAME = re.compile(r'[A-Za-z0-9_-]+')
_TAG = re.compile(r'(?!.*\.\.)[A-Za-z0-9_-][A-Za-z0-9_.-]*')
_ORG = re.compile(r'(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]*')
_REVISION = re.compile(r'(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*')


def parse(name_tag: str) -> tuple[str, str | None]:
    """Split ``name[.tag]``; both parts are safe as part of a path.

    Raises:
        UserError: a character that no name or tag has.
    """
    name, dot, tag = name_tag.partition('.') if isinstance(name_tag, str) else ('', '', '')
    if not _NAME.fullmatch(name) or (dot and not _TAG.fullmatch(tag)) or len(name_tag) > 96:
        raise UserError(f'{short(name_tag)} is no model name; expected NAME or NAME.TAG of letters, digits, _ and -')
    return name, tag if dot else None


@dataclass(frozen=True)
class DirPlace:
    """A directory with a folder per ``name.tag``. ``pinned``: only what the package's index lists is taken from it."""

    path: Path
    pinned: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Every ``name.tag`` that can be seen without a network."""
        return list(index()) if self.pinned else [n for n in _folders(self.path) if _is_name_tag(n)]

    def contents(self) -> list[str]:
        """Every ``name.tag``. Raises UserError: there is no such directory."""
        if not self.path.is_dir():
            raise UserError(f'{self} is no directory')
        return self.names()

    def has(self, name_tag: str) -> bool:
        if self.pinned and name_tag not in index():
            return False
        with readable(self.path):
            return (self.path / name_tag).is_dir()

    def snapshot(self, name_tag: str) -> Path:
        """The folder of ``name_tag`` as it is now."""
        if not self.has(name_tag):
            raise UserError(f'there is no {name_tag} in {self}{nearest(name_tag, self.names())}')
        return self.path / name_tag

    def file(self, name_tag: str, snapshot: Path, filename: str) -> Path:
        """A file of a snapshot. Raises UserError: there is none, or it lies outside the hub."""
        path = snapshot / filename
        with readable(path):
            # pinned files are checked against the index; some installers link a package's files to a store of theirs
            if not self.pinned and not path.resolve().is_relative_to(self.path.resolve()):
                raise UserError(f'{path} is reached through a link that leaves the hub {self}; copy the folder into it')
            if not path.is_file():
                raise UserError(f'{snapshot} has no {filename}; publish {name_tag} again')
        return path


@dataclass(frozen=True)
class HfPlace:
    """The repositories ``ORG/name.tag`` of a Hugging Face organization or user, at one revision of each."""

    org: str
    revision: str | None = None

    def __str__(self) -> str:
        return f'hf://{self.org}' + (f'@{self.revision}' if self.revision else '')

    @property
    def pinned(self) -> bool:
        # Whoever owns this name on the Hub must not be able to hand out another file, however the name is written.
        return self.org.lower() == ORGANIZATION

    def names(self) -> list[str]:
        if self.pinned:
            return list(index())
        from huggingface_hub.constants import HF_HUB_CACHE

        prefix = f'models--{self.org}--'
        cached = (n.removeprefix(prefix) for n in _folders(Path(HF_HUB_CACHE)) if n.startswith(prefix))
        return [n for n in cached if _is_name_tag(n)]

    def contents(self) -> list[str]:
        """Every ``name.tag`` that the Hub lists for the organization; offline, those of its cache."""
        from huggingface_hub import HfApi, constants

        if self.pinned or constants.HF_HUB_OFFLINE:
            return self.names()
        with hf_errors(self.org):
            repos = patient(lambda: [model.id for model in HfApi(library_name='nf_zoo').list_models(author=self.org)])
        found = (repo.partition('/')[2] for repo in repos if repo.partition('/')[0].lower() == self.org.lower())
        return sorted(n for n in found if _is_name_tag(n))

    def has(self, name_tag: str) -> bool:
        """Ask the Hub (or, offline, its cache), unless the index knows."""
        return name_tag in index() if self.pinned else self._manifest(name_tag) is not None

    def snapshot(self, name_tag: str) -> Path:
        """The cached folder of today's commit; ``file`` takes all other files from that commit too."""
        manifest = self._manifest(name_tag)
        if manifest is None:
            raise UserError(
                f'there is no {self.org}/{name_tag} with a {MANIFEST} at {self}{nearest(name_tag, self.names())}; '
                'a private one needs HF_TOKEN'
            )
        return manifest.parent

    def file(self, name_tag: str, snapshot: Path, filename: str) -> Path:
        path = self._download(name_tag, filename, snapshot.name)
        if path is None:
            raise UserError(f'{self.org}/{name_tag} has no {filename} in commit {snapshot.name}; publish it again')
        return path

    def _manifest(self, name_tag: str) -> Path | None:
        pin = index().get(name_tag, {}).get('revision') if self.pinned else None
        return self._download(name_tag, MANIFEST, self.revision or pin)

    def _download(self, name_tag: str, filename: str, revision: str | None) -> Path | None:
        """A file's place in huggingface_hub's cache; None if the Hub (or, offline, the cache) doesn't have it."""
        from huggingface_hub import constants, errors, hf_hub_download

        repo = f'{self.org}/{name_tag}'
        with hf_errors(repo):
            try:
                return Path(patient(lambda: hf_hub_download(repo, filename, revision=revision, library_name='nf_zoo')))
            except errors.LocalEntryNotFoundError:
                if constants.HF_HUB_OFFLINE:
                    _logger.warning(f'{repo} is not in the cache of huggingface_hub, and HF_HUB_OFFLINE is set')
                    return None
                raise
            except errors.GatedRepoError:
                raise
            except (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                return None


Place: TypeAlias = DirPlace | HfPlace


def place(text: str | Path) -> Place:
    """A hub from ``DIR``, ``hf://ORG`` or ``hf://ORG@REVISION``. Raises UserError: none of these."""
    text = str(text)
    if text.startswith('hf://'):
        org, at, revision = text.removeprefix('hf://').partition('@')
        if not _ORG.fullmatch(org) or (at and not _REVISION.fullmatch(revision)):
            raise UserError(f'{short(text)} is no hub; expected hf://ORG or hf://ORG@REVISION')
        return HfPlace(org, revision or None)
    if not text or '\0' in text or re.match(r'\w+://', text):
        raise UserError(f'{short(text)} is no hub; expected a directory, hf://ORG or hf://ORG@REVISION')
    return DirPlace(Path(text).expanduser())


def search_path() -> list[Place]:
    """NF_ZOO_HUB's places, then the package's own weights, then the project's organization on the Hub.

    Raises:
        UserError: NF_ZOO_HUB has an entry that is no place.
    """
    entries = re.findall(rf'\w+://[^{os.pathsep}]*|[^{os.pathsep}]+', os.environ.get('NF_ZOO_HUB', ''))
    places = [place(entry) for entry in entries]
    for own in places:
        if isinstance(own, DirPlace) and not own.path.is_dir():
            _warn_once(f'NF_ZOO_HUB names {own}, which is no directory')
    return [*places, DirPlace(BUNDLED, pinned=True), HfPlace(ORGANIZATION)]


@cache
def _warn_once(message: str) -> None:
    _logger.warning(message)


def index() -> dict[str, dict[str, Any]]:
    """What the package pins, by ``name.tag``: hashes of the files, and what timm's default cfg of the tag says."""
    path = BUNDLED / 'index.json'
    with readable(path):
        stat = path.stat()
        return _index(path, stat.st_mtime_ns, stat.st_size)


@cache
def _index(path: Path, modified: int, size: int) -> dict[str, dict[str, Any]]:
    return read_json(path.read_bytes(), path)


def known() -> dict[str, list[str]]:
    """Every model name's tags that can be seen without a network, best first: NF_ZOO_HUB's, then the index's order."""
    try:
        places = search_path()
    except UserError as error:  # the import of nf_zoo must not fail for it; whoever then loads weights is told
        _warn_once(f'NF_ZOO_HUB is left out: {error}')
        places = [DirPlace(BUNDLED, pinned=True)]
    found: dict[str, list[str]] = {}
    for name_tag in dict.fromkeys(n for p in places for n in p.names()):
        name, _, tag = name_tag.partition('.')
        found.setdefault(name, []).append(tag)
    return found


def tags(name: str) -> list[str]:
    """The known tags of one model, best first."""
    return known().get(name, [])


def _is_name_tag(folder: str) -> bool:
    name, _, tag = folder.partition('.')
    return bool(_NAME.fullmatch(name) and _TAG.fullmatch(tag))


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        _warn_once(f'the hub {path} is left out: {error.strerror}')
        return []


@contextmanager
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from None
