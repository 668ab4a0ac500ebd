"""``nf-zoo convert``: a trained ResNet with batch normalization, written as the run of a network without it."""

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from .parser import Add, Command, count

# (architecture, form) -> the network of nf_zoo that takes the weights
_COUNTERPARTS = [
    (r'resnet(18|34|50|101|152)', 'weight_norm', r'wn_resnet\1'),
    (r'bn_resnet(20|56|110)_cifar', 'weight_norm', r'wn_resnet\1_cifar'),
    (r'(?:bn|wn)_resnet(20|56|110)_cifar', 'eunnet', r'eunnet\1_cifar'),
]
CALIBRATION_IMAGES = 512
TRAINING_IMAGES = 20_000  # of a folder, read into memory


def _convert(args: argparse.Namespace) -> None:
    import torch

    from ..conversion import convert
    from ..conversion.distillation import distil
    from ..conversion.examples import difference
    from ..errors import UserError
    from ..inference.loading import resolve
    from ..text import say
    from ..train.evaluation import evaluate
    from ..train.run_folder import check, claimed

    check(Path(args.output), resume=None)
    source = resolve(args.name, pretrained=args.weights is None)
    target_name = counterpart(source.architecture, args.to)
    if args.to == 'eunnet' and not (args.images or args.data_dir):
        raise UserError('--to eunnet needs images: --images DIR, or --data-dir DIR of the data set')
    if args.steps and args.to != 'eunnet':
        raise UserError('--steps N trains a fitted EUNNet: give --to eunnet too')
    if args.images and args.to != 'eunnet':
        raise UserError('--images DIR is for the fit of an EUNNet: give --to eunnet too')
    model: Any = _with_weights(source.architecture, args.weights) if args.weights else source.load()
    dataset = source.dataset or ''
    given = (source.facts.get('recipe') or {}).get('model_kwargs') or source.facts.get('model_args') or {}
    kwargs = {key: value for key, value in given.items() if key not in ('num_classes', 'in_chans')}
    if args.to == 'weight_norm':
        target = _weight_norm(model, target_name, kwargs)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(1, *_config(model)['input_size'], generator=generator)
        with torch.no_grad():
            rounded = difference([model(images)], [target(images)])
        done = f'largest difference {rounded:.1e} of the largest output, in float32'
    else:
        limit = TRAINING_IMAGES if args.steps else CALIBRATION_IMAGES
        images = _images(args.images, model, limit) if args.images else _train_images(dataset, args.data_dir, model)
        target = convert(model, to='eunnet', images=images[:CALIBRATION_IMAGES])
        fitted: Any = target.calibration
        done = f'{fitted.layers} convolutions fitted on {min(len(images), CALIBRATION_IMAGES)} images'
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, target)]
    original = Path(args.weights).name if args.weights else source.name
    say(f'{original} -> {target_name}: {done}')
    say(f'parameters {sizes[0]:,} -> {sizes[1]:,}')
    metrics: dict[str, float] = {}
    if args.data_dir:
        before = evaluate(model, dataset, args.data_dir)
        metrics = evaluate(target, dataset, args.data_dir)
        say(f'top-1 on {dataset}, {before["n"]} images: {before["top1"]:.2f} % -> {metrics["top1"]:.2f} %')
    if args.steps:
        distil(target, model, images, args.steps, bar=sys.stderr.isatty())
        if args.data_dir:
            metrics = evaluate(target, dataset, args.data_dir)
            say(f'after {args.steps} steps of training: {metrics["top1"]:.2f} %')
    note = f'Converted from {original}, which has batch normalization'
    note += (
        '.' if args.to == 'weight_norm' else f', with {CALIBRATION_IMAGES} images; {args.steps or 0} steps of training.'
    )
    with claimed(Path(args.output), resume=None):
        _write(Path(args.output), target, target_name, kwargs, model, dataset, metrics, note)
    say(f'wrote {args.output}')
    license = source.facts.get('license') or (getattr(model, 'pretrained_cfg', None) or {}).get('license')
    if license and license != 'apache-2.0':
        say(f"the original's licence is {license}; publish the result with --license {license}")


def counterpart(architecture: str, to: str) -> str:
    """The network of nf_zoo that takes the weights of ``architecture`` in this form.

    Raises:
        UserError: there is none, or ``architecture`` has no batch normalization.
    """
    import timm

    from ..conversion.changes import norms_of
    from ..errors import UserError

    for pattern, form, name in _COUNTERPARTS:
        match = re.fullmatch(pattern, architecture)
        if match and form == to:
            return match.expand(name)
    if not norms_of(timm.create_model(architecture, device='meta')):
        raise UserError(f'{architecture} has no batch normalization to convert')
    raise UserError(
        f"nf_zoo has no network for the weights of {architecture} in the form '{to}'; in Python, nf_zoo.convert(model) "
        'takes any network'
    )


def _with_weights(architecture: str, file: str) -> Any:
    """The model with the weights of a file, and as many classes. Nothing in the file is executed."""
    import timm
    import torch
    from timm.models import load_state_dict

    from ..errors import UserError, one_line
    from ..files import not_finite, refuse_special

    if not Path(file).is_file():
        refuse_special(Path(file))
        raise UserError(f'cannot load {file}: no such file')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of how a pickle was written
            state = load_state_dict(file, weights_only=True)
        bad = not_finite({key: value for key, value in state.items() if isinstance(value, torch.Tensor)})
        if bad:
            raise UserError(f'{file}: {bad} holds NaN or infinity')
        head = next((state[key] for key in ('fc.weight', 'head.fc.weight', 'linear.weight') if key in state), None)
        if head is None:
            raise UserError(f'{file} has no classifier (fc, head.fc or linear); give the weights of a ResNet')
        overlay = dict(file=file, num_classes=len(head))
        options: dict[str, Any] = dict(pretrained=True, num_classes=len(head), pretrained_cfg_overlay=overlay)
        return timm.create_model(architecture, **options).eval()
    except UserError:
        raise
    except Exception as error:  # timm, torch and safetensors raise whatever a file leads them to
        raise UserError(f'cannot load {file} into {architecture}: {one_line(error)[:300]}') from None


def _weight_norm(model: Any, name: str, kwargs: dict[str, Any]) -> Any:
    import timm

    channels = next(model.parameters()).shape[1]
    target: Any = timm.create_model(name, **{**kwargs, 'num_classes': model.num_classes, 'in_chans': channels})
    target.load_state_dict(target.checkpoint_filter(model.state_dict(), target))
    return target.eval()


def _config(model: Any) -> dict[str, Any]:
    from ..train.data.config import data_config

    return data_config(model)


def _images(folder: str, model: Any, limit: int) -> Any:
    """At most ``limit`` images of a folder in random order, prepared as for the model."""
    import torch

    from ..inference.images import image_files, preprocessing
    from ..train.data.pictures import read_image

    transform, mode = preprocessing(model)
    files = image_files(folder, limit)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.stack([transform(read_image(files[i], mode)) for i in order])


def _train_images(dataset: str, data_dir: str, model: Any) -> Any:
    """The training images of a data set in random order, prepared as for the model."""
    import torch

    from ..train.data.memory import load_dataset

    config = _config(model)
    found = load_dataset(dataset, data_dir, 'train')
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ('mean', 'std'))
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    return (found.images[order] / 255 - mean) / std


def _write(
    folder: Path,
    target: Any,
    name: str,
    kwargs: dict[str, Any],
    model: Any,
    dataset: str,
    metrics: dict[str, float],
    note: str,
) -> None:
    """The folder of a run: weights, recipe and result."""
    from ..inference.loading import class_names
    from ..train.recipe import Recipe
    from ..train.run_folder import write_run

    settings = {'model': name, 'model_kwargs': kwargs, **({'dataset': dataset} if dataset else {})}
    facts: dict[str, Any] = dict(num_classes=target.num_classes, classes=class_names(model), metrics=metrics, note=note)
    if kwargs:
        facts['recipe'] = {'model_kwargs': kwargs}
    write_run(folder, target, Recipe().with_options(settings), _config(model), dataset=dataset, **facts)


def _options(add: Add) -> None:
    add('name', metavar='NAME', help="timm's resnet18 to 152 or our bn_resnet*_cifar, NAME or NAME.TAG, or a run")
    add('--weights', metavar='FILE', help='weights of NAME in this .safetensors or .pth file')
    add('--to', choices=('weight_norm', 'eunnet'), default='weight_norm', help='weight_norm (exact) or eunnet (fitted)')
    add('--images', metavar='DIR', help='eunnet: fit on the images of a folder (512 of them)')
    add('--steps', type=count, metavar='N', help='eunnet: then train N steps of 128 images towards the outputs of NAME')
    add('--data-dir', metavar='DIR', help='folder of the data set; the accuracy before and after is printed')
    add('-o', '--output', required=True, metavar='RUN', help='folder to write, as a training run writes it')


COMMAND = Command(
    'take batch normalization out of a trained ResNet (nf_zoo.convert in Python: out of any network)',
    'nf-zoo convert bn_resnet20_cifar.cifar10 --data-dir DIR -o RUN',
    _options,
    _convert,
)
