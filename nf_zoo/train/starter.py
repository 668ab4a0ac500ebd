"""Settings for a user's own folder of pictures, where no recipe is given."""

from itertools import islice
from pathlib import Path
from typing import Any

import timm

from ..errors import UserError
from .build import check_name
from .data.pictures import is_picture
from .recipe import Recipe

VALIDATION = ('validation', 'val', 'valid', 'test')  # names of the folder of the validation images

# For both: pictures of any size, a schedule by updates, and clipping, because nothing normalises the activations.
_COMMON: dict[str, Any] = dict(
    dataset='folder',
    batch_size=32,
    scale=(0.35, 1.0),
    color_jitter=0.2,
    train_interpolation='',
    clip_grad=1.0,
    sched_on_updates=True,
    weight_decay=5e-5,
    amp=True,
)
FINE_TUNING: dict[str, Any] = {**_COMMON, 'pretrained': True, 'epochs': 10, 'warmup_epochs': 1, 'lr': 0.01}
FEWEST_UPDATES = 4  # in an epoch: a smaller folder gets smaller batches
FEWEST_EPOCHS = 5  # for an epoch of warm-up
TRAINING: dict[str, Any] = {**_COMMON, 'epochs': 60, 'warmup_epochs': 5, 'lr': 0.05}


def starter_recipe(options: dict[str, Any]) -> tuple[Recipe, str]:
    """A recipe for ``--model NAME --data-dir DIR``, and the line that says what it is.

    A model that has pretrained weights is fine-tuned, another one is trained from the beginning. ``options`` override
    the settings. Raises `UserError`.
    """
    check_name(options['model'])
    base = TRAINING
    if options.get('pretrained', not options.get('initial_checkpoint') and has_weights(options['model'])):
        base = FINE_TUNING
    elif options.get('initial_checkpoint'):
        base = FINE_TUNING | {'pretrained': False}
    base = dict(base)
    if options.get('dataset', 'folder') == 'folder':
        if not options.get('data_dir'):
            raise UserError(
                'which pictures? give --data-dir DIR, with DIR/train/CLASS/IMAGE and DIR/validation/CLASS/IMAGE'
            )
        folder = Path(options['data_dir'])
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder')
        base['val_split'] = next((name for name in VALIDATION if (folder / name).is_dir()), 'validation')
        base['batch_size'] = _batch_size(folder / options.get('train_split', 'train'))
    if isinstance(options.get('epochs'), int):
        base['warmup_epochs'] = min(base['warmup_epochs'], max(0, options['epochs'] // FEWEST_EPOCHS))
    recipe = Recipe().with_options(base | options)
    what = 'training from the beginning' if base['epochs'] == TRAINING['epochs'] else 'fine-tuning its weights'
    return recipe, (
        f'{recipe.model}, without a recipe: {what}, batch_size {recipe.batch_size}, epochs {recipe.epochs}, '
        f'lr {recipe.lr:g}; recipe.yaml in the output folder has all settings'
    )


def _batch_size(folder: Path) -> int:
    """32, or the power of two that a folder with few pictures has ``FEWEST_UPDATES`` of."""
    size = _COMMON['batch_size']
    found = (file for file in folder.glob('*/*') if is_picture(str(file)))
    pictures = sum(1 for _ in islice(found, FEWEST_UPDATES * size))
    while size > 1 and pictures < FEWEST_UPDATES * size:
        size //= 2
    return size


def has_weights(model: str) -> bool:
    """Whether timm knows pretrained weights of this model, with its tag if it names one."""
    name, _, tag = model.partition('.')
    known = timm.list_pretrained(f'{name}.*')
    return model in known if tag else bool(known)
