"""From image files to a network's input: the preprocessing that the weights were trained for, and nothing else."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from ..errors import UserError
from ..train.data.config import data_config
from ..train.data.pictures import SUFFIXES

CONFIG = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')  # what preparing an image takes
RATIO = 64  # of the sides at most: of a longer image only the middle is resized


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


def _middle(picture: Image.Image) -> Image.Image:
    """The middle of a very long picture: all that the crop can need of it, before resizing makes it huge."""
    width, height = picture.size
    side = RATIO * min(width, height)
    left, top = max(0, width - side) // 2, max(0, height - side) // 2
    return picture.crop((left, top, width - left, height - top)) if left or top else picture
