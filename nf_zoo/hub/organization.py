"""Writing into an organization of the Hugging Face Hub: one commit with all files, or none."""

import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from .huggingface import hf_errors, patient
from .package import Contents
from .places import MANIFEST, HfPlace
from .schema import read_json


def commit(where: HfPlace, contents: Contents, *, replace: bool, private: bool, dry_run: bool) -> str:
    """Publish ``contents`` as the repository ``ORG/name.tag``; its address.

    Raises:
        UserError: other weights are there and are not to be replaced, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    if where.revision and re.fullmatch('[0-9a-f]{40}', where.revision):
        raise UserError(f'{where} is one commit, which nothing can be added to; name a branch, or none')
    repo = f'{where.org}/{contents.name_tag}'
    api = HfApi(library_name='nf_zoo')
    with hf_errors(repo):
        # The whole of it can be repeated: what an attempt that failed has done in the end, the next one finds done.
        patient(lambda: _attempt(api, repo, where.revision, contents, replace, private, dry_run))
    return f'{api.endpoint}/{repo}'


def _attempt(
    api: Any, repo: str, revision: str | None, contents: Contents, replace: bool, private: bool, dry_run: bool
) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    head, old = _head(api, repo, revision)
    if head is None and not dry_run:
        api.create_repo(repo, exist_ok=True, private=private or None)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        head, old = _head(api, repo, revision)  # by now another may have published
    if old and contents.same_as(old):
        return
    if old and not replace:
        return contents.refuse_others(f'hf://{repo}', old)
    if dry_run:
        return
    gone = {name for name in old.get('files', {}) if name not in contents.files}
    operations: list[Any] = [CommitOperationAdd(name, data) for name, data in contents.files.items()]
    operations += [CommitOperationDelete(name) for name in sorted(gone)]
    message = f'{contents.name_tag} {contents.manifest["sha256"][:12]}'
    # With its parent named, it fails instead of mixing two, if somebody else commits meanwhile.
    api.create_commit(repo, operations, commit_message=message, revision=revision, parent_commit=head)


def _head(api: Any, repo: str, revision: str | None) -> tuple[str | None, dict[str, Any]]:
    """The current commit and its manifest; None if there is no such repository, {} if it has no manifest."""
    from huggingface_hub import errors

    try:
        head = api.model_info(repo, revision=revision).sha
    except errors.GatedRepoError:
        raise
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        return None, {}
    try:
        path = Path(api.hf_hub_download(repo, MANIFEST, revision=head))
    except errors.LocalEntryNotFoundError:  # the Hub can't be reached
        raise
    except errors.EntryNotFoundError:
        return head, {}
    return head, read_json(path.read_bytes(), f'hf://{repo}/{MANIFEST}')
