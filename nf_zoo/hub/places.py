"""The places where weights may lie: directories, and organizations on the Hugging Face Hub."""

import logging
import os
import re
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import CheckFailed, UserError, nearest
from ..files import readable
from .huggingface import hf_errors, limited, patient
from .index import ORGANIZATION, bundled, index
from .names import MANIFEST, ORG, REVISION, WEIGHTS, is_name_tag
from .schema import SMALL_LIMIT, short

_logger = logging.getLogger(__name__)
_MOST = 10_000  # repositories of an organization; a server could go on for ever


@dataclass(frozen=True)
class DirPlace:
    """A directory with a folder for each NAME.TAG. If ``pinned``, only what the package's index lists is taken."""

    path: Path
    pinned: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """Every NAME.TAG, and every other folder with a manifest: nothing is skipped in silence.

        Raises:
            UserError: the directory cannot be listed.
        """
        if self.pinned:
            return list(index())
        with readable(self.path), os.scandir(self.path) as entries:
            return sorted(entry.name for entry in entries if self._is_published(entry))

    def names_offline(self) -> list[str]:
        """Every NAME.TAG; a directory that cannot be listed has none, and a warning says why."""
        try:
            return [name for name in self.names() if is_name_tag(name)]
        except UserError as error:
            warn_once(f'the hub {self} is left out: {error}')
            return []

    def has(self, name_tag: str) -> bool:
        """Raises UserError: that cannot be found out."""
        if self.pinned and name_tag not in index():
            return False
        with readable(self.path / name_tag):
            try:
                return stat.S_ISDIR(os.stat(self.path / name_tag).st_mode)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def snapshot(self, name_tag: str) -> Path:
        """The folder of ``name_tag`` as it is now. Raises UserError: there is none."""
        if not self.has(name_tag):
            raise UserError(f'there is no {name_tag} in {self}{nearest(name_tag, self.names_offline())}')
        return self.path / name_tag

    def file(self, name_tag: str, snapshot: Path, filename: str, limit: int = SMALL_LIMIT) -> Path:
        """The path of a file of a snapshot; ``limit`` bounds downloads, of which there are none here.

        Raises:
            UserError: there is no such regular file, or it lies outside the hub.
        """
        path = snapshot / filename
        with readable(path):
            # Pinned files are checked against the index. Some installers link a package's files to a store of theirs.
            if not self.pinned and not path.resolve().is_relative_to(self.path.resolve()):
                raise UserError(f'{path} is a link that leaves the hub {self}; copy the folder into the hub')
            if not path.is_file():
                raise UserError(f'{snapshot} has no {filename}; publish {name_tag} again')
        return path

    def _is_published(self, entry: 'os.DirEntry[str]') -> bool:
        if entry.name.startswith('.'):  # a publish that is going on writes here
            return False
        try:
            if not entry.is_dir():
                return entry.is_symlink() and is_name_tag(entry.name) and not entry.is_file()  # a broken link
            return is_name_tag(entry.name) or os.path.lexists(os.path.join(entry.path, MANIFEST))
        except OSError:  # such as a link to itself: opening it says what is wrong
            return is_name_tag(entry.name)


@dataclass(frozen=True)
class HfPlace:
    """The repositories ORG/NAME.TAG of a Hugging Face organization or user, at one revision of each."""

    org: str
    revision: str | None = None

    def __str__(self) -> str:
        return f'hf://{self.org}' + (f'@{self.revision}' if self.revision else '')

    @property
    def pinned(self) -> bool:
        """Whether only files are taken whose hashes the package knows."""
        # Whoever owns this name on the Hub must not be able to hand out another file, however the name is written.
        return self.org.lower() == ORGANIZATION

    def names(self) -> list[str]:
        """Every NAME.TAG that the Hub lists for the organization; offline, every one in the cache.

        Raises:
            UserError: the Hub cannot be asked.
        """
        from huggingface_hub import HfApi, constants

        if self.pinned or constants.HF_HUB_OFFLINE:
            return self.names_offline()
        with hf_errors(self.org):
            repos = patient(
                lambda: [model.id for model in HfApi(library_name='nf_zoo').list_models(author=self.org, limit=_MOST)]
            )
        names = (repo.partition('/')[2] for repo in repos if repo.partition('/')[0].lower() == self.org.lower())
        return sorted(name for name in names if is_name_tag(name))

    def names_offline(self) -> list[str]:
        """Every NAME.TAG in huggingface_hub's cache; for the project's own organization, every one in the index."""
        if self.pinned:
            return list(index())
        from huggingface_hub.constants import HF_HUB_CACHE

        prefix = f'models--{self.org}--'
        try:
            cached = sorted(name.removeprefix(prefix) for name in os.listdir(HF_HUB_CACHE) if name.startswith(prefix))
        except FileNotFoundError:
            return []
        except OSError as error:
            warn_once(f"huggingface_hub's cache {HF_HUB_CACHE} cannot be listed: {error.strerror}")
            return []
        return [name for name in cached if is_name_tag(name)]

    def has(self, name_tag: str) -> bool:
        """Ask the Hub (offline: its cache), unless the index knows."""
        return name_tag in index() if self.pinned else self._manifest(name_tag) is not None

    def snapshot(self, name_tag: str) -> Path:
        """The cached folder of today's commit; ``file`` takes all other files from that commit too."""
        manifest = self._manifest(name_tag)
        if manifest is None:
            raise UserError(
                f'there is no {self.org}/{name_tag} with a {MANIFEST} at {self}'
                f'{nearest(name_tag, self.names_offline())}; a private one needs HF_TOKEN'
            )
        return manifest.parent

    def file(self, name_tag: str, snapshot: Path, filename: str, limit: int = SMALL_LIMIT) -> Path:
        """The cached path of a file of a snapshot.

        Raises:
            UserError: there is no such file, or it has more than ``limit`` bytes; then its download stops.
            CheckFailed: the same of weights, whose size the manifest has.
        """
        path = self._download(name_tag, filename, snapshot.name, limit)
        if path is None:
            raise UserError(f'{self.org}/{name_tag} has no {filename} in commit {snapshot.name}; publish it again')
        return path

    def _manifest(self, name_tag: str) -> Path | None:
        pin = index().get(name_tag, {}).get('revision') if self.pinned else None
        return self._download(name_tag, MANIFEST, self.revision or pin, SMALL_LIMIT)

    def _download(self, name_tag: str, filename: str, revision: str | None, limit: int) -> Path | None:
        """A file in huggingface_hub's cache; None if the Hub (offline: its cache) doesn't have it."""
        from huggingface_hub import constants, errors, hf_hub_download

        repo = f'{self.org}/{name_tag}'
        error = CheckFailed if filename == WEIGHTS else UserError  # of weights, the manifest says how many they are
        options: dict[str, Any] = dict(revision=revision, tqdm_class=limited(limit, f'{repo}/{filename}', error))
        with hf_errors(repo):
            try:
                return Path(patient(lambda: hf_hub_download(repo, filename, library_name='nf_zoo', **options)))
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


def parse_place(text: str | Path) -> Place:
    """A hub from ``DIR``, ``hf://ORG`` or ``hf://ORG@REVISION``. Raises UserError: none of these."""
    text = str(text)
    if text.startswith('hf://'):
        org, at, revision = text.removeprefix('hf://').partition('@')
        if not ORG.fullmatch(org) or (at and not REVISION.fullmatch(revision)):
            raise UserError(f'{short(text)} is not a hub; use hf://ORG or hf://ORG@REVISION')
        return HfPlace(org, revision or None)
    if not text or '\0' in text or re.match(r'\w+://', text):
        raise UserError(f'{short(text)} is not a hub; use a directory, hf://ORG or hf://ORG@REVISION')
    return DirPlace(Path(text).expanduser())


def search_path() -> list[Place]:
    """NF_ZOO_HUB's places, then the package's own weights, then the project's organization on the Hub.

    Raises:
        UserError: NF_ZOO_HUB has an entry that is not a place.
    """
    entries = re.findall(rf'\w+://[^{os.pathsep}]*|[^{os.pathsep}]+', os.environ.get('NF_ZOO_HUB', ''))
    hubs = [parse_place(entry) for entry in entries]
    for hub in hubs:
        if isinstance(hub, DirPlace) and not os.path.isdir(hub.path):
            warn_once(f'NF_ZOO_HUB names {hub}, which is not a directory')
    return [*hubs, *package_places()]


def package_places() -> list[Place]:
    """The places whose files the package's index pins."""
    return [DirPlace(bundled(), pinned=True), HfPlace(ORGANIZATION)]


@cache
def warn_once(message: str) -> None:
    _logger.warning(message)
