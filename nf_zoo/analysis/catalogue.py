"""What is known of the registered models: the table of `nf-zoo list` and the facts of `nf-zoo info`."""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError, nearest
from ..hub import weights
from ..hub.folder import open_folder
from ..hub.index import index
from ..net.registry import list_models

SIZES = Path(__file__).with_name('models.json')  # {name: {params, macs}}; a test measures each of them again


class Row(NamedTuple):
    """``macs``: for one image of ``input`` (channels, height, width). ``weights``: tag -> top-1 in percent or None."""

    name: str
    params: int
    macs: int
    input: tuple[int, int, int]
    weights: dict[str, float | None]
    paper: str


def rows(pattern: str = '', pretrained: bool = False) -> list[Row]:
    """The models whose name contains ``pattern`` or matches it as a wildcard; ``pretrained``: only those with weights.

    Raises:
        UserError: there is none.
    """
    found = list_models(pattern if set(pattern) & set('*?[') else f'*{pattern}*')
    if not found:
        raise UserError(f"no model matches '{pattern}'{nearest(pattern, list_models())}")
    pinned = index()
    table = []
    for name in found:
        tags = {tag: pinned.get(f'{name}.{tag}', {}).get('top1') for tag in _tags(name)}
        if tags or not pretrained:
            size = _sizes().get(name) or measure(name)
            paper = _citation(_page(name))
            table.append(Row(name, **size, input=timm.get_pretrained_cfg(name).input_size, weights=tags, paper=paper))
    return table


def facts(name_tag: str) -> dict[str, Any]:
    """Size, cost, paper and weights of one model, measured on the model itself.

    Raises:
        UserError: no registered name.
    """
    from ..inference.loading import load_model

    if ':' in name_tag:
        raise UserError(f"'{name_tag}' is not a registered name (`nf-zoo list` shows them)")
    name, _, tag = name_tag.partition('.')
    model = load_model(name_tag, pretrained=False, device='meta')
    config = model.pretrained_cfg
    return {
        'model': name,
        'paper': config.get('paper_name') or ' '.join(_page(name).strip().partition('\n\n')[0].split()),
        'parameters': sum(p.numel() for p in model.parameters()),
        'MACs': multiply_adds(model, *config['input_size']),
        'input': list(config['input_size']),
        'classes': model.num_classes,
        'weights': {t: _weights(name, t) for t in _tags(name) if tag in ('', t)},
    }


def multiply_adds(model: nn.Module, *size: int) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image (channels, height, width).

    ``model`` is on the meta device, and in eval mode afterwards.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *size, device='meta'))
    return counter.get_total_flops() // 2


def measure(name: str) -> dict[str, int]:
    """Parameters, and multiply-accumulates for an image of the default size; nothing is allocated."""
    model = timm.create_model(name, device='meta')
    params = sum(p.numel() for p in model.parameters())
    return dict(params=params, macs=multiply_adds(model, *model.pretrained_cfg['input_size']))


@cache
def _sizes() -> dict[str, dict[str, int]]:
    sizes: dict[str, dict[str, int]] = json.loads(SIZES.read_bytes())
    return sizes


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
    """Tags of `name` that have weights, ours and timm's."""
    return [found.partition('.')[2] for found in timm.list_models(f'{name}.*', pretrained=True)]


def _weights(name: str, tag: str) -> dict[str, Any]:
    found = weights.find(name, tag)
    if found is None:
        return {'at': f'hf://{timm.get_pretrained_cfg(f"{name}.{tag}").hf_hub_id}'}
    if found.place.pinned:  # the index knows; the weights themselves may not be here yet
        known = index()[found.name_tag]
    else:
        manifest = open_folder(found).manifest
        known = manifest | {key: manifest['metrics'].get(key) for key in ('top1', 'n')}
    return {'at': str(found.place)} | {key: known.get(key) for key in ('dataset', 'top1', 'n', 'bytes', 'sha256')}
