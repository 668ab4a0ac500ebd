"""Reading one picture: the same pixels in training, in evaluation and in prediction, and no more of them than fit."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...errors import UserError, one_line
from ...files import refuse_special

# Pillow also reads formats that start other programs (EPS); an image from outside may only be one of these.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
_ALSO = ('PPM',)  # which torchvision's class folders may hold too
_CLASS_SUFFIXES = (*SUFFIXES, '.ppm', '.pgm')
PIXELS = 150_000_000  # of an image at most: decoding it takes up to 16 bytes a pixel
LONGEST = 100  # the longer side as a multiple of the shorter: a picture of 1 x 1,000,000 would become 65 gigapixels
# What Pillow and torchvision's own readers raise for damaged files.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def read_image(image: str | Path | Image.Image, mode: str = 'RGB') -> Image.Image:
    """Return the picture as a viewer shows it: upright, transparency over white, with 8 bits a channel.

    Numbers of 16 bits are scaled down. Floating-point numbers are taken as 0 to 1 or as 0 to 255, integers of 32 bits
    as 0 to 255 or as 0 to 65,535, whichever range holds them all.

    Args:
        image: A path (PNG, JPEG, WebP, BMP, GIF, TIFF) or an open Pillow image, of any size and mode.
        mode: 'RGB' or 'L'.

    Raises:
        UserError: The file is missing, damaged, no regular file or no image, has more than `PIXELS` pixels, or has
            numbers outside these ranges.
    """
    where = f"'{image}'"
    try:
        if isinstance(image, Image.Image):
            return _converted(image, mode, where)
        refuse_special(Path(image))
        with open(image, 'rb') as file, Image.open(file, formats=(*FORMATS, *_ALSO)) as picture:
            return _converted(picture, mode, where)
    except UnidentifiedImageError:
        raise UserError(f'{where} is no image, or a damaged one; give a {", ".join(FORMATS)} file') from None
    except UserError:
        raise
    except Exception as error:  # on a damaged file Pillow's decoders raise whatever they stumble over
        reason = getattr(error, 'strerror', None) or one_line(error)
        raise UserError(f'cannot read the image {where}: {reason}') from error


def read_picture(path: str, mode: str = 'RGB') -> Image.Image:
    """`read_image` for a class folder. Raises `UserError` also for a picture that resizing would make huge."""
    picture = read_image(path, mode)
    width, height = picture.size
    if max(width, height) > LONGEST * min(width, height):
        raise UserError(f"'{path}': {width} x {height} pixels; the longer side is over {LONGEST} times the shorter")
    return picture


def is_picture(path: str) -> bool:
    """Whether a file of a class folder is named like a picture. torchvision would leave GIF files out."""
    return path.lower().endswith(_CLASS_SUFFIXES)


def look_through(folder: Path) -> list[str]:
    """The files of class folders that are not named like pictures, which torchvision leaves out; hidden ones don't
    count.

    Raises `UserError` for a link, at any depth, to a folder above it: its images would count many times.
    """
    others: list[str] = []
    for place, names, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        if place != str(folder):
            others += [name for name in files if not is_picture(name) and not name.startswith('.')]
        for name in names:
            inside = os.path.join(place, name)
            if os.path.islink(inside):
                target = os.path.realpath(inside)
                if os.path.commonpath([target, here]) == target:
                    raise UserError(f'{inside} is a link to {target}, a folder above it; remove the link')
    return others


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
