"""The training loop, on timm's optimizers, schedulers, clipping, EMA and mixup.

All randomness is a function of (seed, epoch, step): an epoch's order and crops come from (seed, epoch), and Python's,
numpy's and torch's generators are seeded anew at every step. A run that is continued from any checkpoint therefore
repeats, on a CPU bit for bit, what the uninterrupted run does.
"""

import hashlib
import math
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.models import model_parameters
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn

from ..errors import CheckFailed, UserError
from ..files import tensor_bytes, write_whole
from . import build, report
from .checkpoint import load_newest, optimizer_state, restore_optimizer, save_checkpoint
from .data import seed_everything
from .evaluation import score
from .progress import Interrupted, Progress, StopSignal
from .recipe import Recipe

INIT_BATCHES = 8  # as RescaleNet's official code


def train(recipe: Recipe, *, log: build.Log = print, bar: bool | None = None) -> dict[str, Any]:
    """Run ``recipe`` and return what its result.json says.

    ``bar`` shows a progress bar on stderr; by default, where stderr is a terminal. Raises `UserError` for bad input or
    a folder that can't be written, `CheckFailed` when the loss is no longer finite, and `Interrupted` after Ctrl-C or
    SIGTERM, once a checkpoint is written.
    """
    run = recipe.run_dir
    if not str(recipe.output):
        raise UserError('where should the run go? give --output RUN')
    _claim(run, recipe)
    return Run(recipe, run, log, bar).fit()


def _claim(run: Path, recipe: Recipe) -> None:
    if (run / 'recipe.yaml').exists() and not recipe.resume:
        raise UserError(f'{run} already holds a run: continue it with --resume, or choose another --output')
    for torn in [*run.glob('.*.tmp'), *run.glob('checkpoints/.*.tmp')]:
        with suppress(OSError):
            torn.unlink()


class Run:
    """A training run in its folder. ``sets``: a training and a validation set, else those that the recipe names."""

    def __init__(
        self, recipe: Recipe, folder: Path, log: build.Log, bar: bool | None, sets: tuple[Any, Any] | None = None
    ) -> None:
        self.recipe, self.folder, self.log, self.bar = recipe, folder, log, bar
        found = load_newest(folder / 'checkpoints') if recipe.resume else None
        if found:
            self._same_settings(found[1]['settings'])
        self.device = build.build_device(recipe)
        sets = sets or build.read_sets(recipe)
        seed_everything(recipe.seed)
        self.model = build.build_model(recipe, sets[0].classes, log)
        self.num_classes = int(self.model.num_classes)  # type: ignore[arg-type]
        self.config = build.data_config(recipe, self.model, sets)
        self.data = build.build_data(recipe, sets, self.config, self.device)
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model.to(self.device).to(memory_format=self.layout)
        self.autocast = build.build_autocast(recipe, self.device, log)
        self.mixup = build.build_mixup(recipe, self.num_classes)
        self.loss = build.build_loss(recipe).to(self.device)
        self.steps = self.data.train_n // (recipe.batch_size * recipe.grad_accum_steps)
        if not self.steps:
            raise UserError(f'{self.data.train_n} training images are fewer than one update takes; lower batch_size')
        if not (found or recipe.pretrained or recipe.initial_checkpoint):
            self._init_from_data()
        self.ema = None
        if recipe.model_ema:
            self.ema = ModelEmaV3(self.model, decay=recipe.model_ema_decay, use_warmup=recipe.model_ema_warmup)
        self.optimizer = build.build_optimizer(recipe, self.model)
        self.scheduler, self.epochs = create_scheduler_v2(
            self.optimizer, updates_per_epoch=self.steps, **scheduler_kwargs(recipe)
        )
        if recipe.clip_grad is not None:
            self.clipped = list(model_parameters(self.model, exclude_head=recipe.clip_mode == 'agc'))
        groups = self.optimizer.param_groups
        self.plain_group = min(range(len(groups)), key=lambda i: abs(groups[i]['lr_scale'] - 1))
        self.updates, self.loss_sum = 0, 0.0
        self.rows: list[report.Row] = []
        if found:
            self._restore(*found)
        elif recipe.resume:
            log(f'{folder} has no checkpoint yet: starting from the beginning')
        times = report.read_csv(folder / 'times.csv') if recipe.resume else []
        self.times = [row for row in times if row['last_update'] <= self.updates]
        self.forward = torch.compile(self.model, backend=recipe.torchcompile) if recipe.torchcompile else self.model
        self.tensorboard = report.tensorboard(folder) if recipe.log_tensorboard else None
        text = yaml.safe_dump(recipe.as_dict(), sort_keys=False)
        write_whole(folder / 'recipe.yaml', text.encode())

    def fit(self) -> dict[str, Any]:
        with StopSignal() as stop:
            for epoch in range(len(self.rows), self.epochs):
                self._epoch(epoch, stop)
        return self._finish()

    def _epoch(self, epoch: int, stop: StopSignal) -> None:
        clock = report.Clock(self.folder / 'times.csv', self.times, epoch, self.updates)
        if self.mixup and self.recipe.mixup_off_epoch and epoch >= self.recipe.mixup_off_epoch:
            self.mixup.mixup_enabled = False
        self.model.train()
        try:
            train_loss = self.train_epoch(epoch, stop)
        finally:
            clock.trained(self.updates)
        if self.scheduler:
            self.scheduler.step(epoch + 1)
        scores = {'eval': self._score(self.model)}
        if self.ema:
            scores['ema'] = self._score(self.ema.module)
        self._must_be_finite(scores['eval']['loss'], 'validation', epoch, self.steps)
        row = {'epoch': epoch, 'lr': self.lr, 'train_loss': train_loss}
        for name, found in scores.items():
            row.update({f'{name}_{key}': found[key] for key in ('loss', 'top1', 'top5')})
        self.rows.append(row)
        self.loss_sum = 0.0
        self._save()
        report.write_csv(self.folder / 'summary.csv', self.rows)
        seconds = clock.evaluated()
        if self.tensorboard:
            for key in row.keys() - {'epoch'}:
                self.tensorboard.add_scalar(key, row[key], epoch)
        top1 = ', EMA '.join(f'{found["top1"]:.2f} %' for found in scores.values())
        self.log(
            f'epoch {epoch + 1}/{self.epochs}: train loss {train_loss:.4f}, eval loss {row["eval_loss"]:.4f}, '
            f'top 1 {top1}, {seconds:.1f} s'
        )
        if stop.asked and epoch + 1 < self.epochs:
            raise Interrupted(self.folder)

    def _score(self, model: nn.Module) -> dict[str, float]:
        return score(model, self._laid_out(self.data.val_batches()), self.autocast)

    def train_epoch(self, epoch: int, stop: StopSignal) -> float:
        """Train from ``self.updates`` to the end of ``epoch``; returns the epoch's mean loss."""
        recipe, model, optimizer = self.recipe, self.model, self.optimizer
        accumulate = recipe.grad_accum_steps
        start = self.updates - epoch * self.steps
        batches = iter(self._laid_out(self.data.train_batches(epoch, start * accumulate)))
        total = torch.tensor(self.loss_sum, dtype=torch.float64, device=self.device)
        began = time.perf_counter()
        with Progress(f'epoch {epoch + 1}/{self.epochs}', start, self.steps, self.log, self.bar) as progress:
            for step in range(start, self.steps):
                for part in range(accumulate):
                    x, y = next(batches)
                    seed_everything(recipe.seed, epoch, 1, step * accumulate + part)
                    if self.mixup:
                        x, y = self.mixup(x, y)
                    with self.autocast():
                        loss = self.loss(self.forward(x), y)
                    (loss / accumulate if accumulate > 1 else loss).backward()
                    total += loss.detach()
                if recipe.clip_grad is not None:
                    dispatch_clip_grad(self.clipped, recipe.clip_grad, mode=recipe.clip_mode)
                self.lr = optimizer.param_groups[self.plain_group]['lr']
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.updates += 1
                if self.ema:
                    self.ema.update(model, step=self.updates)
                if self.scheduler:
                    self.scheduler.step_update(self.updates)
                done = step + 1
                if done % recipe.log_interval == 0 or stop.asked or done == self.steps:
                    mean = self._mean_loss(total, epoch, done)
                    rate = (done - start) * recipe.batch_size * accumulate / (time.perf_counter() - began)
                    progress.report(done, mean, rate)
                if stop.asked and done < self.steps:
                    self.loss_sum = total.item()
                    self._save()
                    raise Interrupted(self.folder)
        return self._mean_loss(total, epoch, self.steps)

    def _mean_loss(self, total: torch.Tensor, epoch: int, done: int) -> float:
        mean = total.item() / (done * self.recipe.grad_accum_steps)
        self._must_be_finite(mean, 'training', epoch, done)
        return mean

    def _must_be_finite(self, loss: float, what: str, epoch: int, done: int) -> None:
        if not math.isfinite(loss):
            raise CheckFailed(
                f'the {what} loss is {loss} at epoch {epoch + 1}, update {done} of {self.steps}, lr {self.lr:.4g}: '
                f'try a smaller --lr, more --warmup-epochs or --clip-grad 1'
            )

    def _laid_out(self, batches: Any) -> Any:
        for x, y in batches:
            yield x.contiguous(memory_format=self.layout), y

    def _init_from_data(self) -> None:
        """Let a method set what its paper initialises from data, with the first training batches (N, C, H, W)."""
        init = getattr(self.model, 'init_from_data', None)
        if init:
            seed_everything(self.recipe.seed, 0, 3)
            init(x for x, _ in islice(self._laid_out(self.data.train_batches(0, 0)), INIT_BATCHES))

    def _save(self) -> None:
        tensors = {f'model/{name}': t for name, t in self.model.state_dict().items()}
        if self.ema:
            tensors |= {f'ema/{name}': t for name, t in self.ema.module.state_dict().items()}
        moments, plain = optimizer_state(self.model, self.optimizer)
        state = {
            'updates': self.updates,
            'loss_sum': self.loss_sum,
            'rows': self.rows,
            'optimizer': plain,
            'settings': self.recipe.settings(),
        }
        folder = self.folder / 'checkpoints'
        save_checkpoint(folder, self.updates, {**tensors, **moments}, state, self.recipe.checkpoint_hist)

    def _restore(self, tensors: dict[str, torch.Tensor], state: dict[str, Any], damaged: list[str]) -> None:
        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part('model/'))
        if self.ema:
            self.ema.module.load_state_dict(part('ema/'))
        restore_optimizer(self.model, self.optimizer, tensors, state['optimizer'])
        self.updates, self.loss_sum, self.rows = state['updates'], state['loss_sum'], state['rows']
        self.lr = self.rows[-1]['lr'] if self.rows else 0.0
        for name in damaged:
            self.log(f'checkpoint {name} is damaged: going back to the one before')
        report.write_csv(self.folder / 'summary.csv', self.rows)
        epoch = self.updates // self.steps
        self.log(f'continuing at epoch {epoch + 1}, update {self.updates - epoch * self.steps} of {self.steps}')

    def _same_settings(self, saved: dict[str, Any]) -> None:
        now, then = build.as_json(self.recipe.settings()), build.as_json(Recipe().settings()) | saved
        changed = [f'{key} {then[key]!r} -> {now[key]!r}' for key in now if then[key] != now[key]]
        if changed:
            raise UserError(
                f'{self.folder} was started with other settings ({", ".join(changed)}): '
                f'give the same ones, or choose another --output'
            )

    def _finish(self) -> dict[str, Any]:
        result_model = self.ema.module if self.ema else self.model
        weights = tensor_bytes(result_model.state_dict())
        write_whole(self.folder / 'model.safetensors', weights)
        title = f'{self.recipe.model}, {self.recipe.dataset}'
        problem = report.draw_curves(self.folder / 'curves.png', self.rows, title)
        if problem:
            self.log(problem)
        if self.tensorboard:
            self.tensorboard.close()
        last, kind = self.rows[-1], 'ema' if self.ema else 'eval'
        seconds = sum(row['train_seconds'] + row['eval_seconds'] for row in self.times)
        result = {
            'model': self.recipe.model,
            'dataset': self.recipe.dataset.removeprefix('torch/'),
            'num_classes': self.num_classes,
            'classes': list(self.data.classes),
            'input_size': list(self.config['input_size']),
            'mean': list(self.config['mean']),
            'std': list(self.config['std']),
            'interpolation': self.config['interpolation'],
            'crop_pct': self.config['crop_pct'],
            'metrics': {**{key: last[f'{kind}_{key}'] for key in ('top1', 'top5', 'loss')}, 'n': self.data.val_n},
            'train_n': self.data.train_n,
            'epochs': self.epochs,
            'steps': self.updates,
            'seed': self.recipe.seed,
            'recipe': self.recipe.settings(),
            'seconds': round(seconds, 1),
            'seconds_per_epoch': round(seconds / len(self.rows), 2),
            'hardware': report.hardware(self.device),
            'versions': report.versions(),
            'sha256': hashlib.sha256(weights).hexdigest(),
            'bytes': len(weights),
        }
        report.write_json(self.folder / 'result.json', result)
        self.log(f'top 1 {result["metrics"]["top1"]:.2f} % on {self.data.val_n} images; written to {self.folder}')
        return result
