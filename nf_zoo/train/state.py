"""The state of a run, as a checkpoint holds it: taken from a run and put back into one.

``run`` is an `engine.Run`; the engine imports this module, so the type is not named here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import not_finite
from . import run_folder
from .checkpoint import save_checkpoint
from .data.stream import StreamData


def save(run: Any) -> None:
    """Write a checkpoint of ``run``, and its rows. Raises `CheckFailed` if a weight is no longer finite."""
    losses = [found[0] for found in run.processes.gather(run.loss_sum)]
    if not run.processes.first:
        return
    average = run.ema.module if run.ema else None
    tensors, plain = _tensors_of(run.model, average, run.record.best_tensors, run.optimizer)
    bad = not_finite(tensors)
    if bad:  # such a checkpoint could never be continued
        raise run.no_number('a weight or a state of the optimizer', f'{bad} holds NaN or infinity')
    state = {
        'updates': run.updates,
        'processes': run.images // (run.recipe.batch_size * run.recipe.grad_accum_steps),
        'loss_sums': losses,
        'gradient_sums': run.gradients.sums.tolist(),
        'scored': run.scored,
        'shares': run.data.shares if isinstance(run.data, StreamData) else None,
        'optimizer': plain,
        'settings': run.recipe.settings(),
        'data': run.fingerprint,
        **run.record.state(),
    }
    folder = run.folder / run_folder.CHECKPOINTS
    save_checkpoint(folder, run.updates, tensors, state, run.recipe.checkpoint_hist)
    run.record.write_rows()


def restore(
    run: Any,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    damaged: list[str],
    changes: dict[str, list[Any]],
) -> None:
    """Put what `save` wrote into ``run``, whose settings may have ``changes``; the log says what is different."""
    average = run.ema.module if run.ema else None
    fresh: list[dict[str, Any]]
    fresh = [{key: group[key] for key in ('lr', 'initial_lr') if key in group} for group in run.optimizer.param_groups]
    run.record.restore(state, _put_tensors(run.model, average, run.optimizer, tensors, state['optimizer']))
    run.updates, run.scored = state['updates'], state.get('scored', run.scored)
    # Sums go on where they were, so that they are rounded as in the uninterrupted run.
    losses = state.get('loss_sums') or [state['loss_sum']]
    size = run.processes.size
    mean = sum(losses) / len(losses)
    run.loss_sum = losses[run.processes.rank] if len(losses) == size else mean
    run.gradients.sums += torch.tensor(state.get('gradient_sums', (0.0, 0.0)), dtype=torch.float64).to(run.device)
    run.lr = run.record.rows[-1]['lr'] if run.record.rows else 0.0
    for name in damaged:
        run.log(f'checkpoint {name} is damaged: going back to the one before')
    epoch = run.updates // run.steps
    run.log(f'continuing at epoch {epoch + 1}, update {run.updates - epoch * run.steps} of {run.steps}')
    if changes:
        _change(run, changes, fresh)
    if isinstance(run.data, StreamData):
        for line in run.data.resumed(state['shares'], (run.updates - epoch * run.steps) * run.images):
            run.log(line)
    if len(losses) != size:
        draws = '' if run.batch_size == run.recipe.batch_size else ', and the draws of mixup and dropout are others'
        run.log(
            f'processes: {size} instead of {len(losses)}; an update still takes {run.images} images, now as '
            f'{run.accumulate} x {run.batch_size} in each process; sums are rounded in another order{draws}'
        )


def _change(run: Any, changes: dict[str, list[Any]], fresh: list[dict[str, Any]]) -> None:
    """Go on with other settings: the optimizer's rates are those of the new schedule at this update."""
    for group, rates in zip(run.optimizer.param_groups, fresh, strict=True):
        group.update(rates)
    if run.scheduler and run.updates:
        run.scheduler.step_update(run.updates)
        if run.updates >= run.steps:
            run.scheduler.step(run.updates // run.steps)
    run.record.changes = [*run.record.changes, {'update': run.updates, **changes}]
    text = ', '.join(f'{key} {then!r} -> {now!r}' for key, (then, now) in changes.items())
    run.log(f'changed from here on: {text}')


def _tensors_of(
    model: nn.Module, ema: nn.Module | None, best: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a checkpoint, and what the optimizer holds besides tensors. Raises `UserError`.

    The names are ``model/KEY``, ``ema/KEY``, ``best/KEY`` and ``optimizer/PARAMETER/KEY``.
    """
    moments, plain = _optimizer_state(model, optimizer)
    parts = {'model': model.state_dict(), 'ema': ema.state_dict() if ema else {}, 'best': best}
    tensors = {f'{part}/{name}': t for part, found in parts.items() for name, t in found.items()}
    return {**tensors, **moments}, plain


def _put_tensors(
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    plain: dict[str, Any],
) -> dict[str, Tensor]:
    """Undo `_tensors_of`; returns the best weights so far."""

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
