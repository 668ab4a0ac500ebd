"""From a name to a model that can classify, and the names of its classes."""

from typing import Any

import timm
from timm.data import ImageNetInfo

from ..errors import UserError, nearest, one_line
from ..net.registry import list_models


def load_model(name: str, pretrained: bool = True, **kwargs: Any) -> Any:
    """`timm.create_model` in eval mode, with a user's mistakes (name, tag, missing weights) as a one-line UserError."""
    base = name.partition('.')[0]
    if ':' not in name and not timm.is_model(base):
        raise UserError(f"unknown model '{name}'{nearest(base, list_models())} (`nf-zoo list` shows all names)")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs).eval()
    except (UserError, TypeError):
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"cannot load '{name}': {one_line(error)}") from error


def class_names(model: Any) -> list[str]:
    """Return one name per output: the weights' own label names, ImageNet's for `in1k` tags, else the indices."""
    config = getattr(model, 'pretrained_cfg', {})
    count = model.num_classes
    names = config.get('label_names')
    if not names and count == 1000 and str(config.get('tag')).endswith('in1k'):
        info = ImageNetInfo()
        names = [info.index_to_description(index) for index in range(count)]
    return [str(name) for name in names] if names and len(names) == count else [str(index) for index in range(count)]
