"""Classify images with an exported model: python classify.py model.onnx image.png ...

It needs ONNX Runtime, NumPy and Pillow. The file itself says how to prepare an image and what the classes are called.
"""

import json
import sys
from math import floor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')  # Pillow also reads formats that start other programs
PIXELS = 150_000_000  # of an image at most
RATIO = 64  # of the sides at most: of a longer image only the middle counts, so that resizing doesn't make it huge


def read(path: str, mode: str) -> Image.Image:
    """The picture as a viewer shows it: upright, transparency over white, 16 bits scaled down to 8."""
    picture = Image.open(path, formats=FORMATS)
    if picture.width * picture.height > PIXELS:
        raise ValueError(f'it has {picture.width} x {picture.height} pixels; at most {PIXELS:,} are read')
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith('I;16'):
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    elif picture.mode in 'IF':
        raise ValueError('its pixels have 32 bits; give a picture of 8 or 16 bits')
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return picture.convert(mode)


def middle(picture: Image.Image) -> Image.Image:
    """The middle of a very long picture: all that the crop can need of it."""
    side = RATIO * min(picture.size)
    left, top = (max(0, length - side) // 2 for length in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top)) if left or top else picture


class Classifier:
    def __init__(self, path: str):
        self.session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        facts = self.session.get_modelmeta().custom_metadata_map
        if 'input_size' not in facts:
            raise ValueError('it has no metadata of an image size; `nf-zoo export` writes such a file')
        if facts.get('crop_mode', 'center') != 'center':
            raise ValueError(f'crop_mode {facts["crop_mode"]} is not supported, only center')
        self.channels, self.height, self.width = json.loads(facts['input_size'])
        self.mean, self.std = (np.array(json.loads(facts[key]), np.float32)[:, None, None] for key in ('mean', 'std'))
        self.crop_pct = json.loads(facts['crop_pct'])
        self.filter = Image.Resampling[facts['interpolation'].upper()]
        self.names = json.loads(facts.get('class_names', 'null'))

    def prepare(self, path: str) -> np.ndarray:
        """The image, resized and cropped, as the network's input: [1, channels, height, width]."""
        picture = middle(read(path, 'L' if self.channels == 1 else 'RGB'))
        # The side that is shorter, for the input, becomes input / crop_pct pixels; rounded as torchvision and timm do.
        goal = floor(self.width / self.crop_pct), floor(self.height / self.crop_pct)
        if goal[0] == goal[1]:
            size = [goal[0] * side // min(picture.size) for side in picture.size]
        else:
            ratio = min(picture.width / goal[0], picture.height / goal[1])
            size = [round(side / ratio) for side in picture.size]
        picture = picture.resize(size, self.filter)
        left, top = round((picture.width - self.width) / 2), round((picture.height - self.height) / 2)
        picture = picture.crop((left, top, left + self.width, top + self.height))
        pixels = np.asarray(picture, np.float32).reshape(self.height, self.width, -1).transpose(2, 0, 1)
        return ((pixels / 255 - self.mean) / self.std)[None]

    def __call__(self, path: str, top: int = 5) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities."""
        (logits,) = self.session.run(None, {self.session.get_inputs()[0].name: self.prepare(path)})[0].astype(float)
        odds = np.exp(logits - logits.max())
        best = np.argsort(-odds, kind='stable')[:top]
        return [(self.names[index] if self.names else str(index), odds[index] / odds.sum()) for index in best]


def printable(text: object) -> str:
    """In one line, without the control characters that could move a terminal's cursor."""
    return ''.join(c if c.isprintable() else '?' for c in ' '.join(str(text).split()))


def is_file(path: str) -> None:
    """Raises for what is no regular file: opening a pipe would wait for ever."""
    if not Path(path).is_file():
        raise ValueError('it is not a file' if Path(path).exists() else 'no such file')


def main() -> int:
    if len(sys.argv) < 3:
        print('usage: python classify.py model.onnx image.png ...', file=sys.stderr)
        return 2
    path, *images = sys.argv[1:]
    try:
        is_file(path)
        classify = Classifier(path)
        for path in images:
            is_file(path)
            answer = classify(path)
            print(path)
            for name, probability in answer:
                print(f'  {probability:.6f}  {printable(name)}')
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # ONNX Runtime and Pillow raise whatever a damaged file makes them stumble over
        print(f'{printable(path)}: {printable(error)[:300]}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
