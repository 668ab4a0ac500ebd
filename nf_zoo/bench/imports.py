"""How long `import nf_zoo` takes in a fresh process, beside `import timm`, which it needs."""

import os
import subprocess
import sys
import tempfile

from ..errors import UserError, one_line
from .measure import Advance, BenchRow

_CODE = """
import time
start = time.perf_counter()
import timm
middle = time.perf_counter()
import nf_zoo
print(middle - start, time.perf_counter() - middle)
"""


def bench_import(rounds: int = 7, advance: Advance = lambda: None) -> list[BenchRow]:
    """Milliseconds that `import nf_zoo` adds to `import timm`.

    The first process isn't counted: it compiles every module, as an installation does.

    Args:
        rounds: Processes that count.
        advance: Called after each of them.

    Raises:
        UserError: the import fails.
    """
    theirs, added = [], []
    with tempfile.TemporaryDirectory() as folder:
        environment = {key: value for key, value in os.environ.items() if key != 'PYTHONDONTWRITEBYTECODE'}
        environment['PYTHONPYCACHEPREFIX'] = folder
        for count in range(rounds + 1):
            command = [sys.executable, '-c', _CODE]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise UserError(f'import nf_zoo fails: {one_line(RuntimeError(done.stderr[-500:]))}')
            first, second = map(float, done.stdout.split())
            if count:
                theirs.append(1e3 * first)
                added.append(1e3 * second)
            advance()
    return [BenchRow('import nf_zoo, after timm', 'import timm', added, theirs, 'ms')]
