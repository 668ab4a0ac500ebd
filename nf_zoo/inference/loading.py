"""From what a user writes (NAME, NAME.TAG, the folder of a run) to the model with its weights: the one way for all
commands.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
from safetensors import SafetensorError
from timm.data import ImageNetInfo
from torch import nn

from ..errors import CheckFailed, UserError, nearest, one_line
from ..hub import weights
from ..hub.folder import Entry, open_folder
from ..hub.index import index
from ..hub.names import MANIFEST, is_name_tag, parse
from ..hub.places import DirPlace
from ..net.registry import create_from, list_models, others_download, timms_tag
from ..train.run_folder import describe, is_run, load_run, read_result

_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Source:
    """Where a name leads. Only small files have been read so far; ``load`` reads the weights and checks them.

    kind: 'run' (a finished training run), 'hub' (a published folder), 'package' (what the package's index pins),
        'timm' (timm's own tag, or hf-hub: and local-dir: names), 'random' (a name without weights).
    """

    kind: Literal['run', 'hub', 'package', 'timm', 'random']
    architecture: str
    tag: str  # '' for a run, and without weights
    where: str  # such as 'runs/a', 'my-hub/eunnet20_cifar.mine', 'hf://timm/nf_resnet50.ra2_in1k'; '' without weights
    facts: Mapping[str, Any] = field(default_factory=dict)  # keys of the manifest, or of the run's result.json
    _make: Callable[..., nn.Module] = field(repr=False, default=nn.Module)

    @property
    def dataset(self) -> str | None:
        """The data set that the weights were trained for."""
        return self.facts.get('dataset') or (self.tag or None)

    @property
    def name(self) -> str:
        """NAME, NAME.TAG, or the last part of a run's folder: what others may read of where the weights are from."""
        if self.kind == 'run':
            return Path(self.where).resolve().name
        return f'{self.architecture}.{self.tag}' if self.tag else self.architecture

    def load(self, **kwargs: Any) -> nn.Module:
        """The model in eval mode, with its weights; its ``pretrained_cfg`` has classes, image size, mean and std.

        Args:
            **kwargs: As for ``timm.create_model``. A run's model is as it was trained, and takes none.

        Raises:
            UserError: the model cannot be built, or the weights cannot be read.
            CheckFailed: the weights are not those that were trained or published, or hold NaN or infinity.
        """
        try:
            return self._make(**kwargs).eval()
        except (UserError, CheckFailed):
            raise
        except (*_ERRORS, TypeError, SafetensorError) as error:
            if isinstance(error, TypeError) and kwargs:  # the caller's own argument
                raise
            raise UserError(f"cannot load '{self.where or self.architecture}': {one_line(error)[:500]}") from None


def resolve(name: str, pretrained: bool = True) -> Source:
    """Find the model that ``name`` stands for.

    Args:
        name: The folder of a finished run, a folder of a hub, NAME, or NAME.TAG of any hub on the search path. A bare
            NAME stands for the package's own best weights, never for those of a hub. timm's names work too, also
            ``hf-hub:`` and ``local-dir:``.
        pretrained: If false, a NAME without a tag stands for the network without weights, and NAME.TAG for the network
            that these weights belong to. A run has its weights either way.

    Raises:
        UserError: there is no such model or folder, or it has no weights.
        CheckFailed: a file of a hub is not the published one.
    """
    path = Path(name)
    if is_run(path):
        return _of_run(path)
    if ':' in name:
        make = partial(_of_timm, name, pretrained)
        return Source('timm', name.rpartition('/')[2].partition('.')[0], '', name, {}, make)
    published = _of_folder(path)
    if published is not None:
        return _of_entry(published, pretrained)
    if not timm.is_model(name.partition('.')[0]):
        if name and path.is_dir():
            raise UserError(f'{name} is not a finished run: it has no result.json; train it to its end first')
        if len(path.parts) > 1:  # no name has a slash
            last = path.name.partition('.')[0]
            raise UserError(f'{name[:100]}: no such folder{nearest(last, list_models())}')
        base = name.partition('.')[0]
        raise UserError(f"unknown model '{name[:100]}'{nearest(base, list_models())} (`nf-zoo list` shows all names)")
    architecture, tag = parse(name)
    if not pretrained and tag is None:
        return Source('random', architecture, '', '', {}, partial(timm.create_model, name))
    timms = _timms_tag(architecture, tag)
    if timms is not None:
        where = f'hf://{timm.get_pretrained_cfg(f"{architecture}.{timms}").hf_hub_id}'
        return Source('timm', architecture, timms, where, {}, partial(_of_timm, name, pretrained))
    return _of_entry(weights.locate(architecture, tag), pretrained)


def load_model(name: str, pretrained: bool = True, **kwargs: Any) -> Any:
    """``resolve(name, pretrained).load(**kwargs)``: the model in eval mode."""
    return resolve(name, pretrained).load(**kwargs)


def class_names(model: Any) -> list[str]:
    """One name per output: the weights' own, in words if there are; ImageNet's for `in1k` tags; else the indices."""
    config = getattr(model, 'pretrained_cfg', {})
    count = model.num_classes
    words = config.get('label_descriptions') or {}
    names = [words.get(name, name) for name in config.get('label_names') or ()]
    if not names and count == 1000 and str(config.get('tag')).endswith('in1k'):
        info = ImageNetInfo()
        names = [info.index_to_description(index) for index in range(count)]
    return [str(name) for name in names] if names and len(names) == count else [str(index) for index in range(count)]


def _of_run(path: Path) -> Source:
    def make(**kwargs: Any) -> nn.Module:
        if any(value is not None and key != 'device' for key, value in kwargs.items()):
            raise UserError(f'{path} is a run; its model is as it was trained, without {", ".join(kwargs)}')
        model, _, result = load_run(path)
        describe(model, result)
        return model.to(kwargs.get('device') or 'cpu')

    result = read_result(path)
    return Source('run', result.architecture, '', str(path), vars(result), make)


def _of_timm(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    with others_download(name, pretrained):
        return timm.create_model(name, pretrained=pretrained, **kwargs)


def _of_folder(path: Path) -> Entry | None:
    """The entry of a hub's folder that is given by its path."""
    if not path.is_dir() or not (path / MANIFEST).is_file() or not is_name_tag(path.resolve().name):
        return None
    architecture, tag = parse(path.resolve().name)
    return Entry(DirPlace(path.resolve().parent), architecture, tag or '')


def _of_entry(entry: Entry, pretrained: bool) -> Source:
    if entry.place.pinned:  # the index knows; the weights themselves may not be here yet
        facts = dict(index()[entry.name_tag])
        facts.update(metrics={key: facts.get(key) for key in ('top1', 'n')})
        make: Any = partial(create_from, entry) if pretrained else partial(timm.create_model, entry.name_tag)
        return Source('package', entry.name, entry.tag, str(entry), facts, make)
    if entry.name not in list_models():
        raise UserError(
            f'{entry} has weights of {entry.name}, which is not a model of nf_zoo; load it as local-dir:PATH'
        )
    facts = open_folder(entry).manifest
    return Source('hub', entry.name, entry.tag, str(entry), facts, partial(create_from, entry, pretrained))


def _timms_tag(architecture: str, tag: str | None) -> str | None:
    """The tag of timm's own weights that a name stands for, if it stands for any."""
    if architecture not in list_models():
        return tag or getattr(timm.get_pretrained_cfg(architecture), 'tag', None) or ''
    if tag is None and weights.package_tag(architecture) is None:
        return timms_tag(architecture)
    ours = f'{architecture}.{tag}' in index()
    known = tag is not None and f'{architecture}.{tag}' in timm.list_pretrained(f'{architecture}.*')
    return tag if known and not ours else None
