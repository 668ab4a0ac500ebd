"""Checkpoints: NNNNNNNN.safetensors (tensors) and NNNNNNNN.json (the rest), numbered by the updates done.

The JSON file is written last and holds the hash of the other, and its own, so a torn or damaged checkpoint is noticed.
Nothing in them depends on the time of day, and no generator's state is needed: the engine seeds every step.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import UserError
from ..files import tensor_bytes, write_whole


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> None:
    """Write checkpoint number ``step`` and drop all but the newest ``keep``."""
    name = f'{step:08d}'
    data = tensor_bytes(tensors)
    write_whole(folder / f'{name}.safetensors', data)
    body = {'tensors_sha256': hashlib.sha256(data).hexdigest(), 'state': state}
    write_whole(folder / f'{name}.json', json.dumps({'sha256': _hash(body), **body}, indent=1).encode())
    for old in _numbers(folder)[max(1, keep) :]:
        (folder / f'{old}.json').unlink(missing_ok=True)
        (folder / f'{old}.safetensors').unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]] | None:
    """Tensors, state and the damaged files that were passed over; None when there is no checkpoint at all.

    Raises `UserError` when there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for name in _numbers(folder):
        try:
            found = json.loads((folder / f'{name}.json').read_bytes())
            body = {key: found[key] for key in ('tensors_sha256', 'state')}
            data = (folder / f'{name}.safetensors').read_bytes()
            if found['sha256'] != _hash(body) or body['tensors_sha256'] != hashlib.sha256(data).hexdigest():
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(name)
            continue
        return load(data), body['state'], damaged
    if damaged:
        raise UserError(f'{folder}: every checkpoint is damaged ({", ".join(damaged)}); start again in another folder')
    return None


def _numbers(folder: Path) -> list[str]:
    return sorted((p.stem for p in folder.glob('*.json') if p.stem.isdecimal()), key=int, reverse=True)


def _hash(body: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(body))  # where keys are strings: 18 before 9, which as numbers sort otherwise
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def tensors_of(
    model: nn.Module, ema: nn.Module | None, best: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint, and what the optimizer holds besides tensors. Raises `UserError`.

    The names are ``model/KEY``, ``ema/KEY``, ``best/KEY`` and ``optimizer/PARAMETER/KEY``.
    """
    moments, plain = _optimizer_state(model, optimizer)
    parts = {'model': model.state_dict(), 'ema': ema.state_dict() if ema else {}, 'best': best}
    tensors = {f'{part}/{name}': t for part, found in parts.items() for name, t in found.items()}
    return {**tensors, **moments}, plain


def restore(
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    plain: dict[str, Any],
) -> dict[str, Tensor]:
    """Undo `tensors_of`; returns the best weights so far."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part('model/'))
    if ema:
        ema.load_state_dict(part('ema/'))
    _restore_optimizer(model, optimizer, tensors, plain)
    return part('best/')


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors, as ``optimizer/PARAMETER/KEY``, and all else it holds."""
    names = {id(p): name for name, p in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f'optimizer/{name}/{key}'] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                plain.setdefault(name, {})[key] = value
            else:
                kind = type(optimizer).__name__
                raise UserError(
                    f'the state of {kind} ({key}: {type(value).__name__}) fits no checkpoint; choose another opt'
                )
    groups = [{key: v for key, v in group.items() if key != 'params'} for group in optimizer.param_groups]
    return tensors, {'state': plain, 'groups': groups}


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]
) -> None:
    """Undo `_optimizer_state`. The tensors get their parameter's strides back, since kernels may round by layout."""
    parameters = dict(model.named_parameters())
    for group, saved in zip(optimizer.param_groups, plain['groups'], strict=True):
        for key, value in saved.items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    optimizer.state.clear()
    for name, values in plain['state'].items():
        optimizer.state[parameters[name]].update(values)
    for name, value in tensors.items():
        if name.startswith('optimizer/'):
            _, owner, key = name.split('/')
            parameter = parameters[owner]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif value.numel() > 1:
                value = value.to(parameter.device)
            optimizer.state[parameter][key] = value
