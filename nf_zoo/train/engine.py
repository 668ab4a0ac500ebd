"""The training loop, on timm's optimizers, schedulers, clipping, EMA and mixup.

All randomness is a function of (seed, epoch, step): an epoch's order and crops come from (seed, epoch), and Python's,
numpy's and torch's generators are seeded anew at every step. A run that is continued from any checkpoint therefore
repeats, on a CPU bit for bit, what the uninterrupted run does.
"""

import dataclasses
import hashlib
import math
import time
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..block_scalars import block_shares, dead_blocks
from ..errors import CheckFailed, UserError
from ..files import tensor_bytes
from ..text import say
from . import allocator, build, report, run_folder, state
from .checkpoint import load_newest
from .data.fingerprint import fingerprint, same_data
from .data.memory import seed_everything
from .diagnosis import layer_of_the_gradient, layer_of_the_output
from .evaluation import accuracies, totals
from .gradient_histogram import GradientHistogram
from .gradients import Gradients
from .processes import Processes, share_out
from .progress import Interrupted, Progress, StopSignal, Waiting
from .recipe import Recipe, changed_settings
from .record import Record

BLOCK_IMAGES = 64  # for the shares of the blocks
INIT_BATCHES = 8  # as RescaleNet's official code
# A line says that the loader is slow where training waits for more than this part of an epoch and these seconds.
SLOW_LOADER, SLOW_SECONDS = 0.1, 2.0


def train(recipe: Recipe, *, log: build.Log = say, bar: bool | None = None, change: bool = False) -> dict[str, Any]:
    """Run ``recipe`` and return the content of its result.json. Under torchrun, this is one of the run's processes.

    ``bar`` shows a progress bar on standard error; by default, where that is a terminal. ``change`` lets a run that
    goes on have another learning rate, warm-up or clipping.

    Raises:
        UserError: Bad input, or a folder that can't be written.
        CheckFailed: A loss or a gradient is no longer finite, or another process of the run has ended.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    recipe.check()
    if not recipe.output:
        raise UserError('where should the run go? give --output RUN')
    run_folder.check(recipe.run_dir, recipe.resume)
    with Processes(recipe.device) as processes:
        claim = run_folder.claimed(recipe.run_dir, recipe.resume) if processes.first else nullcontext()
        with claim:
            processes.wait()  # until the first has claimed the folder
            if not processes.first:
                log, bar = _silent, False
            return Run.prepared(recipe, recipe.run_dir, log, bar, processes=processes, change=change).fit()


def _silent(line: str) -> None:
    pass


class Run:
    """A training run: its model, data and optimizer, and the loop.

    The constructor builds everything in memory. `Run.start` and `Run.resume` make a run that is ready to `fit`, which
    is the first to write. ``sets`` are a training and a validation set, by default those that the recipe names;
    ``images`` is the number of images of an update, by default that of this number of processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        log: build.Log,
        bar: bool | None,
        sets: tuple[Any, Any] | None = None,
        processes: Processes | None = None,
        images: int | None = None,
    ) -> None:
        self.recipe, self.folder, self.log, self.bar = recipe, folder, log, bar
        self.processes = processes or Processes()
        size = self.processes.size
        self.batch_size, self.accumulate = recipe.batch_size, recipe.grad_accum_steps
        self.images = images or self.batch_size * self.accumulate * size
        if self.images != self.batch_size * self.accumulate * size:
            self.batch_size, self.accumulate = share_out(
                self.images, recipe.batch_size, size, bool(recipe.mixup or recipe.cutmix)
            )
        self.device = build.open_device(recipe.device, self.processes)
        sets = sets or build.read_sets(recipe, log)
        self.fingerprint = {'training': fingerprint(sets[0]), 'validation': fingerprint(sets[1])}
        seed_everything(recipe.seed)
        self.model = build.build_model(recipe, sets[0].classes, log)
        self.num_classes = int(self.model.num_classes)  # type: ignore[arg-type]
        self.config = build.data_config(recipe, self.model, sets)
        self.data = build.build_data(recipe, sets, self.config, self.device, self.batch_size)
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model.to(self.device).to(memory_format=self.layout)
        build.try_sizes(recipe, self.model, self.config, self.device)
        self.autocast = build.build_autocast(recipe, self.device, log)
        self.mixup = build.build_mixup(recipe, self.num_classes)
        self.loss = build.build_loss(recipe).to(self.device)
        self.steps = self.data.train_n // self.images
        if not self.steps:
            raise UserError(f'{self.data.train_n} training images are fewer than one update takes; lower batch_size')
        if not self.data.val_n:
            raise UserError(f'{recipe.dataset} has no validation images')
        self.ema = build.build_ema(recipe, self.model)
        self.optimizer = build.build_optimizer(recipe, self.model, self.images)
        self.scheduler, self.epochs = build.build_scheduler(recipe, self.optimizer, self.steps)
        self.gradients = Gradients(self.model, recipe, self.device)
        watched = recipe.log_gradients
        self.histogram = GradientHistogram(self.model, watched, folder) if watched else None
        groups = self.optimizer.param_groups
        self.plain_group = min(range(len(groups)), key=lambda i: abs(groups[i]['lr_scale'] - 1))
        self.lr = groups[self.plain_group]['lr']
        self.updates, self.loss_sum, self.scored = 0, 0.0, self.data.val_n
        self.waited = self.waited_share = 0.0
        self.record = Record(folder, recipe, self.processes.first)
        self.parallel = self.processes.averaged(self.model, self.device)
        self.forward = build.build_forward(recipe, self.parallel)

    @classmethod
    def prepared(
        cls,
        recipe: Recipe,
        folder: Path,
        log: build.Log,
        bar: bool | None,
        sets: tuple[Any, Any] | None = None,
        processes: Processes | None = None,
        change: bool = False,
    ) -> 'Run':
        """The run that a recipe asks for: one that goes on, or one from the beginning. Nothing is written."""
        if not recipe.resume:
            return cls.start(recipe, folder, log, bar, sets, processes)
        return cls.resume(recipe, folder, log, bar, sets, processes, change)

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> 'Run':
        """A run from its beginning, with the arguments of the constructor. Raises `UserError`."""
        run = cls(*args, **kwargs)
        if not (run.recipe.pretrained or run.recipe.initial_checkpoint):
            run._init_from_data()
        return run

    @classmethod
    def resume(
        cls,
        recipe: Recipe,
        folder: Path,
        log: build.Log,
        bar: bool | None,
        sets: tuple[Any, Any] | None = None,
        processes: Processes | None = None,
        change: bool = False,
    ) -> 'Run':
        """A run that goes on from its newest checkpoint; from the beginning, where there is none yet.

        The images of an update stay those that the run began with, on however many processes it goes on.

        Raises:
            UserError: The settings or the data are not those of the run, or every checkpoint is damaged.
        """
        found = load_newest(folder / run_folder.CHECKPOINTS)
        if not found:
            log(f'{folder} has no checkpoint yet: starting from the beginning')
            return cls.start(recipe, folder, log, bar, sets, processes)
        saved = found[1]
        changes = changed_settings(recipe, saved['settings'], folder, change)
        sets = sets or build.read_sets(recipe, log)
        same_data(saved.get('data'), {'training': fingerprint(sets[0]), 'validation': fingerprint(sets[1])}, folder)
        images = recipe.batch_size * recipe.grad_accum_steps * saved.get('processes', 1)
        run = cls(recipe, folder, log, bar, sets, processes, images)
        state.restore(run, *found, changes)
        return run

    def fit(self) -> dict[str, Any]:
        """Train to the end, and return the content of result.json. Raises as `train` does."""
        self.record.open()
        with StopSignal() as stop, allocator.keep_freed():
            for epoch in range(len(self.record.rows), self.epochs):
                self._epoch(epoch, stop)
        return self._finish()

    def _epoch(self, epoch: int, stop: StopSignal) -> None:
        clock = self.record.clock(epoch, self.updates)
        if self.mixup and self.recipe.mixup_off_epoch and epoch >= self.recipe.mixup_off_epoch:
            self.mixup.mixup_enabled = False
        self.model.train()
        try:
            train_loss = self.train_epoch(epoch, stop)
        finally:
            clock.trained(self.updates)
        if self.scheduler:
            self.scheduler.step(epoch + 1)
        row: report.Row = {'epoch': epoch, 'lr': self.lr, 'train_loss': train_loss}
        row['grad_norm'], clipped = (self.gradients.sums / self.steps).tolist()
        if self.gradients.threshold:
            row['clipped'] = clipped
        text = f'epoch {epoch + 1}/{self.epochs}: train loss {train_loss:.4f}'
        if (epoch + 1) % self.recipe.val_interval == 0 or epoch + 1 == self.epochs:
            text += self._evaluate(row)
        self.record.rows.append(row)
        self.loss_sum = 0.0
        self.gradients.sums.zero_()
        state.save(self)
        self.log(f'{text}, {clock.evaluated():.1f} s')
        self.record.plot(row)
        if self.histogram and self.processes.first:
            self.histogram.close_epoch(epoch, self.record.tensorboard)
        if self.waited_share > SLOW_LOADER and self.waited > SLOW_SECONDS:
            self.log(
                f'the loader is too slow: training waited for it {self.waited_share:.0%} of the epoch; '
                f'try more --workers (now {self.recipe.workers}), a faster disk or smaller files'
            )
        if self.processes.any(stop.asked) and epoch + 1 < self.epochs:
            raise Interrupted(self.folder)

    def _evaluate(self, row: report.Row) -> str:
        """Put the scores into the ``row`` of the epoch, keep the best weights; returns what the log says of it."""
        scores = {'eval': self._score(self.model)}
        if self.ema:
            scores['ema'] = self._score(self.ema.module)
        self.scored = int(scores['eval']['n'])
        if not math.isfinite(scores['eval']['loss']):
            x, _ = next(iter(self._laid_out(self.data.val_batches())))
            raise self.no_number('the validation loss', layer_of_the_output(self.model.eval(), x))
        for name, found in scores.items():
            row.update({f'{name}_{key}': found[key] for key in ('loss', 'top1', 'top5', 'ece')})
        average = self.ema.module if self.ema else self.model
        self.record.keep_the_best(int(row['epoch']), scores['ema' if self.ema else 'eval'], average)
        top1 = ', EMA '.join(f'{found["top1"]:.2f} %' for found in scores.values())
        return f', eval loss {row["eval_loss"]:.4f}, top 1 {top1}'

    def _score(self, model: nn.Module) -> dict[str, float]:
        # Without autocast: what is recorded is what `verify` will measure.
        batches = self.data.val_batches(self.processes.rank, self.processes.size)
        return accuracies(*self.processes.sum(*totals(model, self._laid_out(batches))))

    def train_epoch(self, epoch: int, stop: StopSignal) -> float:
        """Train from ``self.updates`` to the end of ``epoch``; returns the epoch's mean loss."""
        recipe, model, optimizer, processes = self.recipe, self.model, self.optimizer, self.processes
        start = self.updates - epoch * self.steps
        first = start * self.accumulate * processes.size + processes.rank
        laid_out = self._laid_out(self.data.train_batches(epoch, first, processes.size))
        batches = Waiting(laid_out)
        total = torch.tensor(self.loss_sum, dtype=torch.float64, device=self.device)
        began = time.perf_counter()
        title = f'epoch {epoch + 1}/{self.epochs}'
        # A loader that is left to the garbage collector waits ten seconds for each of its workers.
        with closing(laid_out), Progress(title, start, self.steps, self.log, self.bar) as progress:
            for step in range(start, self.steps):
                total += self.backward(batches, epoch, step)
                if self.histogram:
                    self.histogram.add()
                norm = self.gradients.clip(epoch)
                if self.device.type == 'cpu' and not math.isfinite(norm):  # elsewhere looking would wait for the device
                    raise self.no_number('the gradient', layer_of_the_gradient(model))
                self.lr = optimizer.param_groups[self.plain_group]['lr']
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.updates += 1
                if self.ema:
                    self.ema.update(model, step=self.updates)
                if self.scheduler:
                    self.scheduler.step_update(self.updates)
                done = step + 1
                if done % recipe.log_interval == 0 or done == self.steps:
                    mean = self._mean_loss(total, done)
                    seconds = time.perf_counter() - began
                    progress.report(done, mean, (done - start) * self.images / seconds, batches.seconds / seconds)
                asked = processes.any(stop.asked)
                due = recipe.recovery_interval and self.updates % recipe.recovery_interval == 0
                if (asked or due) and done < self.steps:
                    self._mean_loss(total, done)  # no checkpoint of weights that are no numbers
                    self.loss_sum = total.item()
                    state.save(self)
                    if asked:
                        raise Interrupted(self.folder)
        self.waited, self.waited_share = batches.seconds, batches.seconds / (time.perf_counter() - began)
        return self._mean_loss(total, self.steps)

    def backward(self, batches: Any, epoch: int, step: int) -> Tensor:
        """The gradients of one update, from its ``batches`` in this process; returns the mean of their losses."""
        processes, accumulate = self.processes, self.accumulate
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in range(accumulate):
            x, y = next(batches)
            # A batch has the same number, hence the same draws, on however many processes the run goes.
            number = (step * accumulate + part) * processes.size + processes.rank
            seed_everything(self.recipe.seed, epoch, 1, number)
            if self.mixup:
                x, y = self.mixup(x, y)
            wait = part + 1 < accumulate and processes.size > 1
            with self.parallel.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with self.autocast():
                    loss = self.loss(self.forward(x), y)
                if self.device.type == 'cpu' and not math.isfinite(loss.detach()):
                    seed_everything(self.recipe.seed, epoch, 1, number)
                    raise self.no_number('the training loss', layer_of_the_output(self.model, x, self.autocast))
                (loss / accumulate if accumulate > 1 else loss).backward()
            total += loss.detach()
        return total / accumulate

    def _mean_loss(self, total: Tensor, done: int) -> float:
        (summed,) = self.processes.sum(total.item())
        mean = summed / (done * self.processes.size)
        if not math.isfinite(mean) or not math.isfinite(self.gradients.sums.sum()):
            raise self.no_number('the training loss or the gradient', 'the layer is not known on this device')
        return mean

    def no_number(self, what: str, where: str) -> CheckFailed:
        """The error that ends the run: ``what`` is NaN or infinity, and ``where`` that arose."""
        epoch, done = divmod(self.updates, self.steps)
        newest = max((int(p.stem) for p in self.folder.glob(f'{run_folder.CHECKPOINTS}/*.json')), default=None)
        kept = 'no checkpoint was written yet: repeat the command with --resume'
        if newest is not None:
            kept = f'the checkpoint of update {newest} is kept: repeat the command with --resume --change'
        return CheckFailed(
            f'{what} is no longer finite at epoch {epoch + 1}, update {done + 1} of {self.steps}, lr {self.lr:.4g}: '
            f'{where}; {kept} and a smaller --lr, more --warmup-epochs or --clip-grad 1'
        )

    def _laid_out(self, batches: Any) -> Any:
        for x, y in batches:
            yield x.contiguous(memory_format=self.layout), y

    def _init_from_data(self) -> None:
        """Let a method set what its paper initialises from data, with the first training batches (N, C, H, W)."""
        init = getattr(self.model, 'init_from_data', None)
        if init:
            seed_everything(self.recipe.seed, 0, 3)
            with closing(self._laid_out(self.data.train_batches(0, 0))) as batches:
                init(x for x, _ in islice(batches, INIT_BATCHES))
            if self.ema:
                self.ema.set(self.model)

    def _blocks(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Each block's learned scalar and its branch's share of the output, on the first validation images."""
        if not self.processes.first:
            return {}
        x, _ = next(iter(self._laid_out(self.data.val_batches())))
        found = block_shares(model, x[:BLOCK_IMAGES])
        if dead := dead_blocks(found):
            self.log(f'{len(dead)} of {len(found)} blocks contribute nothing: {", ".join(dead)}')
        return found

    def _finish(self) -> dict[str, Any]:
        result_model, record = self.ema.module if self.ema else self.model, self.record
        weights = tensor_bytes(result_model.state_dict())
        last, kind = record.rows[-1], 'ema' if self.ema else 'eval'
        seconds = record.seconds()
        result = run_folder.Result(
            model=self.recipe.model,
            dataset=self.recipe.dataset.removeprefix('torch/'),
            num_classes=self.num_classes,
            classes=list(self.data.classes),
            input_size=list(self.config['input_size']),
            mean=list(self.config['mean']),
            std=list(self.config['std']),
            interpolation=self.config['interpolation'],
            crop_pct=self.config['crop_pct'],
            metrics={
                # A finished run of an older version has no `ece`.
                **{key: last[f'{kind}_{key}'] for key in ('top1', 'top5', 'loss', 'ece') if f'{kind}_{key}' in last},
                'n': self.scored,
            },
            best=record.best,
            changes=record.changes,
            train_n=self.data.train_n,
            epochs=self.epochs,
            steps=self.updates,
            seed=self.recipe.seed,
            processes=self.processes.size,
            recipe=self.recipe.settings(),
            seconds=round(seconds, 1),
            seconds_per_epoch=round(seconds / len(record.rows), 2),
            hardware=report.hardware(self.device),
            versions=report.versions(),
            blocks=self._blocks(result_model),
            note=report.parent(self.recipe, getattr(self.model, 'pretrained_cfg', {})),
            sha256=hashlib.sha256(weights).hexdigest(),
            bytes=len(weights),
        )
        if self.histogram and self.processes.first:
            self.histogram.draw()
        record.finish(weights, result, self.log)
        self.log(f'top 1 {result.metrics["top1"]:.2f} % on {self.scored} images; written to {self.folder}')
        return dataclasses.asdict(result)
