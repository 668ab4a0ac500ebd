"""The programs of export/ against a program that does the same in PyTorch.

Each program runs with one picture and with several. The two times give the time to the first prediction and the time of
one more picture: decoding, preparation and the network. PyTorch and the browser report the time of each prediction
themselves, because their first prediction takes so long that the difference of two runs would be noise.
"""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from .measure import BenchRow

KITS = Path(__file__).parents[2] / 'export'
PICTURES = 9

# Seconds from the start to the first prediction, and to the last one.
Program = Callable[[Sequence[Path]], tuple[float, float]]

_EAGER = """
import sys, time
from nf_zoo.analysis.inputs import open_network
from nf_zoo.inference.predict import predict
from safetensors.torch import load_file
name, weights, *images = sys.argv[1:]
model = open_network(name)
model.load_state_dict(load_file(weights))
for image in images:
    predict(model.eval(), [image])
    print(time.time())
"""


def bench_kits(
    name: str, weights: Path, onnx: Path, torchscript: Path, folder: Path, rounds: int = 3
) -> list[BenchRow]:
    """Measure each kit whose runtime is installed. The kits are in a checkout alone.

    Args:
        name: The model.
        weights: Its weights (safetensors).
        onnx: Its ONNX file.
        torchscript: Its TorchScript file.
        folder: An empty folder for the pictures, the page and what is compiled.
        rounds: Measurements that count.
    """
    programs: dict[str, Program] = {'PyTorch eager': partial(_eager, name, weights)}
    if (KITS / 'python').is_dir():
        programs['python'] = _command(sys.executable, KITS / 'python' / 'classify.py', onnx)
    if shutil.which('node') and (KITS / 'node' / 'node_modules').is_dir():
        programs['node'] = _command('node', KITS / 'node' / 'classify.js', onnx)
    if shutil.which('chromium') and shutil.which('node') and (KITS / 'browser' / 'node_modules').is_dir():
        site = folder / 'site'
        site.mkdir()
        for network in ('folded', 'unfolded'):
            (site / f'{network}.onnx').symlink_to(onnx)
        programs['browser'] = partial(_browser, site)
    if shutil.which('cmake') and (KITS / 'cpp').is_dir():
        build = folder / 'cpp'
        python = f'-DPython3_EXECUTABLE={sys.executable}'
        steps = [['cmake', '-S', KITS / 'cpp', '-B', build, python], ['cmake', '--build', build]]
        if not any(subprocess.run(list(map(str, step)), capture_output=True).returncode for step in steps):
            programs['cpp'] = _command(build / 'classify', torchscript)
    pictures = [folder / f'{i}.png' for i in range(PICTURES)]
    rng = np.random.default_rng(0)
    for path in pictures:
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((320, 240), Image.Resampling.BICUBIC).save(path)
    firsts: dict[str, list[float]] = {program: [] for program in programs}
    nexts: dict[str, list[float]] = {program: [] for program in programs}
    for count in range(rounds + 1):
        for program, run in programs.items():
            first, last = run(pictures)
            if count:
                firsts[program].append(1e3 * first)
                nexts[program].append(1e3 * (last - first) / (PICTURES - 1))
    rows = []
    peer = 'PyTorch eager'
    for program in list(programs)[1:]:
        for what, times in (('start to first prediction', firsts), ('one more picture', nexts)):
            rows.append(BenchRow(f'{program} kit, {name}: {what}', peer, times[program], times[peer], 'ms', name))
    return rows


def _eager(name: str, weights: Path, pictures: Sequence[Path]) -> tuple[float, float]:
    command = [sys.executable, '-c', _EAGER, name, *map(str, (weights, *pictures))]
    start = time.time()
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    answers = [float(line) - start for line in run.stdout.split()]
    return answers[0], answers[-1]


def _command(*command: object) -> Program:
    def run(pictures: Sequence[Path]) -> tuple[float, float]:
        return _seconds([*command, pictures[0]]), _seconds([*command, *pictures])

    return run


def _seconds(command: Sequence[object]) -> float:
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return time.perf_counter() - start


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Copy the browser kit's page into ``site``, where its networks are, serve it, and yield its address."""
    kit = KITS / 'browser'
    ignored = shutil.ignore_patterns('node_modules', '*.onnx')
    shutil.copytree(kit, site, ignore=ignored, dirs_exist_ok=True)
    if not (site / 'node_modules').exists():
        (site / 'node_modules').symlink_to(kit / 'node_modules')
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(_Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


def _browser(site: Path, pictures: Sequence[Path]) -> tuple[float, float]:
    """Time the page from its opening; the browser runs already."""
    with served(site) as page:
        command = ['node', KITS / 'browser' / 'time.js', page, *pictures]
        run = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    first, last = json.loads(run.stdout)
    return first, last
