"""tools/gpu.py, as far as a CPU goes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tools import gpu

SMALL = ['--device', 'cpu', '--batch-size', '2', '--img-size', '32']


def test_networks_take_turns_and_one_that_fails_says_so(tmp_path: Path) -> None:
    file = tmp_path / 'gpu.json'
    names = ['resnet18', 'eunnet18', 'nosuchnet']
    assert gpu.main(['steps', *SMALL, '--rounds', '1', '--json', str(file), '--model', *names]) == 0
    assert gpu.main(['profile', *SMALL, '--json', str(file), '--model', 'eunnet18']) == 0
    found = json.loads(file.read_text())
    assert set(found) == {'date', 'machine', 'steps', 'profile'} and found['machine']['torch']
    assert found['machine']['threads'] > 0
    first, second, failed = found['steps']
    assert [row['name'] for row in found['steps']] == names
    assert first['images_per_second'] > 0 and second['step_ms'] > 0 and 'nosuchnet' in failed['error']
    assert first['activations_mib'] > 0 and second['activations_mib'] > 0
    (profile,) = found['profile']
    shares = [kernel['share'] for kernel in profile['kernels']]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-9


def test_when_the_time_is_over_the_rest_is_named(tmp_path: Path) -> None:
    file = tmp_path / 'gpu.json'
    names = ['resnet18', 'eunnet18']
    assert gpu.main(['steps', *SMALL, '--seconds', '0', '--json', str(file), '--model', *names]) == 0
    first, second = json.loads(file.read_text())['steps']
    assert len(first['step_ms_all']) == 1 and second['error'] == 'no time was left'


def test_an_old_timm_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'timm.py').write_text("__version__ = '1.0.29'\n")
    run = subprocess.run(
        ['bash', str(Path(gpu.__file__).with_name('gpu.sh')), str(tmp_path / 'out')],
        env={**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stderr.count('\n') == 1 and 'timm 1.0.29 is too old' in run.stderr
