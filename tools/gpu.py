"""Training steps on a GPU, beside their peers: throughput, memory, and the kernels that take the time.

    python -m tools.gpu steps|compiled|profile|warm --json FILE [--model NAME ...]

``steps``: every network in its eager form. ``compiled``: some of them by torch.compile. Each stands against timm's
resnet50 in the same form; networks take turns, medians count. ``profile``: the largest kernels of one network.
``warm``: compile a network and throw it away, so that the compiler's cache has it. Parameters are in float32 and
channels_last, autocast computes in bfloat16.
"""

import argparse
import gc
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nf_zoo  # noqa: F401
from nf_zoo.bench.measure import floor_of
from nf_zoo.files import write_whole

PEER = 'resnet50'
NETWORKS = (
    'resnet50 eunnet50 floor nf_resnet50 fixup_resnet50 skipinit_resnet50 rescalenet50 wn_resnet50 convshort_resnet50 '
    'idshort_resnet50 resnet50_gn'
).split()
COMPILED = ['resnet50', 'eunnet50', 'nf_resnet50']
PER_ROUND = 3  # steps in a row; the first of them is not counted


def build(name: str, device: torch.device) -> nn.Module:
    """``floor``: eunnet50 with plain convolutions, so without normalisation."""
    model = floor_of(timm.create_model('eunnet50')) if name == 'floor' else timm.create_model(name)
    return model.train().to(device).to(memory_format=torch.channels_last)


class Step:
    """Forward, backward and an update of SGD on one batch."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, compiled: bool = False) -> None:
        self.model, self.x, self.y = model, x, y
        self.forward: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def __call__(self) -> None:
        with torch.autocast(self.x.device.type, torch.bfloat16):
            loss = F.cross_entropy(self.forward(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def kept(self) -> int:
        """Bytes of weights, gradients and momentum."""
        return sum(3 * p.numel() * p.element_size() for p in self.model.parameters())


def images(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    return x, torch.randint(0, 10, (batch,), device=device)


def milliseconds(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Of one of ``count`` steps in a row, on the device's own clock."""
    if device.type != 'cuda':
        began = time.perf_counter()
        for _ in range(count):
            step()
        return 1e3 * (time.perf_counter() - began) / count
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / count


def peak(step: Step, device: torch.device) -> float | None:
    """MiB that a step takes beyond weights, gradients and momentum; None where the device does not count them."""
    step()
    if device.type != 'cuda':
        return None
    gc.collect()
    torch.cuda.synchronize()
    gradients = sum(p.numel() * p.element_size() for p in step.model.parameters())
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before - gradients) / 2**20


def measure(
    names: list[str],
    batch: int,
    size: int,
    rounds: int,
    device: torch.device,
    compiled: bool = False,
    seconds: float = math.inf,
) -> list[dict[str, Any]]:
    """A row for each network that runs; one that fails says why instead. No round begins after ``seconds``."""
    start = time.perf_counter()
    x, y = images(batch, size, device)
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        began = time.perf_counter()
        row = rows[name] = {'name': name, 'compiled': compiled, 'batch': batch, 'size': size}
        try:
            step = Step(build(name, device), x, y, compiled)
            row['activations_mib'] = peak(step, device)
            steps[name] = step
        except Exception as error:  # the others go on
            row['error'] = ' '.join(str(error).split())[:500]
        row['start_seconds'] = round(time.perf_counter() - began, 1)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        if number and time.perf_counter() - start > seconds:
            break
        for name, step in steps.items():
            step()
            times[name].append(milliseconds(step, PER_ROUND - 1, device))
    for name, found in times.items():
        row = rows[name]
        row['step_ms'] = statistics.median(found)
        row['step_ms_all'] = found
        row['images_per_second'] = 1e3 * batch / row['step_ms']
        peer = rows.get(PEER, {})
        if times.get(PEER):
            row['throughput_of_peer'] = statistics.median(times[PEER]) / row['step_ms']
        if row['activations_mib'] and peer.get('activations_mib'):
            row['activations_of_peer'] = row['activations_mib'] / peer['activations_mib']
    return list(rows.values())


def profiled(name: str, batch: int, size: int, device: torch.device, top: int = 30) -> dict[str, Any]:
    """Kernels of one step by their share of the device's time, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    step = Step(build(name, device), *images(batch, size, device))
    step()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == 'cuda' else [])]
    with profile(activities=kinds) as found:
        step()
        if device.type == 'cuda':
            torch.cuda.synchronize()
    if device.type == 'cuda':
        kernels = [e for e in found.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
        spent = {e.key: (e.self_device_time_total, e.count) for e in kernels}
    else:
        spent = {e.key: (e.self_cpu_time_total, e.count) for e in found.key_averages()}
    total = sum(t for t, _ in spent.values()) or 1.0
    largest = sorted(spent.items(), key=lambda item: -item[1][0])[:top]
    return {
        'name': name,
        'batch': batch,
        'size': size,
        'total_ms': total / 1e3,
        'kernels': [{'name': k, 'ms': t / 1e3, 'share': t / total, 'calls': n} for k, (t, n) in largest],
    }


def machine(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {'python': platform.python_version(), 'torch': torch.__version__, 'timm': timm.__version__}
    if device.type == 'cuda':
        facts |= {
            'gpu': torch.cuda.get_device_name(),
            'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version(),
        }
    return facts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m tools.gpu', description='Training steps on a GPU, beside their peers.'
    )
    parser.add_argument('what', choices=('steps', 'compiled', 'profile', 'warm'))
    parser.add_argument('--json', type=Path, help='file to write; what it has of other parts stays')
    parser.add_argument('--model', nargs='+', help='networks, of timm or "floor"')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--batch-size', type=int, default=256)
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=math.inf, help='no round begins after so many')
    args = parser.parse_args(argv)
    device, sizes = torch.device(args.device), (args.batch_size, args.img_size)
    if args.what == 'warm':
        for name in args.model or COMPILED:
            Step(build(name, device), *images(*sizes, device), compiled=True)()
        return 0
    found: Any
    if args.what == 'profile':
        found = [profiled(name, *sizes, device) for name in args.model or ['eunnet50']]
        for row in found:
            print(f'{row["name"]}: {row["total_ms"]:.1f} ms in kernels')
            for kernel in row['kernels'][:15]:
                print(f'  {kernel["share"]:6.1%} {kernel["ms"]:8.2f} ms {kernel["calls"]:5d} x {kernel["name"][:110]}')
    else:
        compiled = args.what == 'compiled'
        names = args.model or (COMPILED if compiled else NETWORKS)
        found = measure(names, *sizes, args.rounds, device, compiled, args.seconds)
        for row in found:
            print(_line(row))
    if args.json:
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        known |= {'machine': machine(device), args.what: found}
        write_whole(args.json, (json.dumps(known, indent=1) + '\n').encode())
    return 0


def _line(row: dict[str, Any]) -> str:
    if 'error' in row:
        return f'{row["name"]:20} failed: {row["error"]}'
    parts = [f'{row["name"]:20}', f'{row["step_ms"]:8.1f} ms', f'{row["images_per_second"]:7.0f} images/s']
    if 'throughput_of_peer' in row:
        parts.append(f'{row["throughput_of_peer"]:.3f} x {PEER}')
    if row['activations_mib']:
        parts.append(f'activations {row["activations_mib"]:.0f} MiB')
    if 'activations_of_peer' in row:
        parts.append(f'{row["activations_of_peer"]:.3f} x {PEER}')
    return '  '.join(parts)


if __name__ == '__main__':
    raise SystemExit(main())
