"""Publishing weights into a hub, and fetching them from one."""

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError
from .directory import put
from .folder import open_folder
from .names import parse
from .organization import commit
from .package import gather
from .places import DirPlace, HfPlace, parse_place
from .weights import locate


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
            of weights on the search path. Those are copied byte for byte unless another option changes them.
        hub: A directory, ``hf://ORG`` or ``hf://ORG@BRANCH``.
        name: NAME or NAME.TAG; by default the run's or model's own name.
        tag: The tag, if ``name`` has none; by default the name of the data set.
        replace: Replace what is there under this name.
        private: Make a new repository private. An old one keeps its visibility.
        dry_run: Check everything, also whether the hub would refuse the weights, and write nothing.
        dtype: Store floating-point weights as 'float32', 'float16' or 'bfloat16'; by default as they are.
        license: SPDX identifier, in the Hub's lower case; by default that of published weights, else apache-2.0.
        allow_dead: Publish a run though some of its blocks contribute nothing.
        **facts: Keys of a run's result.json, for a model or instead of the run's: ``dataset``, ``classes`` (their
            names), ``metrics`` (top1, top5, loss, n), ``recipe``, ``seed``, ``mean``, ``std`` ...; see
            ``nf_zoo.train.run_folder.Result``.

    Returns:
        The folder; for an organization, the address of the repository.

    Raises:
        UserError: unusable input, other weights or other facts under this name, or a hub that cannot be written to.
        CheckFailed: the weights have changed since they were trained or published, hold NaN or infinity, or the folder
            under this name is damaged.
    """
    place = parse_place(hub)
    if private and isinstance(place, DirPlace):
        raise UserError(f'private is for hf://ORG; the file system says who may read {place}')
    package = gather(run_or_model, name, tag, dtype, license, facts, allow_dead)
    if isinstance(place, HfPlace):
        return commit(place, package, replace=replace, private=private, dry_run=dry_run)
    return put(place, package, replace=replace, dry_run=dry_run)


def fetch(name: str, hub: str | Path | None = None) -> Path:
    """A local folder with the verified files of NAME or NAME.TAG: the hub's own, or one in huggingface_hub's cache.

    Raises:
        UserError: there is none.
        CheckFailed: a file is not the published one.
    """
    folder = open_folder(locate(*parse(name), parse_place(hub) if hub is not None else None))
    folder.check_all()
    return folder.path
