"""What an analysis looks at: a network by its name, or a run, and the images that are sent through it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from ..inference.images import image_files, preprocessing
from ..inference.loading import resolve
from ..train.data.pictures import read_image


def open_network(
    name: str, pretrained: bool = False, seed: int = 0, model_args: Mapping[str, Any] | None = None
) -> nn.Module:
    """The network of a name of nf_zoo or timm, with or without a tag, or of the folder of a run, in eval mode.

    Args:
        name: NAME, NAME.TAG or a folder. A run has its trained weights.
        pretrained: Whether a name gets its pretrained weights.
        seed: Of the initial weights; torch's random state stays as it is.
        model_args: Keyword arguments of the model.

    Raises:
        UserError: an unknown name, an unknown keyword, or no such weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return resolve(name, pretrained).load(**(model_args or {}))
        except TypeError as error:
            raise UserError(f'{name}: {one_line(error)}') from None


def noise(model: Any, batch_size: int, pixels: int | None = None, seed: int = 0) -> Tensor:
    """Images (N, C, H, W) of N(0, 1), of the size in the model's config or of ``pixels`` x ``pixels``."""
    channels, *size = (getattr(model, 'pretrained_cfg', None) or {}).get('input_size') or (3, 224, 224)
    size = [pixels, pixels] if pixels else size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, getattr(model, 'in_chans', channels), *size, generator=generator)


def pictures(model: nn.Module, folder: str | Path, batch_size: int) -> Tensor:
    """Images (N, C, H, W) of a folder and its subfolders, spread over all of it, as the weights expect them.

    Raises:
        UserError: no such folder, no images in it, or one that can't be read.
    """
    transform, mode = preprocessing(model)
    return torch.stack([transform(read_image(file, mode)) for file in image_files(folder, batch_size)])
