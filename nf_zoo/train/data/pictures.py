"""Reading one picture of a class folder: only what is a picture, and no more of it than fits."""

import os
from pathlib import Path

from PIL import Image

from ...errors import UserError
from ...files import refuse_special

# What Pillow raises for damaged files; its own bomb error, from 179 million pixels on, is none of the others.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
LONGEST = 100  # the longer side as a multiple of the shorter: a picture of 1 x 1,000,000 would become 65 gigapixels
WIDE = ('F', 'I', 'I;16', 'I;16B', 'I;16L', 'I;16N')  # modes with more than 8 bits, which Pillow clips at 255


def read_picture(path: str, mode: str = 'RGB') -> Image.Image:
    """The picture in a file, converted to ``mode`` as timm's readers convert it.

    Raises:
        UserError: It is no regular file, far too long or too large, or has more than 8 bits a channel.
        OSError, ValueError, SyntaxError: The file is damaged.
    """
    refuse_special(Path(path))
    with open(path, 'rb') as file:
        try:
            picture = Image.open(file)
        except Image.DecompressionBombError:
            raise UserError(f'{path}: the picture has more than 178 million pixels; make it smaller') from None
        width, height = picture.size
        if max(width, height) > LONGEST * min(width, height):
            raise UserError(f'{path}: {width} x {height} pixels; the longer side is over {LONGEST} times the shorter')
        if picture.mode in WIDE:
            raise UserError(f'{path}: its pixels have more than 8 bits (mode {picture.mode}); convert it to 8 bits')
        return picture.convert(mode)


def refuse_loops(folder: Path) -> None:
    """Raises `UserError` for a link, at any depth, to a folder above it: its images would count many times."""
    for place, names, _ in os.walk(folder, followlinks=True):
        here = os.path.realpath(place)
        for name in names:
            inside = os.path.join(place, name)
            if os.path.islink(inside):
                target = os.path.realpath(inside)
                if os.path.commonpath([target, here]) == target:
                    raise UserError(f'{inside} is a link to {target}, a folder above it; remove the link')
