"""Scoring a model on a whole validation set."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckFailed, UserError
from . import allocator
from .build import open_device
from .data.config import data_config
from .data.folder import KNOWN_FOLDERS, FolderData, known_folder, open_folders
from .data.memory import Batch, MemoryData, in_memory, load_dataset, with_channels
from .data.stream import StreamData
from .data.timm_sets import StreamSet, open_named, picture_mode
from .recipe import Recipe

BINS = 15  # of the calibration error
# The keys of a recipe that say how validation images are read.
READING = ('val_split', 'val_num_samples', 'input_key', 'target_key')


@allocator.keep_freed()
@torch.inference_mode()
def totals(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, ...]:
    """Count the correct top-1 and top-5 predictions, sum the cross-entropy and the `gaps`, and count the images.

    For `accuracies`.

    The model's mode is left as it was.
    """
    was_training = model.training
    model.eval()
    sums, n = torch.zeros(3 + BINS, dtype=torch.float64), 0
    dtype = next(model.parameters()).dtype  # a network in 16 bits too
    for x, y in batches:
        logits = model(x.to(dtype)).float()
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
        loss = F.cross_entropy(logits, y, reduction='sum')
        counts = torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss.double()])
        sums = sums.to(x.device) + torch.cat([counts, gaps(logits, y)])
        n += len(y)
    model.train(was_training)
    return (*sums.tolist(), n)


def gaps(logits: Tensor, labels: Tensor) -> Tensor:
    """How far confidence exceeds accuracy: the sum of (probability of the answer) - (1 if it is right), in each bin.

    Args:
        logits: (N, classes).
        labels: True classes, (N,).

    Returns:
        (BINS,) in float64. The bins are equal parts of the probabilities from 0 to 1.
    """
    confidence, answers = logits.double().softmax(1).max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return logits.new_zeros(BINS, dtype=torch.float64).index_add(0, bins, confidence - (answers == labels).double())


def accuracies(top1: float, top5: float, loss: float, *rest: float) -> dict[str, float]:
    """From the `totals`: top1, top5 and ece in percent, the mean cross-entropy ``loss``, the number of images ``n``.

    ece is the expected calibration error (Guo, Pleiss, Sun, Weinberger: "On calibration of modern neural networks",
    ICML 2017, section 2): the mean distance of confidence from accuracy over the bins, weighted by their images.
    """
    *gaps, n = rest
    ece = 100 * sum(map(abs, gaps)) / n
    return {'top1': 100 * top1 / n, 'top5': 100 * top5 / n, 'loss': loss / n, 'ece': ece, 'n': int(n)}


def evaluate(
    model: nn.Module,
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    download: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Score ``model`` on the validation split of a data set, as its cfg says.

    Returns what `accuracies` returns. The model stays where it is unless ``device`` is given. Raises `UserError` as
    `validation` does, and `CheckFailed` for outputs that are no numbers.
    """
    options: dict[str, Any] = dict(batch_size=batch_size, device=device, download=download, recipe=recipe)
    batches, _ = validation(model, dataset, data_dir, **options)
    found = accuracies(*totals(model, batches))
    if not math.isfinite(found['loss']):
        raise CheckFailed(f'{type(model).__name__} gives NaN or infinity on {dataset}')
    return found


def validation(
    model: nn.Module,
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    download: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> tuple[Iterable[Batch], list[str]]:
    """The validation batches of a data set, prepared as the model's cfg says, and the names of the classes.

    Moves the model to ``device`` if that is given; the batches are on the model's device. The keys ``READING`` of
    ``recipe`` say how folders and timm's sets are read. Raises `UserError` for data that can't be read, and for classes
    that are not the model's.
    """
    device = open_device(str(device)) if device else next(model.parameters()).device
    model.to(device)
    config = data_config(model)
    reading = {key: value for key, value in (recipe or {}).items() if key in READING}
    if dataset in KNOWN_FOLDERS:
        data_dir, split = known_folder(dataset, data_dir)
        dataset, reading = 'folder', {'val_split': split} | reading
    if not in_memory(dataset):
        return _pictures(model, dataset, data_dir, batch_size, device, config, reading | {'dataset_download': download})
    found = load_dataset(dataset, data_dir, 'validation', download=download)
    _same_classes(model, found.classes, dataset)
    found = with_channels(found, int(config['input_size'][0]))
    data = MemoryData(
        None,
        found,
        batch_size=batch_size,
        val_batch_size=batch_size,
        mean=config['mean'],
        std=config['std'],
        device=device,
        size=config['input_size'][-1],
    )
    return data.val_batches(), found.classes


def _pictures(
    model: Any,
    dataset: str,
    data_dir: str | Path | None,
    batch_size: int,
    device: torch.device,
    config: dict[str, Any],
    reading: dict[str, Any],
) -> tuple[Iterable[Batch], list[str]]:
    options = {'data_dir': str(data_dir) if data_dir else None, 'workers': 0, 'num_classes': model.num_classes}
    options['in_chans'] = config['input_size'][0]
    recipe = Recipe().with_options(reading | options | {'dataset': dataset, 'batch_size': batch_size})
    if dataset == 'folder':
        (images,) = open_folders(recipe.data_dir, recipe.val_split, mode=picture_mode(recipe))
    else:
        images = open_named(recipe, recipe.val_split)
    place = f'{data_dir}/{recipe.val_split}' if dataset == 'folder' else dataset
    named = dataset == 'folder' or images.classes != [str(number) for number in range(model.num_classes)]
    classes = _same_classes(model, images.classes, place, named)
    kind = StreamData if isinstance(images, StreamSet) else FolderData
    return kind(images, images, recipe, config, device).val_batches(), classes


def _same_classes(model: Any, found: Sequence[str], where: str, named: bool = True) -> list[str]:
    """The names of the model's classes. Raises `UserError` if the data set ``where`` has others: every answer would
    count as wrong. A set whose classes aren't ``named`` is taken if it has as many.
    """
    cfg = getattr(model, 'pretrained_cfg', {})
    own = cfg.get('num_classes') == model.num_classes  # else the model has another classifier than the weights
    names = list(cfg.get('label_names') or ()) if own else []
    if names and named and list(found) != names:
        odd = sorted(set(names) ^ set(found)) or ['in another order']
        raise UserError(f'{where} has other classes than the model ({", ".join(odd[:5])})')
    if not names and len(found) != model.num_classes:
        raise UserError(f'{where} has {len(found)} classes, the model has {model.num_classes}')
    return names or list(found)
