"""Python scripts in processes of their own that needn't import PyTorch: a process that has it is forked for each."""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT = 240.0  # seconds
_context: Any = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['nf_zoo.cli.main', 'nf_zoo.train.engine', 'timm', 'torchvision.datasets'])


def run_forked(script: Path, *arguments: str, limit: float = LIMIT) -> str:
    """What ``script`` writes to standard output. It is killed after ``limit`` seconds."""
    return ranks_forked(script, *arguments, processes=1, limit=limit).stdout


def ranks_forked(
    script: Path, *arguments: str, processes: int = 2, check: bool = True, limit: float = LIMIT
) -> subprocess.CompletedProcess[str]:
    """``script`` in several processes that find each other, as torchrun starts them, but for its watching over them.

    The return code is that of the first process that failed. Warnings are errors.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    command = [str(script), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / name for name in ('out', 'error')]
        started = []
        for rank in range(processes):
            env = {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(processes)}
            env |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
            started.append(_context.Process(target=_run, args=(command, dict(os.environ) | env, places)))
            started[-1].start()
        for process in started:
            process.join(limit)
        slow = [process for process in started if process.is_alive()]
        for process in slow:
            process.kill()
        out, error = (place.read_text() if place.exists() else '' for place in places)
    code = next((process.exitcode for process in started if process.exitcode), 0)
    assert not slow, f'{script.name} ran for {limit} s: {error}'
    assert not check or code == 0, error
    return subprocess.CompletedProcess(command, code, out, error)


def _run(command: list[str], env: dict[str, str], places: list[Path]) -> None:
    for number, place in enumerate(places, start=1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    warnings.simplefilter('error')
    try:
        runpy.run_path(command[0], run_name='__main__')
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
