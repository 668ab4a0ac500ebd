"""The folder of a training run: the names of its files, the result of a finished run, and reading both back.

This module is the one owner of the folder. The engine writes through it; publish, evaluate, compare and the tables of
results read through it.

    recipe.yaml          all settings of the run
    checkpoints/         the newest checkpoints, from which ``--resume`` continues
    summary.csv          a row for each epoch
    times.csv            the seconds of each epoch
    best.safetensors     the weights of the epoch with the highest accuracy
    model.safetensors    the weights of the last epoch
    result.json          `Result`; the last file that a run writes
    curves.png           loss, accuracy, learning rate and gradient norm
    tensorboard/         events, with ``log_tensorboard``
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import yaml
from torch import nn

from ..errors import CheckFailed, UserError, nearest
from ..files import not_finite, read_json, read_tensors, tensor_bytes, write_whole
from .data.labels import label_descriptions
from .recipe import Recipe, load_recipe
from .report import versions

fcntl: Any
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

RECIPE, CHECKPOINTS, SUMMARY, TIMES = 'recipe.yaml', 'checkpoints', 'summary.csv', 'times.csv'
BEST, WEIGHTS, RESULT, CURVES = 'best.safetensors', 'model.safetensors', 'result.json', 'curves.png'


@dataclass(frozen=True)
class Result:
    """The content of result.json: the model, its data, its accuracy, and how it was trained."""

    model: str
    dataset: str
    num_classes: int
    classes: list[str]
    input_size: list[int]  # channels, height, width
    mean: list[float]
    std: list[float]
    interpolation: str
    crop_pct: float
    metrics: Mapping[str, float]  # top1, top5 and ece in percent, loss, n images
    sha256: str  # of model.safetensors
    bytes: int
    best: Mapping[str, float] = field(default_factory=dict)  # epoch (from 0), top1, top5, loss
    changes: list[dict[str, Any]] = field(default_factory=list)  # settings that --change changed, by update
    train_n: int | None = None
    epochs: int | None = None
    steps: int | None = None
    seed: int | None = None
    processes: int = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    seconds_per_epoch: float | None = None
    hardware: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, Any] = field(default_factory=dict)  # of each block its scalar and its branch's share
    privacy: Mapping[str, Any] = field(default_factory=dict)  # of private training: epsilon, delta, clip, noise ...
    note: str | None = None  # for the card, such as the weights that the training started from

    @property
    def architecture(self) -> str:
        """The model's name without a pretrained tag."""
        return self.model.partition('.')[0]


_TYPES: dict[str, type | tuple[type, ...]] = {  # as JSON has them, or a caller in Python
    **dict.fromkeys(('model', 'dataset', 'interpolation', 'sha256', 'hardware', 'note'), str),
    **dict.fromkeys(('num_classes', 'bytes', 'train_n', 'epochs', 'steps', 'seed', 'processes'), int),
    **dict.fromkeys(('crop_pct', 'seconds', 'seconds_per_epoch'), (int, float)),
    **dict.fromkeys(('classes', 'input_size', 'mean', 'std', 'changes'), (list, tuple)),
    **dict.fromkeys(('metrics', 'best', 'recipe', 'versions', 'blocks', 'privacy'), Mapping),
}


def check_types(values: Mapping[str, Any], where: str | Path) -> None:
    """Raises `UserError`: a key that no result has, or a value of another type than the key's."""
    for key, value in values.items():
        if key not in _TYPES:
            raise UserError(f'{where}: {key!r} is not a fact of a training{nearest(key, _TYPES)}')
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise UserError(f'{where}: {key} cannot be of type {type(value).__name__}')


def is_run(folder: str | Path) -> bool:
    """Whether ``folder`` is the output folder of a run that has finished."""
    try:
        return (Path(folder) / RESULT).is_file()
    except (OSError, ValueError):
        return False


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write recipe.yaml. Raises `UserError` if the folder can't be written."""
    write_whole(folder / RECIPE, yaml.safe_dump(recipe.as_dict(), sort_keys=False).encode())


def read_recipe(folder: Path) -> Recipe:
    """The settings of the run in ``folder``, finished or not. Raises `UserError` if it holds no run."""
    if not (folder / RECIPE).exists():
        raise UserError(f'{folder} holds no run: it has no {RECIPE}')
    return load_recipe(folder / RECIPE)


def write_result(folder: Path, result: Result) -> None:
    """Write result.json. Raises `UserError` if the folder can't be written."""
    text = json.dumps(dataclasses.asdict(result), indent=2, allow_nan=False)
    write_whole(folder / RESULT, f'{text}\n'.encode())


def write_run(folder: Path, model: nn.Module, settings: Recipe, config: Mapping[str, Any], **facts: Any) -> Result:
    """Write the folder of a run that the engine has not trained: weights, recipe and, as the last file, the result.

    Args:
        folder: Where nothing is yet, as `check` says.
        model: Its weights are written.
        settings: For recipe.yaml, as far as there are any.
        config: The preprocessing of the images, as `data_config` gives it.
        facts: Other fields of `Result`; ``model`` and ``dataset`` are those of the settings by default.

    Raises:
        UserError: the folder can't be written, or holds something else.
    """
    check(folder, resume=False)
    data = tensor_bytes(model.state_dict())
    given: dict[str, Any] = {
        'model': settings.model,
        'dataset': settings.dataset,
        **{key: list(config[key]) for key in ('input_size', 'mean', 'std')},
        **{key: config[key] for key in ('interpolation', 'crop_pct')},
        'versions': versions(),
        **facts,
        'sha256': hashlib.sha256(data).hexdigest(),
        'bytes': len(data),
    }
    result = Result(**given)
    write_whole(folder / WEIGHTS, data)
    write_recipe(folder, settings)
    write_result(folder, result)
    return result


def read_result(folder: Path) -> Result:
    """Read a finished run's result.json.

    Raises:
        UserError: The run has not finished, or the file does not describe a run.
    """
    path = folder / RESULT
    if not is_run(folder):
        raise UserError(f'{folder} is not a finished run: it has no {RESULT}; train it to its end first')
    found = read_json(_read(path), path)
    for f in dataclasses.fields(Result):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and found.get(f.name) is None:
            raise UserError(f'{path} has no {f.name}; train the run again')
    values = {f.name: found[f.name] for f in dataclasses.fields(Result) if found.get(f.name) is not None}
    check_types(values, path)
    return Result(**values)


def load_run(folder: Path) -> tuple[nn.Module, bytes, Result]:
    """Load a finished run: the model with its weights, the bytes of its weights file, and its result.

    Raises:
        UserError: The run has not finished, or its files do not describe a model.
        CheckFailed: The weights have changed since the run wrote them, or hold NaN or infinity.
    """
    result = read_result(folder)
    path = folder / WEIGHTS
    data = _read(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != result.sha256:
        raise CheckFailed(f'{path} has changed since training (sha256 {sha256}, not {result.sha256}); train again')
    state = read_tensors(data, path)
    bad = not_finite(state)
    if bad:
        raise CheckFailed(f'{path}: {bad} holds NaN or infinity; train again with a smaller learning rate')
    try:
        args = {**(result.recipe.get('model_kwargs') or {}), 'in_chans': result.input_size[0]}
        model: nn.Module = timm.create_model(result.architecture, num_classes=result.num_classes, **args)
        model.load_state_dict(state)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise UserError(f'{folder / RESULT} does not describe the model of {WEIGHTS} ({reason}); train again') from None
    return model, data, result


def describe(model: nn.Module, result: Result) -> None:
    """Give a run's model the cfg of its data: class names, and the preprocessing of its accuracy's images."""
    cfg: Any = model.pretrained_cfg
    cfg.update({key: tuple(getattr(result, key)) for key in ('input_size', 'mean', 'std')})
    cfg.update(interpolation=result.interpolation, crop_pct=result.crop_pct, label_names=tuple(result.classes))
    cfg.update(num_classes=result.num_classes, tag=None, hf_hub_id=None, url=None)
    cfg['label_descriptions'] = label_descriptions(result.classes) or None
    size = result.recipe.get('val_img_size')
    if type(size) is int and 0 < size <= 16384:
        cfg['input_size'] = (cfg['input_size'][0], size, size)


def check(folder: Path, resume: bool | None) -> None:
    """Raises `UserError` if a run may not write into ``folder``. ``resume`` is None for what can't go on with a run.

    That is so if another run is there, or files that are no run's, or if it can't be a folder.
    """
    try:
        os.stat(folder / RECIPE)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise _cannot_write(folder, error) from None
    holds_a_run = (folder / RECIPE).exists()
    if holds_a_run and not resume:
        instead = '' if resume is None else 'continue it with --resume, or '
        raise UserError(f'{folder} already holds a run: {instead}choose another --output')
    names = (WEIGHTS, BEST, RESULT, SUMMARY, TIMES, CURVES, CHECKPOINTS)
    foreign = next((name for name in names if os.path.lexists(folder / name)), None)
    if foreign and not holds_a_run:
        raise UserError(f'{folder} has a {foreign}, but is not the folder of a run; choose another --output')


_held: set[int] = set()  # the locked folders of this process


def _let_go() -> None:
    """In a forked child: a worker that outlives a run that was killed must not keep the lock."""
    for number in _held:
        os.close(number)
    _held.clear()


if hasattr(os, 'register_at_fork'):  # not on Windows
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def claimed(folder: Path, resume: bool | None) -> Iterator[None]:
    """Hold the folder for one run: made if need be, locked, and checked as `check` does.

    The lock is on the folder itself. The system releases it when the process ends, however it ends. A folder that was
    made here and is still empty at the end goes again.

    Raises:
        UserError: Another run is training into the folder now, or the folder can't be made.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | getattr(os, 'O_DIRECTORY', 0))
    except (OSError, ValueError) as error:
        raise _cannot_write(folder, error) from None
    _held.add(lock)
    try:
        _lock(lock, folder)
        check(folder, resume)
        for torn in [*folder.glob('.*.tmp'), *folder.glob(f'{CHECKPOINTS}/.*.tmp')]:  # a killed process left them
            with suppress(OSError):
                torn.unlink()
        yield
    finally:
        _held.discard(lock)
        with suppress(OSError):
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_UN)  # also for a worker that was just forked
        os.close(lock)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _cannot_write(folder: Path, error: Exception) -> UserError:
    reason = getattr(error, 'strerror', None) or error
    return UserError(f'cannot write {folder}: {reason}; free space or choose another folder')


def _lock(number: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f'another run is training into {folder} now; wait for it, or choose another --output') from None
    except OSError:  # a file system without locks, as some network file systems are
        pass


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
