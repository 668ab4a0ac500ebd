"""From image files to a network's input: the preprocessing that the weights were trained for, and nothing else."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform
from torch import nn

from ..errors import UserError, one_line
from ..train.data.config import data_config

# Pillow also reads formats that start other programs (EPS); an image from outside may only be one of these.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')
SUFFIXES = {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff'}


def image_files(folder: str | Path, limit: int) -> list[Path]:
    """The image files of a folder and its subfolders, at most ``limit``, spread over all of them.

    Raises:
        UserError: no such folder, or no images in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder '{folder}' of images")
    files = sorted(path for path in root.rglob('*') if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UserError(f"no images in '{folder}' ({', '.join(FORMATS)})")
    return [files[i * len(files) // limit] for i in range(limit)] if len(files) > limit else files


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
        raise UserError(f"cannot read the image '{image}': {one_line(error)}") from error


def preprocessing(model: nn.Module) -> tuple[Any, str]:
    """Return the evaluation transform of the model's weights, and the Pillow mode ('RGB' or 'L') that it takes."""
    config = data_config(model, use_test_size=True)
    channels = config['input_size'][0]
    if channels not in (1, 3):
        raise UserError(f'the model takes {channels} channels; image files give 3 or 1')
    return create_transform(**config), 'RGB' if channels == 3 else 'L'
