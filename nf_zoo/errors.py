"""The two kinds of failure that a user sees as one line: bad input, and a check that did not hold."""

from argparse import ArgumentParser
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn


class UserError(ValueError):
    """Bad input. The message is one line that says what was wrong and what to do; the command line exits with 2."""


class CheckFailed(RuntimeError):
    """A verification that did not hold (a hash, a parity, a metric); the command line exits with 1."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest candidate, or an empty string when none is close."""
    matches = get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ''


class Parser(ArgumentParser):
    """argparse with its errors in the same one line as all others."""

    def error(self, message: str) -> NoReturn:
        hint = ''
        if message.startswith('unrecognized arguments: --'):
            hint = nearest(message.split()[2].partition('=')[0], self.options())
        raise UserError(f'{message}{hint} (`{self.prog} --help` shows the usage)')

    def options(self) -> set[str]:
        """Every option of this parser and its subcommands."""
        found = {option for action in self._actions for option in action.option_strings}
        commands = (p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values())
        return found.union(*(p.options() for p in commands if isinstance(p, Parser)))
