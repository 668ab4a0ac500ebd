"""``nf-zoo train``: the keys of a recipe as options, and how a run begins."""

import os
import sys
from argparse import SUPPRESS, ArgumentTypeError, BooleanOptionalAction, RawDescriptionHelpFormatter, _ArgumentGroup
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from ..errors import CheckFailed, UserError
from ..net.registry import others_download
from ..text import say
from ..train import strict_yaml
from ..train.engine import train
from ..train.progress import Interrupted
from ..train.recipe import GROUPS, RANGES, TYPES, Recipe, load_recipe
from ..train.run_folder import read_recipe
from ..train.starter import starter_recipe
from .parser import Parser

_EXAMPLE = """examples:
  nf-zoo train configs/cifar10/eunnet20_cifar.yaml --data-dir data --output runs/eunnet20
  nf-zoo train --output runs/eunnet20 --resume
  nf-zoo train --model eunnet20_cifar.cifar10 --data-dir my_pictures --output runs/mine
  nf-zoo train configs/imagenet/eunnet50.yaml --dry-run
  torchrun --nproc-per-node 2 -m nf_zoo train configs/cifar10/eunnet20_cifar.yaml --data-dir data --output runs/two"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train by a recipe; returns the exit code. Raises as `train` does."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    dry_run, change = options.pop('dry_run'), options.pop('change')
    recipe = _recipe(options.pop('recipe'), options)
    if change and not recipe.resume:
        raise UserError('--change is for a run that goes on: give --resume too')
    with others_download(recipe.model, recipe.pretrained):
        return _plan(recipe, change) if dry_run else _train(recipe, change)


def _plan(recipe: Recipe, change: bool) -> int:
    from ..train.plan import describe

    for line in describe(recipe, change=change):
        say(line)
    return 0


def _train(recipe: Recipe, change: bool) -> int:
    try:
        train(recipe, log=say, change=change)
    except BrokenPipeError:  # not done, whatever `main` makes of a reader that has seen enough
        raise CheckFailed(
            f'nothing reads the output any more, so the run has ended; its last checkpoint is in {recipe.run_dir}, '
            'continue it with --resume'
        ) from None
    except KeyboardInterrupt as stopped:
        if not int(os.environ.get('RANK', 0)):  # of several processes, one says it
            say(f'nf-zoo: {stopped if isinstance(stopped, Interrupted) else "stopped"}', sys.stderr)
        return 130
    return 0


def _recipe(path: str | None, options: dict[str, Any]) -> Recipe:
    """The recipe of a file, of the run that goes on, or for a model and a folder of pictures."""
    if path is not None:
        return load_recipe(path, options)
    if options.get('resume') and options.get('output'):
        options = {'experiment': '', **options}  # the folder of the run is the one that is named here
        return read_recipe(Path(options['output']) / options['experiment']).with_options(options)
    if options.get('model'):
        recipe, said = starter_recipe(options)
        if not int(os.environ.get('RANK', 0)):
            say(said)
        return recipe
    raise UserError(
        'what should be trained? give a RECIPE, such as configs/cifar10/eunnet20_cifar.yaml, '
        'or --model NAME --data-dir DIR for your own pictures, or --output RUN --resume'
    )


def _parser() -> Parser:
    parser = Parser(
        prog='nf-zoo train',
        usage='%(prog)s [RECIPE] --output RUN [--data-dir DIR] [--resume] [--dry-run] [any key of a recipe]',
        description='Train a model. RECIPE is a YAML file or a name that `nf-zoo recipes` lists. Every key of a recipe '
        'is also an option, which overrides the file. Without RECIPE, a model is fine-tuned or trained on a folder of '
        'your own pictures.',
        epilog=_EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        'recipe', nargs='?', metavar='RECIPE', help='YAML file, or a recipe of the package (`nf-zoo recipes`)'
    )
    parser.add_argument('--dry-run', action='store_true', help='check everything and show what a run would do')
    parser.add_argument(
        '--change',
        action='store_true',
        help='with --resume: go on with another learning rate, warm-up or clipping; the run records it',
    )
    group: Any = parser
    for f in fields(Recipe):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        _add_option(group, f)
    return parser


def _add_option(group: _ArgumentGroup, f: Any) -> None:
    """Add the option of one key; without it on the command line, the key is absent from the result."""
    kind = TYPES[f.name]
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    default = f.default if f.default is not MISSING else {}
    notes = [str(RANGES[f.name]), '' if default in (None, '', {}, (), False) else f'default {_text(default)}']
    text = f.metadata['help'] + ''.join(f' ({"; ".join(filter(None, notes))})' if any(notes) else '')
    options: dict[str, Any] = {'dest': f.name, 'default': SUPPRESS, 'help': text.replace('%', '%%')}
    if kind is bool:
        options['action'] = BooleanOptionalAction
    elif get_origin(kind) is tuple:
        options |= {'nargs': '+', 'type': get_args(kind)[0], 'metavar': 'X'}
    elif get_origin(kind) is dict:
        options |= {'type': _mapping, 'metavar': '{KEY: X}'}
    else:
        options |= {'type': kind, 'metavar': 'X'}
    group.add_argument(f'--{f.name}'.replace('_', '-'), **options)


def _text(default: Any) -> str:
    return ' '.join(map(str, default)) if isinstance(default, tuple) else str(default)


def _mapping(text: str) -> Any:
    try:
        return strict_yaml.parse(text, 'it')
    except UserError as error:
        raise ArgumentTypeError(f"'{text[:60]}' is no mapping such as '{{depths: [1, 1, 1]}}' ({error})") from None
