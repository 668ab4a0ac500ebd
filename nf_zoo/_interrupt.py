"""Ctrl-C while the command is still importing torch and timm, which takes seconds: one line instead of a traceback.

Importing this module installs the handler, but only in a process that runs the command; `main` takes it away again.
It is the package's first import, because nothing of the command runs before the package itself has been imported.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def _is_command() -> bool:
    """Whether this process is `nf-zoo` or `python -m nf_zoo`; the latter isn't in sys.argv yet while it is imported."""
    if sys.argv[:1] == ['-m']:
        module = sys.orig_argv[sys.orig_argv.index('-m') + 1] if '-m' in sys.orig_argv else ''
        return module.partition('.')[0] == __package__
    return bool(sys.argv) and Path(sys.argv[0]).stem == 'nf-zoo'


def _stop(number: int, frame: FrameType | None) -> None:
    # A KeyboardInterrupt raised within an import may come out as an ImportError, or not at all.
    if not int(os.environ.get('RANK') or 0):  # of several processes, one says it
        os.write(2, b'nf-zoo: interrupted\n')
    os._exit(130)


def restore() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, as usual."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)
