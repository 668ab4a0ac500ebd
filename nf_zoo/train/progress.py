"""What a run shows while it trains, and how it is stopped."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tqdm import tqdm


class Interrupted(KeyboardInterrupt):
    """The run in ``folder`` was stopped by Ctrl-C or SIGTERM after its checkpoint was written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f'stopped; everything is saved in {folder}: repeat the command with --resume to continue')


class StopSignal:
    """While entered, Ctrl-C and SIGTERM set ``asked``; a second Ctrl-C interrupts at once."""

    asked = False

    def __enter__(self) -> 'StopSignal':
        self.previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


class Waiting:
    """Iterates over ``batches``, and counts the ``seconds`` of waiting for all but the first, when a loader starts."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches, self.seconds, self.started = batches, 0.0, False

    def __iter__(self) -> 'Waiting':
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        batch = next(self.batches)
        if self.started:
            self.seconds += time.perf_counter() - began
        self.started = True
        return batch


class Progress:
    """Shows the updates of one epoch: loss, images a second, and the share of the time spent waiting for the loader.

    It is a progress bar, or lines of the log.
    """

    def __init__(self, title: str, start: int, total: int, log: Callable[[str], None], bar: bool | None) -> None:
        self.title, self.total, self.log = title, total, log
        shown = sys.stderr.isatty() if bar is None else bar
        self.bar = (
            tqdm(desc=title, initial=start, total=total, leave=False, unit='step', mininterval=0) if shown else None
        )

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def report(self, done: int, loss: float, rate: float, wait: float) -> None:
        """Show ``done`` updates, the mean ``loss``, ``rate`` in images a second, and ``wait``, a share of the time."""
        text = f'loss {loss:.4f}, {rate:.0f} images/s, loader {wait:.0%}'
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.bar.n)
        elif done < self.total:
            self.log(f'{self.title}: update {done}/{self.total}, {text}')
