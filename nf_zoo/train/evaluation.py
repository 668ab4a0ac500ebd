"""Scoring a model on a whole validation set."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import nn
from torch.nn import functional as F

from ..errors import UserError
from .data import Batch, MemoryData, load_dataset
from .folder import FolderData, open_folders
from .recipe import Recipe

Autocast = Callable[[], AbstractContextManager]


@torch.inference_mode()
def totals(model: nn.Module, batches: Iterable[Batch], autocast: Autocast = nullcontext) -> tuple[float, ...]:
    """Hits of the first class, hits of the first five, summed cross-entropy and number of images, for `accuracies`.

    The model's mode is left as it was.
    """
    was_training = model.training
    model.eval()
    sums, n = torch.zeros(3, dtype=torch.float64), 0
    for x, y in batches:
        with autocast():
            logits = model(x)
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
        loss = F.cross_entropy(logits, y, reduction='sum')
        sums = sums.to(x.device) + torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss.double()])
        n += len(y)
    model.train(was_training)
    return (*sums.tolist(), n)


def accuracies(top1: float, top5: float, loss: float, n: float) -> dict[str, float]:
    """top1 and top5 in percent, mean cross-entropy ``loss``, images ``n``, of what `totals` found."""
    return {'top1': 100 * top1 / n, 'top5': 100 * top5 / n, 'loss': loss / n, 'n': int(n)}


def evaluate(
    model: nn.Module,
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    download: bool = False,
) -> dict[str, float]:
    """Score ``model`` on the validation split of an in-memory set, or of ``'folder'``, as its cfg says.

    Returns top1 and top5 in percent, the mean cross-entropy ``loss`` and the number of images ``n``. The model stays
    where it is unless ``device`` is given. Raises `UserError` as `load_dataset` and `open_folders` do, and for folders
    that aren't the model's classes.
    """
    device = torch.device(device) if device else next(model.parameters()).device
    config = resolve_data_config(model=model)
    if dataset == 'folder':
        return accuracies(*totals(model.to(device), _folder(model, data_dir, batch_size, device, config)))
    data = MemoryData(
        None,
        load_dataset(dataset, data_dir, 'validation', download=download),
        batch_size=batch_size,
        val_batch_size=batch_size,
        mean=config['mean'],
        std=config['std'],
        device=device,
        size=config['input_size'][-1],
    )
    return accuracies(*totals(model.to(device), data.val_batches()))


def _folder(
    model: Any, data_dir: str | Path | None, batch_size: int, device: torch.device, config: dict[str, Any]
) -> Iterable[Batch]:
    (images,) = open_folders(str(data_dir) if data_dir else None, 'validation')
    classes = list(getattr(model, 'pretrained_cfg', {}).get('label_names') or images.classes)
    if classes != images.classes:
        odd = sorted(set(classes) ^ set(images.classes)) or ['in another order']
        raise UserError(f'{data_dir}/validation has other classes than the model ({", ".join(odd[:5])})')
    recipe = Recipe(model='', dataset='folder', batch_size=batch_size, workers=0)
    return FolderData(images, images, recipe, config, device).val_batches()
