"""The two kinds of failure that a user sees as one line, and helpers that write such lines."""

import importlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from .text import clean


class UserError(ValueError):
    """Bad input. The message is one line that says what was wrong and what to do; the command line exits with 2."""


class CheckFailed(RuntimeError):
    """A verification that did not hold (a hash, a parity, a metric); the command line exits with 1."""


def one_line(error: BaseException) -> str:
    """The message of any exception as one `clean` line, with the file's name where the operating system refused it."""
    if isinstance(error, OSError) and error.strerror:
        text = f'{error.filename}: {error.strerror}' if error.filename else error.strerror
    else:
        text = str(error)
    return clean(text) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or the GPU has too little memory. torch raises a plain RuntimeError on the CPU."""
    words = ("can't allocate memory", 'not enough memory', 'out of memory', 'Storage size calculation overflowed')
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def refused(said: str) -> Iterator[None]:
    """Raise what a network raises for input that it can't take as a `UserError` that begins with ``said``."""
    try:
        yield
    except (UserError, CheckFailed):
        raise
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f'{said}: {one_line(error)[:300]}') from None


def extra(module: str, name: str) -> Any:
    """Import ``module``, which belongs to the package's extra ``name``. Raises `UserError` where it is missing."""
    library = module.partition('.')[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"this needs {library}, which is not installed: pip install 'nf-zoo[{name}]'") from None
    except ImportError as error:
        raise UserError(f'{library} is installed but cannot be imported: {one_line(error)}') from None


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the best candidate, or an empty string when none is close.

    A candidate that begins with ``name`` comes first, then one with a typing error, then one that consists of the
    initials of ``name`` (``--lr`` for ``--learning-rate``), then the most similar one.
    """
    names = list(candidates)
    longer = sorted((c for c in names if c.startswith(name)), key=len) if len(name.strip('-')) > 2 else []
    initials = ''.join(word[0] for word in re.split('[-_ ]+', name) if word)
    short = [c for c in names if len(initials) > 1 and c.strip('-') == initials]
    close = [get_close_matches(name, names, n=1, cutoff=cutoff) for cutoff in (0.85, 0.6)]
    found = [*longer, *close[0], *short, *close[1]]
    return f"; did you mean '{found[0]}'?" if found else ''
