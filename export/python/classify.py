"""Classify images with an exported model: python classify.py model.onnx image.png ...

ONNX Runtime, NumPy and Pillow; the file itself says how to prepare an image and what the classes are called.
"""

import json
import sys
from math import floor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path: str, mode: str) -> Image.Image:
    """The picture as a viewer shows it: upright, transparency over white, 16 bits scaled down to 8."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith('I'):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return picture.convert(mode)


class Classifier:
    def __init__(self, path: str):
        self.session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        facts = self.session.get_modelmeta().custom_metadata_map
        if facts.get('crop_mode', 'center') != 'center':
            raise ValueError(f'crop_mode {facts["crop_mode"]} is not supported, only center')
        self.channels, self.height, self.width = json.loads(facts['input_size'])
        self.mean, self.std = (np.array(json.loads(facts[key]), np.float32)[:, None, None] for key in ('mean', 'std'))
        self.crop_pct = json.loads(facts['crop_pct'])
        self.filter = Image.Resampling[facts['interpolation'].upper()]
        self.names = json.loads(facts.get('class_names', 'null'))

    def prepare(self, path: str) -> np.ndarray:
        """The image, resized and cropped, as the network's input: [1, channels, height, width]."""
        picture = read(path, 'L' if self.channels == 1 else 'RGB')
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


def main() -> None:
    if len(sys.argv) < 3 or not Path(sys.argv[1]).is_file():
        sys.exit('usage: python classify.py model.onnx image.png ...')
    classify = Classifier(sys.argv[1])
    for path in sys.argv[2:]:
        print(path)
        for name, probability in classify(path):
            print(f'  {probability:.6f}  {name}')


if __name__ == '__main__':
    main()
