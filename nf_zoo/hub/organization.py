"""Writing into an organization of the Hugging Face Hub: one commit with all files, or none."""

import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, readable
from .huggingface import hf_errors, limited, patient
from .names import MANIFEST
from .package import Package
from .places import HfPlace
from .schema import SMALL_LIMIT


def commit(where: HfPlace, package: Package, *, replace: bool, private: bool, dry_run: bool) -> str:
    """Publish ``package`` as the repository ORG/NAME.TAG; its address.

    Raises:
        UserError: other weights or facts are there and may not be replaced, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    if where.revision and re.fullmatch('[0-9a-f]{40}', where.revision):
        raise UserError(f'{where} is a commit, and nothing can be added to a commit; name a branch, or none')
    repo = f'{where.org}/{package.name_tag}'
    api = HfApi(library_name='nf_zoo')
    with hf_errors(repo):
        # The whole can be repeated: if an attempt succeeded and only its answer was lost, the next one finds it done.
        patient(lambda: _attempt(api, repo, where.revision, package, replace, private, dry_run))
    return f'{api.endpoint}/{repo}'


def _attempt(
    api: Any, repo: str, revision: str | None, package: Package, replace: bool, private: bool, dry_run: bool
) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    head, old = _head(api, repo, revision, replace)
    if head is None and not dry_run:
        api.create_repo(repo, exist_ok=True, private=private or None)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        head, old = _head(api, repo, revision, replace)  # by now another may have published
    if old and package.same_as(old):
        return
    if old and not replace:
        return package.refuse_others(f'hf://{repo}', old)
    if dry_run:
        return
    gone = {name for name in old.get('files', {}) if name not in package.files}
    operations: list[Any] = [CommitOperationAdd(name, data) for name, data in package.files.items()]
    operations += [CommitOperationDelete(name) for name in sorted(gone)]
    message = f'{package.name_tag} {package.manifest["sha256"][:12]}'
    # With its parent named, the commit fails if somebody else has committed meanwhile; two publishes never mix.
    api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=head)


def _head(api: Any, repo: str, revision: str | None, replace: bool) -> tuple[str | None, dict[str, Any]]:
    """The current commit and its manifest; None if there is no such repository, {} if it has no manifest.

    Raises UserError: the manifest is damaged, and may not be replaced.
    """
    from huggingface_hub import errors

    try:
        head = api.model_info(repo, revision=revision).sha
    except errors.GatedRepoError:
        raise
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        return None, {}
    try:
        bar = limited(SMALL_LIMIT, f'{repo}/{MANIFEST}')
        path = Path(api.hf_hub_download(repo, MANIFEST, revision=head, tqdm_class=bar))
        with readable(path):
            manifest = read_json(path.read_bytes(), f'hf://{repo}/{MANIFEST}')
        if not isinstance(manifest.get('files', {}), dict):
            raise UserError(f'hf://{repo}/{MANIFEST} is damaged')
        return head, manifest
    except errors.LocalEntryNotFoundError:  # the Hub can't be reached
        raise
    except errors.EntryNotFoundError:
        return head, {}
    except UserError as error:
        if replace:
            return head, {}
        raise UserError(f'{error}; replace it (--replace)') from None
