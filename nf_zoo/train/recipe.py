"""A recipe: every setting of a training run, under the names of timm's ``train.py``."""

import json
from argparse import ArgumentParser, BooleanOptionalAction
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import UserError, nearest

Numbers = tuple[float, ...]


def _key(default: Any, text: str) -> Any:
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={'help': text})
    return field(default=default, metadata={'help': text})


@dataclass(frozen=True)
class Recipe:
    """Settings of one run. Names, meanings and defaults are those of timm's ``train.py``; those in `OWN` are
    our own, and ``channels_last`` is on. ``None`` means: what timm or the model says."""

    model: str = _key('', 'name of the model, as in timm.create_model')
    model_kwargs: dict[str, Any] = _key({}, 'further arguments of the model')
    pretrained: bool = _key(False, 'start from the pretrained weights of the model')
    initial_checkpoint: str | None = _key(None, 'start from these weights, a .safetensors file')
    num_classes: int | None = _key(None, 'classes of the model (those of the data set)')
    in_chans: int | None = _key(None, 'input channels of the model')
    drop: float | None = _key(None, 'dropout rate')
    drop_path: float | None = _key(None, 'stochastic depth rate')
    device_modules: tuple[str, ...] | None = _key(None, "modules that timm's train.py imports first")

    dataset: str = _key(
        'cifar10',
        'cifar10, cifar100, fashion_mnist, digits, folder, or a set of timm (torch/, hfds/, wds/, hfids/, tfds/...)',
    )
    data_dir: str | None = _key(None, 'folder of the data set')
    dataset_download: bool = _key(False, 'let torchvision or timm fetch the data set into data_dir')
    train_split: str = _key('train', 'folder data, sets of timm: subfolder or name of the training images')
    val_split: str = _key('validation', 'folder data, sets of timm: subfolder or name of the validation images')
    train_num_samples: int | None = _key(None, 'wds/, hfids/: training images, where the set does not say')
    val_num_samples: int | None = _key(None, 'wds/, hfids/: validation images, where the set does not say')
    input_key: str | None = _key(None, "sets of timm: the image's name in a sample")
    target_key: str | None = _key(None, "sets of timm: the label's name in a sample")
    img_size: int | None = _key(None, "side of the model's input in pixels")
    val_img_size: int | None = _key(None, 'folder data: side of the images in evaluation (that of training)')
    input_size: tuple[int, ...] | None = _key(None, "the model's input: channels height width")
    mean: Numbers | None = _key(None, 'mean of each channel, for pixels in 0..1')
    std: Numbers | None = _key(None, 'standard deviation of each channel, for pixels in 0..1')
    interpolation: str | None = _key(None, 'resizing of folder images: bilinear, bicubic ...')
    train_interpolation: str = _key(
        'random', 'resizing of folder images in training: random, bilinear ...; empty: as interpolation'
    )
    crop_pct: float | None = _key(None, 'part of a folder image that evaluation sees')
    workers: int = _key(4, 'folder data, sets of timm: processes that read images')

    crop_pad: int = _key(4, 'in-memory sets: padding of the random crop in pixels')
    train_sizes: dict[int, int] = _key({}, 'size of the training images from an epoch on, as {epoch: side in pixels}')
    hflip: float = _key(0.5, 'probability of a horizontal flip')
    scale: Numbers | None = _key(None, 'folder data: random resized crop, smallest and largest area')
    ratio: Numbers | None = _key(None, 'folder data: random resized crop, smallest and largest aspect ratio')
    color_jitter: float = _key(0.4, 'folder data: strength of the colour jitter')
    aa: str | None = _key(None, 'AutoAugment or RandAugment policy')
    reprob: float = _key(0.0, 'probability of random erasing')
    remode: str = _key('pixel', 'random erasing: pixel, rand or const')
    recount: int = _key(1, 'random erasing: rectangles at most')
    mixup: float = _key(0.0, 'mixup alpha; 0 is off')
    cutmix: float = _key(0.0, 'cutmix alpha; 0 is off')
    mixup_prob: float = _key(1.0, 'probability of mixup or cutmix for a batch')
    mixup_switch_prob: float = _key(0.5, 'probability of cutmix when both are on')
    mixup_mode: str = _key('batch', 'batch, pair or elem')
    mixup_off_epoch: int = _key(0, 'no mixup from this epoch on; 0 is never')
    smoothing: float = _key(0.1, 'label smoothing')

    batch_size: int = _key(128, 'images a step')
    validation_batch_size: int | None = _key(None, 'images a step in evaluation (batch_size)')
    grad_accum_steps: int = _key(1, 'batches for one update')
    epochs: int = _key(300, 'epochs, warm-up included')
    opt: str = _key('sgd', "timm's name of the optimizer")
    opt_eps: float | None = _key(None, 'epsilon of the optimizer')
    opt_betas: Numbers | None = _key(None, 'betas of the optimizer')
    momentum: float = _key(0.9, 'momentum')
    weight_decay: float = _key(2e-5, 'weight decay; none for what model.no_weight_decay() names')
    opt_kwargs: dict[str, Any] = _key({}, 'further arguments of the optimizer')
    clip_grad: float | None = _key(None, "clip gradients at this value (by the model's own rule, or not at all)")
    clip_mode: str = _key('norm', 'norm, value or agc (which leaves the classifier out)')
    clip_sched: str = _key('', 'log: clip_grad times 1 + ln(1 + epoch); by default constant')
    lr: float | None = _key(None, 'learning rate (lr_base scaled by the batch size)')
    lr_base: float = _key(0.1, 'learning rate at lr_base_size images an update')
    lr_base_size: int = _key(256, 'see lr_base')
    lr_base_scale: str = _key('', 'linear or sqrt; by default sqrt for adaptive optimizers')
    sched: str = _key('cosine', "timm's name of the scheduler")
    sched_on_updates: bool = _key(False, 'change the learning rate at every update, not every epoch')
    warmup_epochs: int = _key(5, 'epochs of warm-up')
    warmup_lr: float = _key(1e-5, 'learning rate at which the warm-up starts')
    warmup_prefix: bool = _key(False, 'the schedule starts after the warm-up')
    min_lr: float = _key(0.0, 'learning rate at the end')
    decay_epochs: float = _key(90, 'step: epochs between decays')
    decay_milestones: tuple[int, ...] = _key((90, 180, 270), 'multistep: epochs of the decays')
    decay_rate: float = _key(0.1, 'step, multistep: factor of a decay')
    cooldown_epochs: int = _key(0, 'further epochs at min_lr')

    model_ema: bool = _key(False, 'keep a moving average of the weights, which is then the result')
    model_ema_decay: float = _key(0.9998, 'decay of the moving average')
    model_ema_warmup: bool = _key(False, 'start the moving average with a smaller decay')

    seed: int = _key(42, 'all randomness is a function of seed, epoch and step')
    device: str = _key('auto', 'cpu, cuda ...; auto takes a GPU where there is one')
    amp: bool = _key(False, 'autocast in amp_dtype where the device has it')
    amp_dtype: str = _key('bfloat16', 'bfloat16')
    channels_last: bool = _key(True, 'channels_last memory format')
    torchcompile: str | None = _key(None, 'backend of torch.compile; unset is off')
    val_interval: int = _key(1, 'epochs between two evaluations; the last epoch has one anyway')
    log_interval: int = _key(50, 'updates between two lines of the log')
    log_tensorboard: bool = _key(False, 'write TensorBoard events too')
    checkpoint_hist: int = _key(2, 'checkpoints to keep')
    recovery_interval: int = _key(0, 'updates between two checkpoints; 0: only at the end of an epoch')
    output: str = _key('', 'folder of the run')
    experiment: str = _key('', 'subfolder of output')
    resume: bool = _key(False, 'continue the run in output')

    def __post_init__(self) -> None:
        for key in (
            'batch_size',
            'validation_batch_size',
            'grad_accum_steps',
            'epochs',
            'val_interval',
            'log_interval',
            'checkpoint_hist',
        ):
            if (value := getattr(self, key)) is not None and value < 1:
                raise UserError(f'{key} is {value}, expected at least 1')
        for key in ('seed', 'recovery_interval'):
            if (value := getattr(self, key)) < 0:
                raise UserError(f'{key} is {value}, expected 0 or more')
        for key, known in _CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise UserError(f'unknown {key} {value!r} (known: {", ".join(known)}){nearest(value, known)}')

    @property
    def side(self) -> int | None:
        """Side of the model's input where the recipe says so, as timm's data config takes it."""
        return self.input_size[-1] if self.input_size else self.img_size

    @property
    def run_dir(self) -> Path:
        return Path(self.output) / self.experiment

    def with_options(self, options: dict[str, Any], source: str = 'options') -> 'Recipe':
        """A copy with ``options`` changed. Raises `UserError` for an unknown key or a wrong type, naming ``source``."""
        return replace(self, **{key: _checked(key, value, source) for key, value in options.items()})

    def as_dict(self) -> dict[str, Any]:
        """Every key, as plain YAML and JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def settings(self) -> dict[str, Any]:
        """The keys that decide the result: without paths, logging and the machine's own."""
        return {k: v for k, v in self.as_dict().items() if k not in _NOT_THE_RESULT}


OWN = frozenset(
    'clip_sched crop_pad log_tensorboard train_sizes val_img_size'.split()
)  # keys that timm's train.py hasn't
_NOT_THE_RESULT = frozenset(
    'checkpoint_hist data_dir dataset_download device experiment log_interval log_tensorboard output '
    'recovery_interval resume val_interval workers'.split()
)
_CHOICES = {
    # timm's plateau is left out: it depends on the metrics so far, which a repeatable schedule can't
    'sched': ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'none'),
    'clip_mode': ('norm', 'value', 'agc'),
    'clip_sched': ('', 'log'),
    'mixup_mode': ('batch', 'pair', 'elem'),
    'remode': ('pixel', 'rand', 'const'),
    'amp_dtype': ('bfloat16',),
    'lr_base_scale': ('', 'linear', 'sqrt'),
}
_TYPES: dict[str, Any] = get_type_hints(Recipe)


def load_recipe(path: str | Path, options: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe from a YAML file; ``options`` override it.

    Raises `UserError` for an unreadable file, an unknown key (with the nearest valid one) or a wrong type.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'not a text file'
        raise UserError(f'cannot read the recipe {path}: {reason}') from None
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        place = f', line {mark.line + 1}' if mark else ''
        raise UserError(f'{path}{place}: not valid YAML ({getattr(error, "problem", "unreadable")})') from None
    if not isinstance(found, dict):
        raise UserError(f'{path}: a recipe is a list of "key: value" lines, such as "model: eunnet20_cifar"')
    recipe = Recipe().with_options(found, str(path)).with_options(options or {})
    if not recipe.model:
        raise UserError(f'{path}: the key "model" is missing; add a line such as "model: eunnet20_cifar"')
    return recipe


def same_settings(recipe: Recipe, saved: dict[str, Any], run: Path) -> None:
    """Raises `UserError` when ``saved``, from a checkpoint of ``run``, are other settings than the recipe's."""
    # as they come back from JSON, where keys are strings
    now, default = (json.loads(json.dumps(r.settings())) for r in (recipe, Recipe()))
    then = default | saved
    changed = [f'{key} {then[key]!r} -> {now[key]!r}' for key in now if then[key] != now[key]]
    if changed:
        raise UserError(
            f'{run} was started with other settings ({", ".join(changed)}): '
            f'give the same ones, or choose another --output'
        )


def _checked(key: Any, value: Any, source: str) -> Any:
    if key not in _TYPES:
        raise UserError(f'{source}: unknown key {key!r}{nearest(str(key), _TYPES)}')
    try:
        return _coerce(value, _TYPES[key])
    except TypeError:
        raise UserError(f'{source}: {key} is {value!r}, expected {_in_words(_TYPES[key])}') from None


def _coerce(value: Any, kind: Any) -> Any:
    """``value`` as ``kind``, or TypeError."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _coerce(value, args[0])
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(v, args[0]) for v in value)
    if origin is dict and isinstance(value, dict):
        return {_coerce(k, args[0]): _coerce(v, args[1]) for k, v in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            raise TypeError from None
    if type(value) is not kind:
        raise TypeError
    return value


def _in_words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return f'{_in_words(args[0])} or null'
    if origin is tuple:
        return f'a list, each item {_in_words(args[0])}'
    if origin is dict:
        return 'a mapping' if args[1] is Any else f'a mapping from {_in_words(args[0])} to {_in_words(args[1])}'
    return {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text'}[kind]


def add_options(parser: ArgumentParser) -> None:
    """Give ``parser`` one option for every key of `Recipe`; what isn't given on the command line stays unset."""
    from argparse import SUPPRESS

    for f in fields(Recipe):
        kind = _TYPES[f.name]
        if get_origin(kind) in (Union, UnionType):
            kind = get_args(kind)[0]
        default = f.default if f.default is not MISSING else {}
        text = f.metadata['help'] + (f' ({default})' if default not in (None, '', {}, False) else '')
        text = text.replace('%', '%%')
        flags = sorted({f'--{f.name}'.replace('_', '-'), f'--{f.name}'}, key=lambda s: '_' in s)
        if kind is bool:
            parser.add_argument(flags[0], dest=f.name, action=BooleanOptionalAction, default=SUPPRESS, help=text)
        elif get_origin(kind) is tuple:
            parser.add_argument(flags[0], dest=f.name, nargs='+', type=_text_as(get_args(kind)[0]), default=SUPPRESS,
                                metavar='X', help=text)  # fmt: skip
        elif get_origin(kind) is dict:
            parser.add_argument(flags[0], dest=f.name, type=yaml.safe_load, default=SUPPRESS,
                                metavar='{KEY: X}', help=text)  # fmt: skip
        else:
            parser.add_argument(flags[0], dest=f.name, type=_text_as(kind), default=SUPPRESS, metavar='X', help=text)


def _text_as(kind: type) -> Any:
    return kind
