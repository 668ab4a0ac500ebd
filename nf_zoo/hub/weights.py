"""Pretrained weights by name: which place has them, and reading them."""

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckFailed, UserError, nearest
from ..files import not_finite, read_tensors
from ..text import clean
from .folder import Entry, Folder, open_folder, parse_config, remedy
from .huggingface import Unreachable
from .index import index
from .names import CONFIG, WEIGHTS, parse
from .places import DirPlace, Place, package_places, search_path, warn_once

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Verified weights; ``pretrained_cfg`` and ``model_args`` are arguments of timm's builder."""

    state_dict: dict[str, Tensor]
    pretrained_cfg: dict[str, Any]
    model_args: dict[str, Any]
    folder: Folder


def parse_weights(data: bytes, folder: Folder) -> dict[str, Tensor]:
    """The tensors of a verified weights file. Raises UserError, or CheckFailed for NaN and infinity."""
    tensors = read_tensors(data, f'{folder}/{WEIGHTS}')
    bad = not_finite(tensors)
    if bad:
        raise CheckFailed(f'{folder}/{WEIGHTS}: {clean(bad)[:100]} holds NaN or infinity; {remedy(folder)}')
    return tensors


def known() -> dict[str, list[str]]:
    """The tags of every model that can be seen without a network: NF_ZOO_HUB's, then the package's, the best first."""
    try:
        places = search_path()
    except UserError as error:  # the import of nf_zoo must not fail; whoever then loads weights gets the error
        warn_once(f'NF_ZOO_HUB is left out: {error}')
        places = package_places()
    tags: dict[str, list[str]] = {}
    for name_tag in dict.fromkeys(n for place in places for n in place.names_offline()):
        name, _, tag = name_tag.partition('.')
        tags.setdefault(name, []).append(tag)
    return tags


def package_tag(name: str) -> str | None:
    """The best tag of ``name`` in the package's index: the one that the bare name stands for."""
    return next((tag for n, _, tag in (key.partition('.') for key in index()) if n == name), None)


def find(name: str, tag: str | None = None) -> Entry | None:
    """The first place on the search path with NAME.TAG. A bare NAME stands for the package's own best tag.

    A hub's weights are taken only if their tag is named, so that no hub changes what a bare name means. A place that
    cannot be reached is passed over with a warning.

    Raises:
        UserError: a name that is none.
        Unreachable: nothing was found, and a place could not be asked.
    """
    name, tag = parse(f'{name}.{tag}' if tag is not None else name)
    places = search_path()
    if tag is None:
        tag, places = package_tag(name), package_places()
    if tag is None:
        return None
    unreachable: Unreachable | None = None
    for place in places:
        try:
            if place.has(f'{name}.{tag}'):
                return Entry(place, name, tag)
        except Unreachable as error:
            _logger.warning(f'{place} is passed over: {error}')
            unreachable = unreachable or error
    if unreachable is not None:
        raise unreachable
    return None


def locate(name: str, tag: str | None = None, place: Place | None = None) -> Entry:
    """``find``, or the same in one place only: there, a bare NAME stands for its only tag.

    Raises:
        UserError: there are no such weights (the message gives the tags there are, or the nearest name), or the bare
            name has several tags.
    """
    if place is not None:
        return _locate_in(place, name, tag)
    entry = find(name, tag)
    if entry is not None:
        return entry
    tags = known().get(name, [])
    if tag is None and tags:
        named = ', '.join(f'{name}.{t}' for t in tags[:10])
        raise UserError(f'the package has no weights of {name}; name the tag to take those of a hub: {named}')
    wanted, names = f'{name}.{tag}' if tag else name, [f'{n}.{t}' for n, tags in known().items() for t in tags]
    hubs = ', '.join(map(str, search_path()))
    raise UserError(f'there are no weights of {wanted} in {hubs}{nearest(wanted, names)}')


def _locate_in(place: Place, name: str, tag: str | None) -> Entry:
    name, tag = parse(f'{name}.{tag}' if tag is not None else name)
    # A hub that was named and cannot be listed is an error; a directory is listed without a network.
    names = place.names() if tag is None or isinstance(place, DirPlace) else place.names_offline()
    tags = [n.partition('.')[2] for n in names if n.partition('.')[0] == name]
    if tag is None and place.pinned:
        tags = tags[:1]
    if tag is None and len(tags) > 1:
        raise UserError(f'{place} has several weights of {name}; name one: {", ".join(f"{name}.{t}" for t in tags)}')
    tag = tag or (tags[0] if tags else None)
    if tag is None or not place.has(f'{name}.{tag}'):
        wanted = f'{name}.{tag}' if tag else name
        raise UserError(f'there are no weights of {wanted} in {place}{nearest(wanted, names)}')
    return Entry(place, name, tag)


def load(name: str, tag: str | None = None, place: Place | None = None) -> Weights:
    """Read and verify weights. No tensor is made before every hash is right.

    Raises:
        UserError: there are none, or their files are malformed.
        CheckFailed: a file is not the published one, or the weights hold NaN or infinity.
    """
    entry = locate(name, tag, place)
    while True:
        folder, failure = open_folder(entry), None
        try:
            config, data = folder.read(CONFIG), folder.read(WEIGHTS)
        except CheckFailed as error:
            failure = error
        if folder.is_still_there():  # else another publish has replaced it meanwhile
            break
    if failure is not None:
        raise failure
    cfg, model_args = read_config(folder, config)
    return Weights(parse_weights(data, folder), cfg, model_args, folder)


def read_config(folder: Folder, data: bytes | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of timm's PretrainedCfg and of the model, from config.json.

    Raises:
        UserError: the config is malformed.
        CheckFailed: the config is not the published one, or contradicts the manifest.
    """
    cfg, model_args = parse_config(folder.read(CONFIG) if data is None else data, folder)
    if cfg['num_classes'] != folder.manifest['num_classes']:
        said, expected = cfg['num_classes'], folder.manifest['num_classes']
        raise CheckFailed(f'{folder}: num_classes is {said} in {CONFIG}, {expected} in the manifest; {remedy(folder)}')
    return cfg, model_args
