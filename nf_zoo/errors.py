"""The two kinds of failure that a user sees as one line: bad input, and a check that did not hold."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message is one line that says what was wrong and what to do; the command line exits with 2."""


class CheckFailed(RuntimeError):
    """A verification that did not hold (a hash, a parity, a metric); the command line exits with 1."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest candidate, or an empty string when none is close."""
    matches = get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ''
