"""From images to class names."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import CheckFailed, UserError
from ..text import clean
from ..train.data.pictures import read_image
from .images import image_files, preprocessing
from .loading import class_names, load_model

BATCH = 64

Classes = list[tuple[str, float]]  # (name, probability), the most probable first


@dataclass(frozen=True)
class PredictReport:
    """What `nf-zoo predict` found: the classes of each image, or in one line why it could not be read."""

    rows: list[tuple[str, Classes | UserError]]

    @property
    def failures(self) -> list[UserError]:
        """The errors of the images that could not be read."""
        return [found for _, found in self.rows if isinstance(found, UserError)]

    def __str__(self) -> str:
        read = [
            (clean(image), [(clean(name), probability) for name, probability in found])
            for image, found in self.rows
            if not isinstance(found, UserError)
        ]
        left = max((len(image) for image, _ in read), default=0)
        middle = max((len(name) for _, classes in read for name, _ in classes), default=0)
        return '\n'.join(
            f'{"" if rank else image:<{left}}  {name:<{middle}}  {probability:7.2%}'
            for image, classes in read
            for rank, (name, probability) in enumerate(classes)
        )

    def as_dicts(self) -> list[dict[str, Any]]:
        """What JSON shows: for each image its classes, or the error."""
        return [
            {'image': image, 'error': str(found)}
            if isinstance(found, UserError)
            else {'image': image, 'classes': [{'name': name, 'probability': p} for name, p in found]}
            for image, found in self.rows
        ]


def predict(
    model: str | nn.Module,
    images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
    top: int = 5,
) -> list[Classes]:
    """Classify images.

    Args:
        model: a name, loaded with its pretrained weights, or a model, which stays in the mode that it is in.
        images: one image or several: paths or Pillow images, of any size and mode.
        top: how many classes per image, at most as many as the model has.

    Returns:
        For each image its `top` classes as (name, probability), the most probable first.

    Raises:
        UserError: an unknown name, missing weights, an unreadable image, or `top` below 1.
        CheckFailed: the model gives NaN or infinity for an image.
    """
    if isinstance(images, (str, Path, Image.Image)):
        images = [images]
    rows = []
    for _, found in _classify(model, images, top):
        if isinstance(found, UserError):
            raise found
        rows.append(found)
    return rows


def predict_files(model: str | nn.Module, paths: Sequence[str | Path], top: int = 5) -> PredictReport:
    """Classify the images of ``paths``, of which a folder stands for all images in it; an unreadable one is reported.

    Raises:
        UserError: an unknown name, missing weights, a folder without images, or `top` below 1.
        CheckFailed: the model gives NaN or infinity for an image.
    """
    images = [image for path in paths for image in (image_files(path) if Path(path).is_dir() else [Path(path)])]
    return PredictReport([(str(image), found) for image, found in _classify(model, images, top)])


def _classify(
    model: str | nn.Module, images: Iterable[str | Path | Image.Image], top: int
) -> Iterator[tuple[str | Path | Image.Image, Classes | UserError]]:
    if top < 1:
        raise UserError(f'top must be 1 or more, not {top}')
    net = _in_eval_mode(load_model(model) if isinstance(model, str) else model)
    if not net.num_classes:
        raise UserError('the model has no classifier (num_classes=0), so it predicts nothing')
    transform, mode = preprocessing(net)
    names = class_names(net)
    remaining = iter(images)
    while batch := list(islice(remaining, BATCH)):
        inputs = [_prepared(image, transform, mode) for image in batch]
        good = [x for x in inputs if isinstance(x, Tensor)]
        rows = iter(_top(net, torch.stack(good), names, top) if good else [])
        for image, x in zip(batch, inputs, strict=True):
            found = x if isinstance(x, UserError) else next(rows)
            if not found:
                raise CheckFailed(f"the model gives NaN for '{image}': its weights are damaged or not finite")
            yield image, found


def _in_eval_mode(model: nn.Module) -> nn.Module:
    """The model, or a copy in eval mode with the same tensors: another thread may be using the model itself."""
    if not any(module.training for module in model.modules()):
        return model
    values = (value for module in model.modules() for value in vars(module).values())
    tensors = [*model.parameters(), *model.buffers(), *(value for value in values if isinstance(value, Tensor))]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()


def _prepared(image: str | Path | Image.Image, transform: Callable[[Any], Tensor], mode: str) -> Tensor | UserError:
    try:
        return transform(read_image(image, mode))
    except UserError as error:
        return error


@torch.inference_mode()
def _top(net: nn.Module, x: Tensor, names: list[str], top: int) -> Iterator[Classes]:
    """The most probable classes of each image; none where the logits are not finite."""
    first = next(net.parameters())
    logits = net(x.to(first.device, first.dtype)).float().cpu()  # a network in 16 bits too
    values, classes = logits.softmax(1).topk(min(top, len(names)))
    for finite, *row in zip(logits.isfinite().all(1).tolist(), classes.tolist(), values.tolist(), strict=True):
        yield [(names[index], value) for index, value in zip(*row, strict=True)] if finite else []
