"""What the commands share: the argument parser, types of options, and how results and errors are printed."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import CheckFailed, UserError, nearest, one_line
from ..text import say

NAME: dict[str, Any] = dict(metavar='NAME', help='NAME, NAME.TAG or the folder of a finished run')
JSON: dict[str, Any] = dict(action='store_true', help='print JSON')

Add = Callable[..., Any]  # a parser's add_argument
LONGEST = 1500  # letters of an error's line


class Command(NamedTuple):
    """A subcommand. ``options`` adds its options to a parser; without it the command reads its arguments itself."""

    text: str  # one line of help
    example: str
    options: Callable[[Add], None] | None
    run: Callable[..., int | None]  # takes the parsed arguments, returns the exit code, None for 0


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises its errors as `UserError`, with the nearest option for an unknown one."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        hint = ''
        if message.startswith('unrecognized arguments: --'):
            given = message.split()[2].partition('=')[0]
            hint = nearest(given, self.command().options())
        raise UserError(f'{message}{hint} (`{self.command().prog} --help` shows the usage)')

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, with timm's spelling too: ``--batch_size`` for ``--batch-size``."""
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(list(map(self._with_dashes, self.given)), namespace)

    def _with_dashes(self, arg: str) -> str:
        name, equals, value = arg.partition('=')
        dashed = name.replace('_', '-')
        known = name.startswith('--') and name not in self._option_string_actions
        return dashed + equals + value if known and dashed in self._option_string_actions else arg

    def command(self) -> 'Parser':
        """The parser of the subcommand that was given; this one without any."""
        commands = {k: v for a in self._actions if isinstance(a.choices, dict) for k, v in a.choices.items()}
        return next((commands[word] for word in self.given if word in commands), self)

    def options(self) -> set[str]:
        """The names of its options."""
        return {option for action in self._actions for option in action.option_strings}


def fail(error: Exception) -> int:
    """Say what went wrong on standard error, in one line, and return the exit code."""
    text = one_line(error)
    text = text if len(text) <= LONGEST else f'{text[:LONGEST]} ...'
    if 'huggingface_hub' in sys.modules:
        from ..hub.huggingface import redact

        text = redact(text)
    say(f'nf-zoo: error: {text}', sys.stderr)
    return 1 if isinstance(error, CheckFailed) else 2


def print_json(value: Any) -> None:
    """Print a value as JSON, which has no NaN and no infinity: null stands for them."""
    say(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def output_file(text: str) -> Path:
    """The type of an option that names a file to write."""
    if text in ('', '-'):
        raise argparse.ArgumentTypeError(f"'{text}' is no file name; standard output can't be written to, give a file")
    return Path(text)


def png_file(text: str) -> Path:
    """The type of an option that names a picture to write."""
    path = output_file(text)
    if path.suffix.lower() != '.png':
        raise argparse.ArgumentTypeError(f"'{text}' has to end with .png")
    return path


def limit(text: str) -> float:
    """The type of an option that takes a finite number, 0 or above."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 0 or above")
    return value


def count(text: str) -> int:
    """The type of an option that takes a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
