"""A recipe: every setting of a training run, under the names of timm's ``train.py``."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import UserError, nearest
from ..files import below
from . import strict_yaml
from .ranges import ANY, BELOW_1, COUNT, COUNT_0, POSITIVE, SHARE, SIDE, Range, is_finite
from .recipes import locate

Numbers = tuple[float, ...]
RESIZING = ('bilinear', 'bicubic', 'nearest', 'lanczos', 'hamming', 'box')
# timm's plateau is left out: it depends on the metrics so far, which a repeatable schedule can't
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'none')
TRAIN_SIZES = Range(least=0, most=1_000_000_000)  # of the epochs; the sides are checked beside


def _key(default: Any, text: str, range: Range = ANY) -> Any:
    metadata = {'help': text, 'range': range}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """The settings of one run.

    Names, meanings and defaults are those of timm's ``train.py``. The keys in `OWN` are our own, and ``channels_last``
    is on. ``None`` stands for the value that timm or the model chooses. Each key states its `Range`; a value outside
    of it, or of another type, raises `UserError`.
    """

    model: str = _key('', 'name of the model, with or without a pretrained tag, as in timm.create_model')
    model_kwargs: dict[str, Any] = _key({}, 'further keyword arguments of the model')
    pretrained: bool = _key(False, 'start from the pretrained weights of the model')
    initial_checkpoint: str | None = _key(None, 'start from these weights, a .safetensors file or the folder of a run')
    num_classes: int | None = _key(
        None, 'classes of the model; by default those of the data set', Range(least=1, most=1_000_000)
    )
    in_chans: int | None = _key(None, 'input channels of the model; 1 reads grey images', Range(least=1, most=3))
    drop: float | None = _key(None, 'dropout rate before the classifier', BELOW_1)
    drop_path: float | None = _key(None, 'stochastic depth rate', BELOW_1)
    device_modules: tuple[str, ...] | None = _key(None, "modules that timm's train.py imports first")

    dataset: str = _key(
        'cifar10',
        'cifar10, cifar100, fashion_mnist, digits, folder, or a set of timm (torch/, hfds/, wds/, hfids/, tfds/...)',
    )
    data_dir: str | None = _key(None, 'folder of the data set')
    dataset_download: bool = _key(False, 'let torchvision or timm fetch the data set into data_dir')
    train_split: str = _key('train', 'folder data, sets of timm: subfolder or name of the training images')
    val_split: str = _key('validation', 'folder data, sets of timm: subfolder or name of the validation images')
    train_num_samples: int | None = _key(None, 'wds/, hfids/: training images, where the set does not say', COUNT)
    val_num_samples: int | None = _key(None, 'wds/, hfids/: validation images, where the set does not say', COUNT)
    input_key: str | None = _key(None, "sets of timm: the image's name in a sample")
    target_key: str | None = _key(None, "sets of timm: the label's name in a sample")
    img_size: int | None = _key(None, "image size: height and width of the model's input in pixels", SIDE)
    val_img_size: int | None = _key(
        None, 'folder data: size of the images in evaluation; by default that of training', SIDE
    )
    input_size: tuple[int, ...] | None = _key(
        None, "the model's input: channels height width", Range(least=1, most=4096, lengths=(3,))
    )
    mean: Numbers | None = _key(
        None, 'mean of each channel, for pixels from 0 to 1', Range(least=-10, most=10, lengths=(1, 3))
    )
    std: Numbers | None = _key(
        None, 'standard deviation of each channel, for pixels from 0 to 1', Range(above=0, most=10, lengths=(1, 3))
    )
    interpolation: str | None = _key(None, 'folder data: how images are resized in evaluation', Range(choices=RESIZING))
    train_interpolation: str = _key(
        'random',
        'folder data: how images are resized in training; empty: as interpolation',
        Range(choices=('', 'random', *RESIZING)),
    )
    crop_pct: float | None = _key(None, 'part of the image that evaluation sees (center crop)', Range(above=0, most=1))
    workers: int = _key(4, 'folder data, sets of timm: processes that read images', Range(least=0, most=1024))

    crop_pad: int = _key(4, 'in-memory sets: padding of the random crop in pixels', Range(least=0, most=4096))
    train_sizes: dict[int, int] = _key(
        {}, 'size of the training images from an epoch on, as {epoch: side in pixels}', TRAIN_SIZES
    )
    hflip: float = _key(0.5, 'probability of a horizontal flip', SHARE)
    scale: Numbers | None = _key(
        None,
        'folder data: random resized crop, smallest and largest area',
        Range(above=0, most=1, lengths=(2,), rising=True),
    )
    ratio: Numbers | None = _key(
        None,
        'folder data: random resized crop, smallest and largest aspect ratio',
        Range(above=0, most=100, lengths=(2,), rising=True),
    )
    color_jitter: float = _key(0.4, 'folder data: strength of the colour jitter', Range(least=0, most=10, off=True))
    aa: str | None = _key(None, 'AutoAugment or RandAugment policy of timm, such as rand-m9-n2')
    reprob: float = _key(0.0, 'probability of random erasing', Range(least=0, most=1, off=True))
    remode: str = _key(
        'pixel', 'random erasing: what the rectangles are filled with', Range(choices=('pixel', 'rand', 'const'))
    )
    recount: int = _key(1, 'random erasing: largest number of rectangles', Range(least=1, most=100))
    mixup: float = _key(0.0, 'mixup alpha', Range(least=0, most=1000, off=True))
    cutmix: float = _key(0.0, 'cutmix alpha', Range(least=0, most=1000, off=True))
    mixup_prob: float = _key(1.0, 'probability of mixup or cutmix for a batch', SHARE)
    mixup_switch_prob: float = _key(0.5, 'probability of cutmix when both are on', SHARE)
    mixup_mode: str = _key('batch', 'whether images share the draw of mixup', Range(choices=('batch', 'pair', 'elem')))
    mixup_off_epoch: int = _key(0, 'no mixup from this epoch on', Range(least=0, most=1_000_000_000, off=True))
    smoothing: float = _key(0.1, 'label smoothing', Range(least=0, below=1, off=True))

    batch_size: int = _key(128, 'images of a batch, in each process', Range(least=1, most=1_000_000))
    validation_batch_size: int | None = _key(
        None, 'images of a batch in evaluation; by default batch_size', Range(least=1, most=1_000_000)
    )
    grad_accum_steps: int = _key(1, 'batches for one update', Range(least=1, most=1_000_000))
    epochs: int = _key(300, 'epochs of training; they include the warm-up', COUNT)
    opt: str = _key('sgd', "timm's name of the optimizer")
    opt_eps: float | None = _key(None, 'epsilon of the optimizer', POSITIVE)
    opt_betas: Numbers | None = _key(None, 'betas of the optimizer', Range(least=0, below=1, lengths=(2, 3)))
    momentum: float = _key(0.9, 'momentum', BELOW_1)
    weight_decay: float = _key(
        2e-5, 'weight decay; none for what model.no_weight_decay() names', Range(least=0, most=1000, off=True)
    )
    opt_kwargs: dict[str, Any] = _key({}, 'further arguments of the optimizer')
    clip_grad: float | None = _key(
        None, "clip gradients at this value; by default by the model's own rule, or not at all", POSITIVE
    )
    clip_mode: str = _key(
        'norm', 'what is clipped; agc leaves the classifier out', Range(choices=('norm', 'value', 'agc'))
    )
    clip_sched: str = _key('', 'log: clip_grad times 1 + ln(1 + epoch); empty: constant', Range(choices=('', 'log')))
    lr: float | None = _key(
        None, 'learning rate; by default lr_base scaled by the images of an update', Range(above=0, most=1000)
    )
    lr_base: float = _key(0.1, 'learning rate for an update of lr_base_size images', Range(above=0, most=1000))
    lr_base_size: int = _key(256, 'images of an update that lr_base is for', COUNT)
    lr_base_scale: str = _key(
        '',
        'how lr_base grows with the images; by default sqrt for adaptive optimizers, else linear',
        Range(choices=('', 'linear', 'sqrt')),
    )
    lr_scales: dict[str, float] = _key(
        {},
        "factors on the learning rate, as {regular expression for parameters' names: factor}",
        Range(least=0, most=1000),
    )
    sched: str = _key('cosine', "timm's name of the scheduler", Range(choices=SCHEDULES))
    sched_on_updates: bool = _key(False, 'change the learning rate at every update, not every epoch')
    warmup_epochs: int = _key(5, 'epochs of warm-up', Range(least=0, most=1_000_000_000, off=True))
    warmup_lr: float = _key(1e-5, 'learning rate at which the warm-up starts', Range(least=0, most=1000))
    warmup_prefix: bool = _key(False, 'the schedule starts after the warm-up')
    min_lr: float = _key(0.0, 'learning rate at the end', Range(least=0, most=1000))
    decay_epochs: float = _key(90, 'step: epochs between decays', POSITIVE)
    decay_milestones: tuple[int, ...] = _key(
        (90, 180, 270), 'multistep: epochs of the decays', Range(least=1, most=1_000_000_000, rising=True)
    )
    decay_rate: float = _key(0.1, 'step, multistep: factor of a decay', Range(above=0, most=1))
    cooldown_epochs: int = _key(0, 'further epochs at min_lr, after epochs', COUNT_0)

    model_ema: bool = _key(False, 'keep a moving average of the weights; it becomes the result')
    model_ema_decay: float = _key(0.9998, 'decay of the moving average', SHARE)
    model_ema_warmup: bool = _key(False, 'start the moving average with a smaller decay')

    seed: int = _key(42, 'all randomness is a function of seed, epoch and step', Range(least=0, most=2**63 - 1))
    device: str = _key('auto', 'cpu, cuda, cuda:1 ...; auto takes a GPU where there is one')
    amp: bool = _key(False, 'autocast in amp_dtype where the device has it')
    amp_dtype: str = _key('bfloat16', 'number format of amp', Range(choices=('bfloat16',)))
    channels_last: bool = _key(True, 'channels_last memory format')
    torchcompile: str | None = _key(None, 'backend of torch.compile; unset is off')
    val_interval: int = _key(1, 'epochs between two evaluations; the last epoch always has one', COUNT)
    log_interval: int = _key(50, 'updates between two lines of the log', COUNT)
    log_tensorboard: bool = _key(False, 'write TensorBoard events too')
    log_gradients: str = _key(
        '', 'name of a layer, such as stages.1.1.conv2: write a histogram of its gradients each epoch'
    )
    checkpoint_hist: int = _key(2, 'number of checkpoints to keep', COUNT)
    recovery_interval: int = _key(
        0, 'updates between two checkpoints within an epoch', Range(least=0, most=1_000_000_000, off=True)
    )
    output: str = _key('', 'folder of the run')
    experiment: str = _key('', 'subfolder of output')
    resume: bool = _key(False, 'continue the run in output')

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name), 'recipe'))

    @property
    def side(self) -> int | None:
        """The image size in pixels, if the recipe states it; ``input_size`` comes first, as in timm."""
        return self.input_size[-1] if self.input_size else self.img_size

    @property
    def run_dir(self) -> Path:
        """The folder of the run: ``output``, and ``experiment`` below it. Raises `UserError` if it is elsewhere."""
        return below(Path(self.output), self.experiment)

    def with_options(self, options: dict[Any, Any], source: str = 'options') -> 'Recipe':
        """A copy with ``options`` changed.

        Raises `UserError`, which names ``source``, for an unknown key and for a value of a wrong type or out of range.
        """
        return replace(self, **{key: _checked(key, value, source) for key, value in options.items()})

    def as_dict(self) -> dict[str, Any]:
        """Every key, as plain YAML and JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def check(self) -> None:
        """Raises `UserError` for values that don't fit one another. A run and its plan both begin with this."""
        if self.sched != 'none' and self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise UserError(
                f'warmup_epochs is {self.warmup_epochs}, but there are {self.epochs} epochs, so lr is never reached; '
                f'give --warmup-epochs 0 for no warm-up, or more epochs'
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f'mixup and cutmix need an even batch_size, not {self.batch_size}')
        channels = self.input_size[0] if self.input_size else self.in_chans
        if channels not in (None, 1, 3):
            raise UserError(f'the images would have {channels} channels; pictures have 3, or 1 if they are grey')
        if self.input_size and self.in_chans not in (None, channels):
            raise UserError(f'in_chans is {self.in_chans}, but input_size has {channels} channels')
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise UserError(f'mean has {len(self.mean)} numbers and std has {len(self.std)}; give one for each channel')

    def settings(self) -> dict[str, Any]:
        """The keys that decide the result: without paths, logging and the machine's own."""
        return {k: v for k, v in self.as_dict().items() if k not in _NOT_THE_RESULT}


OWN = frozenset(
    'clip_sched crop_pad log_gradients log_tensorboard lr_scales train_sizes val_img_size'.split()
)  # keys that timm's train.py hasn't
# The keys that `--resume --change` may change: what an unstable run needs.
CHANGEABLE = frozenset(
    'clip_grad clip_mode clip_sched lr lr_base lr_base_scale lr_base_size min_lr warmup_epochs warmup_lr'.split()
)
# The first key of each group of keys, in the order of the recipe -> the group's title.
GROUPS = {
    'model': 'model',
    'dataset': 'data',
    'crop_pad': 'augmentation',
    'batch_size': 'optimization',
    'model_ema': 'moving average of the weights',
    'seed': 'run',
}
_NOT_THE_RESULT = frozenset(
    'checkpoint_hist data_dir dataset_download device experiment log_gradients log_interval log_tensorboard output '
    'recovery_interval resume val_interval workers'.split()
)
TYPES: dict[str, Any] = get_type_hints(Recipe)
RANGES: dict[str, Range] = {f.name: f.metadata['range'] for f in fields(Recipe)}


def load_recipe(path: str | Path, options: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe from a YAML file, or by its name such as cifar10/eunnet20_cifar; ``options`` override it.

    Raises `UserError` for an unreadable file, an unknown key (with the nearest valid one), a wrong type, and a value
    out of its range.
    """
    found = strict_yaml.read(locate(path))
    if not isinstance(found, dict):
        raise UserError(f'{path}: a recipe is a list of "key: value" lines, such as "model: eunnet20_cifar"')
    recipe = Recipe().with_options(found, str(path)).with_options(options or {})
    if not recipe.model:
        raise UserError(f'{path}: the key "model" is missing; add a line such as "model: eunnet20_cifar"')
    return recipe


def changed_settings(recipe: Recipe, saved: dict[str, Any], run: Path, change: bool = False) -> dict[str, list[Any]]:
    """The settings that differ from ``saved``, those of a checkpoint of ``run``: key -> [value then, value now].

    Raises `UserError` if there are any, except those that ``change`` allows.
    """
    # as they come back from JSON, where keys are strings
    now, default = (json.loads(json.dumps(r.settings())) for r in (recipe, Recipe()))
    then = default | saved
    changed = {key: [then[key], now[key]] for key in now if then[key] != now[key]}
    refused = [key for key in changed if not (change and key in CHANGEABLE)]
    if refused:
        text = ', '.join(f'{key} {changed[key][0]!r} -> {changed[key][1]!r}' for key in refused)
        hint = '; --change allows it' if not change and CHANGEABLE.issuperset(refused) else ''
        raise UserError(
            f'{run} was started with other settings ({text}): give the same ones{hint}, or choose another --output'
        )
    return changed


def _checked(key: Any, value: Any, source: str) -> Any:
    if key not in TYPES:
        raise UserError(f'{source}: unknown key {str(key)[:100]!r}{nearest(str(key)[:100], TYPES)}')
    try:
        found = _coerce(value, TYPES[key])
    except TypeError:
        raise UserError(f'{source}: {key} is {_short(value)}, expected {_in_words(TYPES[key])}') from None
    if not is_finite(found):
        raise UserError(f'{source}: {key} is {_short(value)}, expected finite numbers')
    problem = RANGES[key].problem(key, found)
    if key == 'train_sizes':
        problem = problem or SIDE.problem(key, tuple(found.values()))
    if problem:
        raise UserError(f'{source}: {problem}')
    return found


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
        return _plain(value)
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except (ValueError, OverflowError):
            raise TypeError from None
    if type(value) is not kind or (kind is str and not _is_text(value)):
        raise TypeError
    return value


def _plain(value: Any, depth: int = 0) -> Any:
    """``value`` if JSON can hold it, or TypeError."""
    if depth > 10:
        raise TypeError
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and _is_text(value)):
        return value
    raise TypeError


def _is_text(value: str) -> bool:
    """Whether a text can be a path and be written to a file: no zero byte, no half of a surrogate pair."""
    return '\0' not in value and not any('\ud800' <= letter <= '\udfff' for letter in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f'{text[:76]} ...'


def _in_words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return f'{_in_words(args[0])} or null'
    if origin is tuple:
        return f'a list, each item {_in_words(args[0])}'
    if origin is dict:
        return 'a mapping' if args[1] is Any else f'a mapping from {_in_words(args[0])} to {_in_words(args[1])}'
    return {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text'}[kind]
