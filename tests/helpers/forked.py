"""Processes of Python that needn't import PyTorch, which takes seconds: one that has it is forked for each of them."""

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

HERE = Path(__file__).parent
LIMIT = 240.0  # seconds
ANEW = ('huggingface_hub', 'timm', 'nf_zoo')
_context: Any = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['nf_zoo.cli.main', 'nf_zoo.train.engine', 'timm', 'torchvision.datasets'])


class Forked:
    """``python COMMAND``: a script, ``-m MODULE`` or ``-c CODE``, and its arguments. It leads a session of its own.

    A test whose point is the start of the interpreter, what an import does or what an exit leaves needs a real one.
    Leaving the context kills the process.

    Args:
        env: Its environment, by default that of this process. PYTHONPATH and PYTHONWARNINGS (an action) count.
        cwd: Its working directory.
        anew: It imports nf_zoo and timm again: from elsewhere, or because they read the HF_ variables while they are
            imported. That takes a second.
    """

    def __init__(
        self, *command: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, anew: bool = False
    ) -> None:
        self.command = command
        self._folder = tempfile.TemporaryDirectory()
        self._places = [Path(self._folder.name) / name for name in ('out', 'error')]
        for place in self._places:
            place.touch()
        given = dict(os.environ if env is None else env)
        self.process = _context.Process(target=_run, args=(command, given, cwd or Path.cwd(), anew, self._places))
        self.process.start()

    def __enter__(self) -> 'Forked':
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join()
        self._folder.cleanup()

    def said(self) -> tuple[str, str]:
        """What it has written so far to standard output and standard error."""
        out, error = (place.read_text() for place in self._places)
        return out, error

    def wait(self, limit: float = LIMIT) -> CompletedProcess[str]:
        """Wait for its end, which must come within ``limit`` seconds."""
        self.process.join(limit)
        out, error = self.said()
        assert not self.process.is_alive(), f'{self.command} ran for {limit} s: {error}'
        return CompletedProcess(self.command, self.process.exitcode, out, error)


def python(*command: str, check: bool = True, limit: float = LIMIT, **options: Any) -> CompletedProcess[str]:
    """A `Forked` process from its start to its end."""
    with Forked(*command, **options) as process:
        found = process.wait(limit)
    assert not check or found.returncode == 0, found.stderr
    return found


def ranks(script: Path, *arguments: str, processes: int = 2, check: bool = True) -> CompletedProcess[str]:
    """``script`` in several processes that find each other, as torchrun starts them, but for its watching over them.

    The return code is that of the first process that failed. Warnings are errors.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    command = [str(script), *arguments]
    env = {**os.environ, 'WORLD_SIZE': str(processes), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    env['PYTHONWARNINGS'] = 'error'
    with ExitStack() as stack:
        started = [
            stack.enter_context(Forked(*command, env={**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}))
            for rank in range(processes)
        ]
        ended = [process.wait() for process in started]
    out, error = (''.join(getattr(found, stream) for found in ended) for stream in ('stdout', 'stderr'))
    code = next((found.returncode for found in ended if found.returncode), 0)
    assert not check or code == 0, error
    return CompletedProcess(command, code, out, error)


def _run(command: tuple[str, ...], env: dict[str, str], cwd: Path, anew: bool, places: list[Path]) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # else workers of its loaders would come from a server too
    for number, place in enumerate(places, start=1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if command[0].startswith('-'):
        sys.path.insert(0, '')
    if 'PYTHONPATH' in env:
        sys.path[1:1] = env['PYTHONPATH'].split(os.pathsep)
    if 'PYTHONWARNINGS' in env:
        warnings.simplefilter(env['PYTHONWARNINGS'])  # type: ignore[arg-type]
    for name in [name for name in sys.modules if anew and name.partition('.')[0] in ANEW]:
        del sys.modules[name]
    try:
        if command[0] == '-c':
            sys.argv = ['-c', *command[2:]]
            exec(compile(command[1], '<string>', 'exec'), {'__name__': '__main__'})
        elif command[0] == '-m':
            sys.argv = list(command[1:])
            runpy.run_module(command[1], run_name='__main__', alter_sys=True)
        else:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name='__main__')
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
