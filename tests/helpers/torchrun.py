"""Several processes of one command, started by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def torchrun(*arguments: str, processes: int = 2, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, 'PYTHONPATH': f'{HERE.parents[1]}{os.pathsep}{HERE}', 'PYTHONWARNINGS': 'error'}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    with subprocess.Popen([*command, *arguments], env=env, stdout=-1, stderr=-1, text=True) as agent:
        try:
            out, error = agent.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            agent.terminate()  # torchrun then ends its processes; killed, it would leave them behind
            raise
    found = subprocess.CompletedProcess(command, agent.returncode, out, error)
    assert not check or found.returncode == 0, found.stderr
    return found
