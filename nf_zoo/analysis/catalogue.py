"""What the package has: the tables of `nf-zoo list` and `nf-zoo recipes`, and the facts of `nf-zoo info`."""

import fnmatch
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import CheckFailed, UserError, nearest
from ..hub import weights
from ..hub.index import index
from ..inference.loading import Source, resolve
from ..net.registry import list_models
from ..text import clean
from ..train import recipes
from ..train.recipe import load_recipe

SIZES_FILE = Path(__file__).with_name('models.json')  # {name: {params, macs}}; a test measures each of them again


class ModelRow(NamedTuple):
    """A line of `nf-zoo list`: a NAME, or with ``--pretrained`` a NAME.TAG, whose numbers are those of the weights.

    ``macs``: for one image of ``input`` (channels, height, width). ``weights``: tag -> top-1 in percent or None.
    """

    name: str
    params: int
    macs: int
    input: tuple[int, ...]
    weights: dict[str, float | None]
    paper: str


class RecipeRow(NamedTuple):
    """A line of `nf-zoo recipes`: a recipe's name, what it trains on what, and the first line of its comment."""

    name: str
    model: str
    dataset: str
    epochs: int
    title: str


@dataclass(frozen=True)
class ModelFacts:
    """Size, cost, paper and weights of one model, for `nf-zoo info`.

    Attributes:
        model: The name.
        paper: The citation.
        parameters: How many there are.
        macs: Multiply-adds for one image of ``input`` (channels, height, width).
        classes: How many there are.
        weights: By tag, where they are and what is known of them.
    """

    model: str
    paper: str
    parameters: int
    macs: int
    input: tuple[int, ...]
    classes: int
    weights: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        size = ' x '.join(map(str, self.input))
        lines = [
            f'model       {self.model}',
            f'paper       {clean(self.paper)}',
            f'parameters  {self.parameters:,}',
            f'MACs        {self.macs:,}',
            f'input       {size}',
            f'classes     {self.classes:,}',
            f'weights     {"" if self.weights else "none"}'.rstrip(),
        ]
        for tag, entry in self.weights.items():
            known = ', '.join(f'{key} {_in_words(value)}' for key, value in entry.items() if value is not None)
            lines.append(f'  {clean(tag)}: {known}')
        return '\n'.join(lines)

    def as_dict(self) -> dict[str, Any]:
        """What JSON shows."""
        found = {'model': self.model, 'paper': self.paper, 'parameters': self.parameters, 'MACs': self.macs}
        return found | {'input': list(self.input), 'classes': self.classes, 'weights': self.weights}


def rows(pattern: str = '', pretrained: bool = False) -> list[ModelRow]:
    """The models whose name contains ``pattern`` or matches it as a wildcard.

    Args:
        pattern: Such as 'eunnet' or 'eunnet*_cifar'.
        pretrained: A row for each NAME.TAG with weights, with the size of the network that these are for.

    Raises:
        UserError: there is none.
    """
    table = []
    for name in _matching(pattern):
        tags = {tag: _top1(name, tag) for tag in _tags(name)}
        paper = _citation(_page(name))
        if not pretrained:
            input_size = timm.get_pretrained_cfg(name).input_size
            table.append(ModelRow(name, **_size(name), input=input_size, weights=tags, paper=paper))
        for tag, top1 in tags.items() if pretrained else ():
            size = _size_of_weights(name, tag)
            if size is not None:
                table.append(ModelRow(f'{name}.{tag}', **size, weights={tag: top1}, paper=paper))
    return table


def names(pattern: str = '', pretrained: bool = False) -> list[str]:
    """The names of `rows` alone, which takes no time. Raises `UserError` as it does."""
    found = _matching(pattern)
    return [f'{name}.{tag}' for name in found for tag in _tags(name)] if pretrained else found


def recipe_rows(pattern: str = '') -> list[RecipeRow]:
    """The recipes whose name contains ``pattern`` or matches it as a wildcard.

    Raises:
        UserError: there is none.
    """
    glob = pattern if set(pattern) & set('*?[') else f'*{pattern}*'
    table = []
    for name in fnmatch.filter(recipes.names(), glob):
        recipe = load_recipe(name)
        title = recipes.locate(name).read_text(encoding='utf-8').partition('\n')[0].strip('# .')
        table.append(RecipeRow(name, recipe.model, recipe.dataset, recipe.epochs, title))
    if not table:
        raise UserError(f"no recipe matches '{pattern}'{nearest(pattern, recipes.names())}")
    return table


def facts(name: str) -> ModelFacts:
    """What is known of the network that ``name`` stands for (see `resolve`), measured on the network itself.

    Of a NAME all its weights are listed, of a NAME.TAG or a run its own.

    Raises:
        UserError: there is no such model, or it isn't one of nf_zoo.
    """
    source = resolve(name, pretrained=False)
    if source.architecture not in list_models():
        raise UserError(f"'{name}' is not a model of nf_zoo (`nf-zoo list` shows them)")
    model: Any = source.load(device='meta')
    tags = [source.tag] if source.tag else [] if source.kind == 'run' else _tags(source.architecture)
    found = {tag: _weights(source.architecture, tag) for tag in tags}
    if source.kind in ('run', 'hub'):
        found = {source.tag or 'run': _known(source)}
    page = ' '.join(_page(source.architecture).strip().partition('\n\n')[0].split())
    return ModelFacts(
        model=source.architecture,
        paper=model.pretrained_cfg.get('paper_name') or page,
        parameters=sum(p.numel() for p in model.parameters()),
        macs=multiply_adds(model, *model.pretrained_cfg['input_size']),
        input=tuple(model.pretrained_cfg['input_size']),
        classes=model.num_classes,
        weights=found,
    )


@cache
def _size_at(name: str, num_classes: int, *size: int) -> dict[str, int]:
    model = timm.create_model(name, device='meta', num_classes=num_classes, in_chans=size[0])
    return dict(params=sum(p.numel() for p in model.parameters()), macs=multiply_adds(model, *size))


def multiply_adds(model: nn.Module, *size: int) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image (channels, height, width).

    ``model`` is on the meta device, and in eval mode afterwards.
    """
    with torch.no_grad(), _Operations() as counted:
        model.eval()(torch.empty(1, *size, device='meta'))
    return counted.flops // 2


class _Operations(TorchDispatchMode):
    """The sum of torch's FlopCounterMode, without its account of each module, which takes most of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def measure(name: str) -> dict[str, int]:
    """Parameters, and multiply-accumulates for an image of the default size; nothing is allocated."""
    model = timm.create_model(name, device='meta')
    params = sum(p.numel() for p in model.parameters())
    return dict(params=params, macs=multiply_adds(model, *model.pretrained_cfg['input_size']))


def _matching(pattern: str) -> list[str]:
    found = list_models(pattern if set(pattern) & set('*?[') else f'*{pattern}*')
    if not found:
        raise UserError(f"no model matches '{pattern}'{nearest(pattern, list_models())}")
    return found


def _size(name: str) -> dict[str, int]:
    return _sizes().get(name) or measure(name)


@cache
def _sizes() -> dict[str, dict[str, int]]:
    sizes: dict[str, dict[str, int]] = json.loads(SIZES_FILE.read_bytes())
    return sizes


def _size_of_weights(name: str, tag: str) -> dict[str, Any] | None:
    """params, macs and input of the network of published weights; None where a hub's files are damaged."""
    default = timm.get_pretrained_cfg(name)
    if f'{name}.{tag}' in timm.list_pretrained(f'{name}.*'):
        cfg = timm.get_pretrained_cfg(f'{name}.{tag}')
        if (cfg.input_size, cfg.num_classes) == (default.input_size, default.num_classes):
            return {**_size(name), 'input': default.input_size}
        if f'{name}.{tag}' not in index():  # timm's: the network has no arguments of its own
            return {**_size_at(name, cfg.num_classes, *cfg.input_size), 'input': cfg.input_size}
    try:
        model: Any = resolve(f'{name}.{tag}', pretrained=False).load(device='meta')
    except (UserError, CheckFailed):
        return None
    size = tuple(model.pretrained_cfg['input_size'])
    return dict(params=sum(p.numel() for p in model.parameters()), macs=multiply_adds(model, *size), input=size)


def _page(name: str) -> str:
    return sys.modules[timm.model_entrypoint(name).__module__].__doc__ or ''


def _citation(page: str) -> str:
    """'De, Smith 2020', from the first citation of a page: authors, colon, title in quotation marks, year or arXiv."""
    found = re.search(r'(\w+(?:,\s\w+)*): "', page)
    if not found:
        return ''
    authors = found[1].split(', ')
    year = re.search(r'\b(20\d\d)\b|arXiv:(\d\d)', page[found.end() :])
    names = f'{authors[0]} et al.' if len(authors) > 2 else ', '.join(authors)
    return f'{names} {year[1] or "20" + year[2]}' if year else names


def _tags(name: str) -> list[str]:
    """Tags of ``name`` that have weights: the hubs' on the search path, the package's and timm's."""
    theirs = [found.partition('.')[2] for found in timm.list_models(f'{name}.*', pretrained=True)]
    return list(dict.fromkeys([*weights.known().get(name, []), *theirs]))


def _top1(name: str, tag: str) -> float | None:
    """The accuracy that the package's index or a hub's manifest tells, in percent."""
    try:
        top1: float | None = _weights(name, tag).get('top1')
        return top1
    except (UserError, CheckFailed):
        return None


def _weights(name: str, tag: str) -> dict[str, Any]:
    return _known(resolve(f'{name}.{tag}'))


def _known(source: Source) -> dict[str, Any]:
    metrics = source.facts.get('metrics') or {}
    known = {**source.facts, **{key: metrics.get(key) for key in ('top1', 'n')}}
    found = {key: known.get(key) for key in ('dataset', 'top1', 'n', 'bytes', 'sha256')}
    return {'at': source.where} | ({} if source.kind == 'timm' else found)


def _in_words(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.2f}'
    return f'{value:,}' if isinstance(value, int) else clean(value)
