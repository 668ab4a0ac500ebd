"""From image files to a network's input: the preprocessing that the weights were trained for, and nothing else."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform
from torch import Tensor, nn

from ..errors import UserError, one_line
from ..files import refuse_special
from ..train.data.config import data_config

# Pillow also reads formats that start other programs (EPS); an image from outside may only be one of these.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
CONFIG = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')  # what preparing an image takes
PIXELS = 150_000_000  # of an image at most: decoding it takes up to 16 bytes a pixel
RATIO = 64  # of the sides at most: of a longer image only the middle is resized


def read_image(image: str | Path | Image.Image, mode: str = 'RGB') -> Image.Image:
    """Return the picture as a viewer shows it: upright, transparency over white, with 8 bits a channel.

    Numbers of 16 bits are scaled down. Floating-point numbers are taken as 0 to 1 or as 0 to 255, integers of 32 bits
    as 0 to 255 or as 0 to 65,535, whichever range holds them all.

    Args:
        image: a path (PNG, JPEG, WebP, BMP, GIF, TIFF) or an open Pillow image, of any size and mode.
        mode: 'RGB' or 'L'.

    Raises:
        UserError: the file is missing, damaged, no regular file or no image, has more than `PIXELS` pixels, or has
            numbers outside these ranges.
    """
    where = f"'{image}'"
    try:
        if isinstance(image, Image.Image):
            return _converted(image, mode, where)
        refuse_special(Path(image))
        with open(image, 'rb') as file, Image.open(file, formats=FORMATS) as picture:
            return _converted(picture, mode, where)
    except UnidentifiedImageError:
        raise UserError(f'{where} is no image, or a damaged one; give a {", ".join(FORMATS)} file') from None
    except UserError:
        raise
    except Exception as error:  # on a damaged file Pillow's decoders raise whatever they stumble over
        reason = getattr(error, 'strerror', None) or one_line(error)
        raise UserError(f'cannot read the image {where}: {reason}') from error


def preprocessing(model: nn.Module) -> tuple[Callable[[Image.Image], Tensor], str]:
    """Return the evaluation transform of the model's weights, and the Pillow mode ('RGB' or 'L') that it takes."""
    return transform(data_config(model, use_test_size=True))


def transform(config: dict[str, Any]) -> tuple[Callable[[Image.Image], Tensor], str]:
    """The evaluation transform of a data config, and the Pillow mode that it takes; other keys are left out.

    Raises:
        UserError: a number of channels that image files don't have.
    """
    channels = config['input_size'][0]
    if channels not in (1, 3):
        raise UserError(f'the model takes {channels} channels; image files give 3 or 1')
    whole: Any = create_transform(**{key: config[key] for key in CONFIG if key in config})
    cropped = config.get('crop_mode', 'center') == 'center'
    return (lambda picture: whole(_middle(picture) if cropped else picture)), 'RGB' if channels == 3 else 'L'


def image_files(folder: str | Path, limit: int | None = None) -> list[Path]:
    """The image files of a folder and its subfolders, sorted; at most ``limit`` of them, spread over the folder.

    A link to a folder isn't followed, because it may lead back to a folder above it.

    Raises:
        UserError: there is no such folder, or it has no images.
    """
    if not Path(folder).is_dir():
        raise UserError(f"no folder '{folder}' of images")
    files = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    images = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    if not images:
        raise UserError(f"no images in the folder '{folder}' (PNG, JPEG, WebP, BMP, GIF, TIFF)")
    count = min(limit or len(images), len(images))
    return [images[i * len(images) // count] for i in range(count)]


def _converted(picture: Image.Image, mode: str, where: str) -> Image.Image:
    if not 0 < picture.width * picture.height <= PIXELS:
        raise UserError(f'{where} has {picture.width} x {picture.height} pixels; 1 to {PIXELS:,} are read')
    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in 'IF':
        picture = Image.fromarray(_bytes(np.asarray(picture), where))
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return picture.convert(mode)


def _bytes(values: np.ndarray, where: str) -> np.ndarray:
    """Numbers of 16 or 32 bits as 8 bits: Pillow itself would cut off what is above 255."""
    least, most = values.min(), values.max()
    if values.dtype.kind == 'f' and 0 <= least and most <= 1:
        return (values * 255).round().astype(np.uint8)
    if values.dtype.itemsize == 4 and 0 <= least and most <= 255:
        return values.round().astype(np.uint8)
    if values.dtype.kind != 'f' and 0 <= least and most <= 65535:
        return (values // 257).astype(np.uint8)
    ranges = '0 to 1 or 0 to 255' if values.dtype.kind == 'f' else '0 to 65535'
    raise UserError(f'{where} has values from {least:g} to {most:g}; give a picture with values from {ranges}')


def _middle(picture: Image.Image) -> Image.Image:
    """The middle of a very long picture: all that the crop can need of it, before resizing makes it huge."""
    width, height = picture.size
    side = RATIO * min(width, height)
    left, top = max(0, width - side) // 2, max(0, height - side) // 2
    return picture.crop((left, top, width - left, height - top)) if left or top else picture
