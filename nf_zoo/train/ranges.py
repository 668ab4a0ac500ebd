"""What values the keys of a recipe may have: stated once, checked before anything is built, shown by ``--help``."""

import math
from dataclasses import dataclass
from typing import Any

from ..errors import nearest


@dataclass(frozen=True)
class Range:
    """The allowed values of one key; for a list or a mapping, those of each item.

    ``least`` and ``most`` belong to the range, ``above`` and ``below`` don't. ``lengths`` are the allowed numbers of
    items, ``rising`` items never fall, and ``off`` says that 0 turns something off. null is allowed by a key's type.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    rising: bool = False
    off: bool = False

    def __str__(self) -> str:
        """The range in words, such as ``0 to 1`` or ``2 numbers, each more than 0``."""
        text = self._of_one()
        if self.lengths:
            count = ' or '.join(map(str, self.lengths))
            text = f'{count} numbers' + (f', each {text}' if text else '')
        return text + (', never falling' if self.rising else '') + ('; 0 is off' if self.off else '')

    def _of_one(self) -> str:
        if self.choices:
            return ', '.join(choice or "''" for choice in self.choices)
        if self.least is not None and self.most is not None:
            return f'{_number(self.least)} to {_number(self.most)}'
        limits = {'at least': self.least, 'more than': self.above, 'at most': self.most, 'less than': self.below}
        return ', '.join(f'{words} {_number(limit)}' for words, limit in limits.items() if limit is not None)

    def problem(self, key: str, value: Any) -> str | None:
        """What is wrong with ``value``, which has the right type, or None."""
        if value is None:
            return None
        if self.choices:
            if value in self.choices:
                return None
            return f'unknown {key} {value!r} (known: {self._of_one()}){nearest(value, self.choices)}'
        items = value if isinstance(value, tuple) else [*value, *value.values()] if isinstance(value, dict) else [value]
        numbers = [item for item in items if isinstance(item, (int, float))]
        wrong = (
            (bool(self.lengths) and len(items) not in self.lengths)
            or (self.rising and list(items) != sorted(items))
            or not all(self._holds(number) for number in numbers)
        )
        return f'{key} is {_short(value)}, expected {self}' if wrong else None

    def _holds(self, number: float) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


def is_finite(value: Any) -> bool:
    """Whether all numbers in ``value``, at any depth, are finite."""
    if isinstance(value, dict):
        return all(is_finite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _number(limit: float) -> str:
    return f'{limit:,}' if isinstance(limit, int) or abs(limit) >= 1000 else f'{limit:g}'


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) < 80 else f'{text[:76]} ...'


ANY = Range()
SHARE = Range(least=0, most=1)  # a probability
BELOW_1 = Range(least=0, below=1)
POSITIVE = Range(above=0, most=1_000_000_000_000)
COUNT = Range(least=1, most=1_000_000_000)
COUNT_0 = Range(least=0, most=1_000_000_000)
SIDE = Range(least=1, most=4096)  # of an image in pixels
