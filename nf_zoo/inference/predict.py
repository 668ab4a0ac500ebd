"""From image files to class names: the preprocessing that the weights were trained for, and nothing else."""

import warnings
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import nn

from ..errors import UserError, nearest
from ..net.registry import list_models

# Pillow also reads formats that start other programs (EPS); an image from outside may only be one of these.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')
BATCH = 64


def load_model(name: str, pretrained: bool = True, **kwargs: Any) -> Any:
    """`timm.create_model` in eval mode, with a user's mistakes (name, tag, missing weights) as a one-line UserError."""
    base = name.partition('.')[0]
    if ':' not in name and not timm.is_model(base):
        raise UserError(f"unknown model '{name}'{nearest(base, list_models())} (`nf-zoo list` shows all names)")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs).eval()
    except (UserError, TypeError):
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"cannot load '{name}': {_one_line(error)}") from error


def read_image(image: str | Path | Image.Image, mode: str = 'RGB') -> Image.Image:
    """Return the picture as a viewer shows it: upright, transparency over white, 16 bits scaled down to 8.

    Args:
        image: a path (PNG, JPEG, WebP, BMP, GIF, TIFF) or an open Pillow image, of any size and mode.
        mode: 'RGB' or 'L'.

    Raises:
        UserError: the file is missing, unreadable, damaged or no image.
    """
    try:
        with warnings.catch_warnings():
            # Odd metadata, or more than 89 million pixels, is no reason not to look; from 179 million on Pillow raises.
            warnings.simplefilter('ignore')
            if isinstance(image, Image.Image):
                picture = image
            else:  # from memory: Pillow leaves a damaged file open
                picture = Image.open(BytesIO(Path(image).read_bytes()), formats=FORMATS)
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith('I'):
                picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert('RGBA')
                picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
            return picture.convert(mode)
    except UnidentifiedImageError:
        raise UserError(f"'{image}' is no image, or a damaged one; give a {', '.join(FORMATS)} file") from None
    except Exception as error:  # on a damaged file Pillow's decoders raise whatever they stumble over
        raise UserError(
            f"cannot read the image '{image}': {getattr(error, 'strerror', None) or _one_line(error)}"
        ) from error


def class_names(model: Any) -> list[str]:
    """Return one name per output: the weights' own label names, ImageNet's for `in1k` tags, else the indices."""
    config = getattr(model, 'pretrained_cfg', {})
    count = model.num_classes
    names = config.get('label_names')
    if not names and count == 1000 and str(config.get('tag')).endswith('in1k'):
        info = ImageNetInfo()
        names = [info.index_to_description(index) for index in range(count)]
    return [str(name) for name in names] if names and len(names) == count else [str(index) for index in range(count)]


def preprocessing(model: nn.Module) -> tuple[Any, str]:
    """Return the evaluation transform of the model's weights, and the Pillow mode ('RGB' or 'L') that it takes."""
    config = resolve_model_data_config(model, use_test_size=True)
    in_chans = getattr(model, 'in_chans', config['input_size'][0])
    if in_chans not in (1, 3):
        raise UserError(f'the model takes {in_chans} channels; image files give 3 or 1')
    if in_chans == 1 and len(config['mean']) == 3:
        config |= {'mean': (mean(config['mean']),), 'std': (mean(config['std']),)}
    return create_transform(**config), 'RGB' if in_chans == 3 else 'L'


@torch.inference_mode()
def predict(
    model: str | nn.Module,
    images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
    top: int = 5,
) -> list[list[tuple[str, float]]]:
    """Classify images.

    Args:
        model: a name, loaded with its pretrained weights, or a model; a model's mode is left as it was.
        images: one image or several: paths or Pillow images, of any size and mode.
        top: how many classes per image, at most as many as the model has.

    Returns:
        For each image its `top` classes as (name, probability), the most probable first.

    Raises:
        UserError: an unknown name, missing weights, an unreadable image, or `top` below 1.
    """
    if top < 1:
        raise UserError(f'top must be 1 or more, not {top}')
    if isinstance(images, (str, Path, Image.Image)):
        images = [images]
    net: nn.Module = load_model(model) if isinstance(model, str) else model
    transform, mode = preprocessing(net)
    names = class_names(net)
    device = next(net.parameters()).device
    inputs: Sequence[torch.Tensor] = [transform(read_image(image, mode)) for image in images]
    training = net.training
    net.eval()
    try:
        rows = []
        for start in range(0, len(inputs), BATCH):
            probabilities = net(torch.stack(list(inputs[start : start + BATCH])).to(device)).float().softmax(1)
            values, classes = probabilities.topk(min(top, len(names)))
            rows += [
                [(names[index], value) for index, value in zip(*row, strict=True)]
                for row in zip(classes.tolist(), values.tolist(), strict=True)
            ]
        return rows
    finally:
        net.train(training)


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
