"""How a model wants its images: timm's data config, also for images of one channel."""

from statistics import mean
from typing import Any

from timm.data import resolve_data_config
from torch import nn


def data_config(model: nn.Module, given: dict[str, Any] | None = None, use_test_size: bool = False) -> dict[str, Any]:
    """timm's data config of ``model``: input_size, mean, std, interpolation, crop_pct, crop_mode.

    A model of one channel whose mean and std are those of colour images gets their averages, because timm would
    normalise one channel by three numbers.

    Args:
        model: A timm model.
        given: Keys of timm's train.py that come before the model's own; None values don't count.
        use_test_size: Take the cfg's size for evaluation where it has one of its own.
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    channels = getattr(model, 'in_chans', None)
    if channels == 1:
        given |= {key: (mean(given[key]),) for key in ('mean', 'std') if len(given.get(key, ())) == 3}
    config: dict[str, Any] = resolve_data_config(given, model=model, use_test_size=use_test_size)
    config['input_size'] = (channels or config['input_size'][0], *config['input_size'][1:])
    for key in ('mean', 'std'):
        if channels == 1 and len(config[key]) == 3:
            config[key] = (mean(config[key]),)
    return config
