"""From a recipe to its parts: device, data, model, optimizer, loss."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..errors import CheckFailed, UserError, nearest, one_line
from ..files import not_finite, read_tensors, refuse_special
from ..text import clean
from .data.config import data_config as config_of
from .data.folder import FolderData, MemoryPictures, open_folders
from .data.memory import Data, MemoryData, MemorySet, in_memory, load_dataset, with_channels
from .data.pipeline import Pipeline
from .data.stream import StreamData
from .data.timm_sets import StreamSet, channels_of, open_named, picture_mode
from .groups import parameter_groups
from .processes import Processes
from .recipe import Recipe
from .run_folder import WEIGHTS

Log = Callable[[str], None]


def open_device(name: str, processes: Processes | None = None) -> torch.device:
    """The device of that name, or this process's own GPU; ``auto`` takes a GPU where there is one.

    Raises `UserError` if it is not there.
    """
    given = name
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.empty((), device=processes.device(name) if processes else name).device
        if device.type == 'meta':
            raise RuntimeError
        torch.zeros(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise UserError(f'device {given!r} is not there; use --device cpu') from None
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    return device


def build_model(recipe: Recipe, classes: Sequence[str] | None, log: Log) -> nn.Module:
    """The model on the CPU, its weights drawn from torch's global generator.

    ``classes`` are those of the data set; None if they are unknown. Pretrained weights for other classes get
    a new classifier, even if the number of classes is the same: the old one would be confidently wrong.
    """
    num_classes = None if classes is None else len(classes)
    name = recipe.model
    check_name(name)
    for key in ('checkpoint_path', 'pretrained'):
        if key in recipe.model_kwargs:
            own = 'initial_checkpoint' if key == 'checkpoint_path' else key
            raise UserError(f'model_kwargs: {key} is not a keyword of the network; use the key {own}')
    weights = recipe.initial_checkpoint
    if weights and (Path(weights) / WEIGHTS).is_file():  # the folder of a run
        weights = str(Path(weights) / WEIGHTS)
    if weights and not weights.endswith('.safetensors'):
        raise UserError(f'initial_checkpoint {weights}: only .safetensors files are read')
    others = _classes_of(_read_weights(Path(weights)), name) if weights else None
    given = {
        'num_classes': recipe.num_classes or num_classes,
        'in_chans': recipe.in_chans,
        'drop_rate': recipe.drop,
        'drop_path_rate': recipe.drop_path,
        'checkpoint_path': weights,
        **recipe.model_kwargs,
    }
    wanted = given['num_classes']
    try:
        given['num_classes'] = others or wanted
        model = timm.create_model(name, recipe.pretrained, **{k: v for k, v in given.items() if v is not None})
        if others and wanted not in (None, others):
            model.reset_classifier(wanted)
            log(f'{weights} is for {others} classes, not {wanted}: its classifier starts anew')
    except (UserError, CheckFailed):
        raise
    except Exception as error:  # a model raises what it likes for arguments that it can't use
        raise UserError(f'{name}: {one_line(error)}') from None
    if classes is None or num_classes is None:
        return model
    if model.num_classes < num_classes:
        raise UserError(f'{name} has {model.num_classes} classes, the data set {num_classes}; leave num_classes out')
    labels = model.pretrained_cfg.get('label_names') if recipe.pretrained else None
    if labels and list(labels) != list(classes) and len(labels) == model.num_classes:
        model.reset_classifier(model.num_classes)
        log(f'{name} is for other classes than {recipe.dataset}: its classifier starts anew')
    return model


def check_name(name: str) -> None:
    """Raises `UserError` for a model that timm doesn't know."""
    if ':' not in name and not timm.is_model(name):
        raise UserError(f'unknown model {name!r}{nearest(name.split(".")[0], timm.list_models())}')


def _classes_of(weights: dict[str, Tensor], name: str) -> int | None:
    """How many classes these weights of ``name`` are for, as far as its classifier is known."""
    classifier = None if ':' in name else timm.models.get_pretrained_cfg_value(name, 'classifier')
    weight = weights.get(f'{classifier}.weight')
    return None if weight is None else len(weight)


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a file. Raises `UserError` unless they are finite and in safetensors' format."""
    where = f'initial_checkpoint {path}'
    refuse_special(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f'{where}: {"no such file" if isinstance(error, FileNotFoundError) else one_line(error)}'
        ) from None
    weights = read_tensors(data, where)
    bad = not_finite(weights)
    if bad:
        raise UserError(f'{where}: {bad} holds NaN or infinity')
    return weights


def try_sizes(recipe: Recipe, model: nn.Module, config: dict[str, Any], device: torch.device) -> None:
    """Raises `UserError` if the model can't take images of one of the recipe's sizes. It sees one blank image of each.

    Sizes over 512 pixels are left out: what fails, fails at small ones.
    """
    height, width = config['input_size'][-2:]
    sides = {recipe.val_img_size or 0, *recipe.train_sizes.values()} - {0}
    was_training = model.training
    for size in sorted({(height, width), *((side, side) for side in sides)}):
        if max(size) > 512:
            continue
        try:
            with torch.inference_mode():
                image = torch.zeros(1, config['input_size'][0], *size, device=device)
                model.eval()(image)
                if recipe.batch_size == 1:  # batch normalization trains on no single value
                    copy.deepcopy(model).train()(image)
        except Exception as error:  # a model raises what it likes
            text = f'{size[0]} x {size[1]}'
            raise UserError(f'{recipe.model} cannot take images of {text} pixels: {one_line(error)}') from None
    model.train(was_training)


def read_sets(recipe: Recipe, log: Log | None = None) -> tuple[Any, Any]:
    """The training and the validation set: two `MemorySet`, two sets of single pictures by index, or two `StreamSet`.

    All have ``classes``. ``log`` gets a line for files of class folders that are left out. Raises `UserError` for data
    that are missing or can't be read.
    """
    splits = recipe.train_split, recipe.val_split
    if recipe.dataset == 'folder':
        folders = open_folders(recipe.data_dir, *splits, mode=picture_mode(recipe))
        for split, images in zip(splits, folders, strict=True):
            if log and images.left_out:
                some = ', '.join(map(clean, images.left_out[:3])) + (', ...' if len(images.left_out) > 3 else '')
                log(f'{split}: files left out that are not named like pictures: {len(images.left_out)} ({some})')
        return folders
    if not in_memory(recipe.dataset):
        return open_named(recipe, splits[0]), open_named(recipe, splits[1])
    options = {'download': recipe.dataset_download}
    found = [load_dataset(recipe.dataset, recipe.data_dir, split, **options) for split in ('train', 'validation')]
    return with_channels(found[0], channels_of(recipe)), with_channels(found[1], channels_of(recipe))


def build_data(
    recipe: Recipe, sets: tuple[Any, Any], config: dict[str, Any], device: torch.device, batch_size: int
) -> Data:
    """Batches of ``batch_size`` from ``sets``; ``config`` is timm's data config."""
    recipe = recipe.with_options({'batch_size': batch_size})
    train, val = sets
    if isinstance(val, StreamSet):
        return StreamData(train, val, recipe, config, device)
    single = isinstance(val, MemorySet) and bool(recipe.aa or recipe.reprob)
    if isinstance(val, MemorySet):
        check_train_sizes(recipe, val.images.shape[-1])
    if not isinstance(val, MemorySet) or single:
        if single:
            train, val = MemoryPictures(train), MemoryPictures(val)
        return FolderData(train, val, recipe, config, device)
    if recipe.val_img_size:
        raise UserError('val_img_size is for folder images; in-memory sets are evaluated at img_size')
    return MemoryData(
        train,
        val,
        batch_size=recipe.batch_size,
        val_batch_size=recipe.validation_batch_size or recipe.batch_size,
        mean=config['mean'],
        std=config['std'],
        device=device,
        size=recipe.side,
        crop_pad=recipe.crop_pad,
        hflip=recipe.hflip,
        train_sizes=recipe.train_sizes,
        seed=recipe.seed,
    )


def check_train_sizes(recipe: Recipe, side: int) -> None:
    """Raises `UserError` for train_sizes that need more than a padded image of ``side`` pixels has."""
    limit = (side + 2 * recipe.crop_pad) * (recipe.side or side) // side
    too_big = [s for s in recipe.train_sizes.values() if not 0 < s <= limit]
    if too_big:
        raise UserError(f'train_sizes: {too_big[0]} is not within the padded image ({limit} pixels)')


def build_transforms(recipe: Recipe, config: dict[str, Any], device: torch.device) -> None:
    """Raises `UserError` for settings of which timm makes no transforms of single pictures."""
    if not in_memory(recipe.dataset) or recipe.aa or recipe.reprob:
        Pipeline(recipe, config, device)


def data_config(recipe: Recipe, model: nn.Module, sets: tuple[Any, Any]) -> dict[str, Any]:
    """timm's data config: the recipe's keys before the model's; before both, how in-memory images are evaluated.

    A model of one channel whose mean and std are those of colour images gets their averages.
    """
    config = config_of(model, recipe.as_dict())
    if isinstance(sets[1], MemorySet):
        config.update(interpolation='bicubic', crop_pct=1.0)
        if not recipe.side:
            config['input_size'] = tuple(sets[1].images.shape[1:])
    return config


def build_optimizer(recipe: Recipe, model: nn.Module, images: int | None = None) -> torch.optim.Optimizer:
    """The recipe's optimizer, with the parameter groups that the model asks for.

    ``images`` is the number of images of an update; by default that of one process. Raises `UserError`.
    """
    if recipe.opt.removeprefix('lookahead_') not in list_optimizers():
        raise UserError(f'unknown optimizer {recipe.opt!r}{nearest(recipe.opt, list_optimizers())}')
    groups = parameter_groups(model, recipe.weight_decay, recipe.lr_scales)
    options = {**optimizer_kwargs(recipe), 'lr': learning_rate(recipe, images), **recipe.opt_kwargs}
    try:
        optimizer = create_optimizer_v2(groups, **options)
    except Exception as error:  # an optimizer raises what it likes
        raise UserError(f'optimizer {recipe.opt}: {one_line(error)}') from None
    if recipe.sched == 'none':  # otherwise timm's scheduler applies lr_scale
        for group in optimizer.param_groups:
            group['lr'] *= group['lr_scale']
    return optimizer


def build_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> tuple[Any, int]:
    """timm's scheduler, or None, for epochs of ``steps`` updates; and the number of epochs of the run."""
    try:
        scheduler, epochs = create_scheduler_v2(optimizer, updates_per_epoch=steps, **scheduler_kwargs(recipe))
    except Exception as error:  # a scheduler raises what it likes
        raise UserError(f'sched {recipe.sched}: {one_line(error)}') from None
    return scheduler, int(epochs)


def build_forward(recipe: Recipe, model: nn.Module) -> Any:
    """The model, compiled if the recipe says so. Raises `UserError` for an unknown backend."""
    if not recipe.torchcompile:
        return model
    from torch._dynamo import list_backends

    known = list_backends(exclude_tags=())
    if recipe.torchcompile not in known:
        raise UserError(f'unknown torchcompile {recipe.torchcompile!r}{nearest(recipe.torchcompile, known)}')
    return torch.compile(model, backend=recipe.torchcompile)


def learning_rate(recipe: Recipe, images: int | None = None) -> float:
    """``lr``, or ``lr_base`` scaled by the images of an update as timm's train.py scales it."""
    if recipe.lr is not None:
        return recipe.lr
    adaptive = any(word in recipe.opt.lower() for word in ('ada', 'lamb'))
    ratio = (images or recipe.batch_size * recipe.grad_accum_steps) / recipe.lr_base_size
    return recipe.lr_base * (ratio**0.5 if (recipe.lr_base_scale or ('sqrt' if adaptive else '')) == 'sqrt' else ratio)


def build_mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    """timm's Mixup, None where the recipe has neither mixup nor cutmix."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=recipe.mixup_mode,
        label_smoothing=recipe.smoothing,
        num_classes=num_classes,
    )


class _Average(ModelEmaV3):
    """timm's moving average of the weights. With warm-up, a model's own rule ``ema_decay(update, decay)`` is used."""

    def get_decay(self, step: int | None = None) -> float:
        rule = getattr(self.module, 'ema_decay', None)
        return rule(step - 1, self.decay) if rule and self.use_warmup and step else super().get_decay(step)


def build_ema(recipe: Recipe, model: nn.Module) -> ModelEmaV3 | None:
    """The running average of the weights, None without `model_ema`."""
    if not recipe.model_ema:
        return None
    return _Average(model, decay=recipe.model_ema_decay, use_warmup=recipe.model_ema_warmup)


def build_loss(recipe: Recipe) -> nn.Module:
    """The loss of training: cross-entropy, with soft targets or label smoothing where the recipe asks for them."""
    if recipe.mixup or recipe.cutmix:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(recipe.smoothing) if recipe.smoothing else nn.CrossEntropyLoss()


def build_autocast(recipe: Recipe, device: torch.device, log: Log) -> Callable[[], AbstractContextManager]:
    """A function that makes autocast contexts in bfloat16; empty ones if the device has no bfloat16 instructions."""
    if not recipe.amp:
        return nullcontext
    if not _has_bf16(device):
        log(f'{device.type} has no bfloat16 instructions: training in float32')
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16)


def _has_bf16(device: torch.device) -> bool:
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == 'cpu':
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
