"""From images to class names."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..errors import UserError
from .images import preprocessing, read_image
from .loading import class_names, load_model

BATCH = 64


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
