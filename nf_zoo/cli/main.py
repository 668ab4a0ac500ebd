"""The command `nf-zoo`. What is heavy is imported inside the function of each subcommand.

Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence

from .. import __version__, _interrupt
from ..errors import CheckFailed, UserError, is_out_of_memory, nearest
from ..text import say
from . import bench, conversion, evaluate, export, hub, models, signal
from .parser import Command, Parser, fail


def _train(argv: Sequence[str]) -> int | None:
    from .train import main as train

    return train(argv)


# In the order of a user's work, which `nf-zoo --help` shows.
COMMANDS = {
    'list': models.COMMANDS['list'],
    'info': models.COMMANDS['info'],
    'recipes': models.COMMANDS['recipes'],
    'train': Command(
        'train a model by a recipe',
        'nf-zoo train configs/cifar10/eunnet20_cifar.yaml --data-dir DIR --output RUN',
        None,  # its options are the keys of a recipe
        _train,
    ),
    **evaluate.COMMANDS,
    'convert': conversion.COMMAND,
    **hub.COMMANDS,
    **export.COMMANDS,
    'signal': signal.COMMAND,
    **bench.COMMANDS,
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands but `nf-zoo train`, which has its own."""
    top = Parser(
        prog='nf-zoo',
        description='Residual networks without batch normalization, for timm.',
        epilog='`nf-zoo COMMAND --help` shows the options of a command and an example.',
        allow_abbrev=False,
    )
    top.add_argument('--version', action='version', version=f'nf-zoo {__version__}')
    commands = top.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, (text, example, options, function) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f'{text[0].upper()}{text[1:]}.',
            epilog=f'example: {example}',
            allow_abbrev=False,
        )
        if options:
            options(command.add_argument)
        command.set_defaults(function=function)
    return top


def _run(argv: Sequence[str]) -> int | None:
    if argv and argv[0] not in COMMANDS and not argv[0].startswith('-'):
        raise UserError(f"unknown command '{argv[0]}'{nearest(argv[0], COMMANDS)} (`nf-zoo --help` shows all)")
    if argv[:1] == ['train']:
        return _train(argv[1:])
    args = parser().parse_args(argv)
    code: int | None = args.function(args)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')  # a class name may have letters that the terminal hasn't
    try:
        _interrupt.restore()
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of more than 89 million pixels. The images are read all the same.
            warnings.filterwarnings('ignore', module=r'PIL\.')
            code = _run(argv) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `nf-zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, CheckFailed, OSError) as error:
        return fail(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(UserError('too little memory for this; take smaller batches, smaller images or a smaller network'))
    except KeyboardInterrupt:
        say('nf-zoo: interrupted', sys.stderr)
        return 130
