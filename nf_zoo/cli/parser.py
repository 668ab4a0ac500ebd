"""The argument parser of all commands, and the options that several of them have."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from ..errors import UserError, nearest

NAME: dict[str, Any] = dict(metavar='NAME', help='a model, NAME or NAME.TAG (`nf-zoo list` shows them)')
JSON: dict[str, Any] = dict(action='store_true', help='print JSON')

Add = Callable[..., Any]  # a parser's add_argument


class Command(NamedTuple):
    """A subcommand. ``options`` adds its options to a parser; without it the command reads its arguments itself."""

    text: str  # one line of help
    example: str
    options: Callable[[Add], None] | None
    run: Callable[..., int | None]  # takes the parsed arguments, returns the exit code, None for 0


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises its errors as `UserError`, with the nearest option for an unknown one."""

    def error(self, message: str) -> NoReturn:
        hint = ''
        if message.startswith('unrecognized arguments: --'):
            hint = nearest(message.split()[2].partition('=')[0], self.options())
        raise UserError(f'{message}{hint} (`{self.prog} --help` shows the usage)')

    def options(self) -> set[str]:
        """Every option of this parser and of its subcommands."""
        found = {option for action in self._actions for option in action.option_strings}
        commands = (p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())
        return found.union(*(p.options() for p in commands if isinstance(p, Parser)))


def count(text: str) -> int:
    """The type of an option that takes a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
