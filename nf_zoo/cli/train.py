"""``nf-zoo train``."""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence

from ..text import say
from ..train.engine import train
from ..train.progress import Interrupted
from ..train.recipe import add_options, load_recipe
from .parser import Parser

_EXAMPLE = """example:
  nf-zoo train configs/cifar10/eunnet20_cifar.yaml --data-dir data --output runs/eunnet20
  nf-zoo train configs/cifar10/eunnet20_cifar.yaml --data-dir data --output runs/eunnet20 --resume
  nf-zoo train configs/imagenet/eunnet50.yaml --dry-run
  torchrun --nproc-per-node 2 -m nf_zoo train configs/cifar10/eunnet20_cifar.yaml --data-dir data --output runs/two"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train by a recipe; returns the exit code. Raises as `train` does."""
    parser = Parser(
        prog='nf-zoo train',
        usage='%(prog)s RECIPE --output RUN [--data-dir DIR] [--resume] [--dry-run] [any key of a recipe]',
        description='Train a model by a recipe. Every key of a recipe is an option too, which overrides it.',
        epilog=_EXAMPLE,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('recipe', metavar='RECIPE', help='YAML file, such as those in configs/')
    parser.add_argument(
        '--dry-run', action='store_true', help='show what would be done, with time and memory; do nothing'
    )
    add_options(parser)
    options = vars(parser.parse_args(argv))
    dry_run = options.pop('dry_run')
    recipe = load_recipe(options.pop('recipe'), options)
    if dry_run:
        from ..train.plan import describe

        for line in describe(recipe):
            say(line)
        return 0
    try:
        train(recipe, log=say)
    except KeyboardInterrupt as stopped:
        if not int(os.environ.get('RANK', 0)):  # of several processes, one says it
            say(f'nf-zoo: {stopped if isinstance(stopped, Interrupted) else "stopped"}', sys.stderr)
        return 130
    return 0
