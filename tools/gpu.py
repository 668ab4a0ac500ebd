"""Training steps on a GPU, beside their peers: throughput, memory, and the kernels that take the time.

    python -m tools.gpu steps|compiled|profile|warm --json FILE [--model NAME ...]

``steps``: every network in its eager form. ``compiled``: the same by torch.compile. Each stands against timm's
resnet50 in the same form; networks take turns, medians count. ``profile``: the largest kernels of one network.
``warm``: compile a network and throw it away, so that the compiler's cache has it. What is measured, and how, is that
of `nf-zoo bench training --dtype bf16` and `nf-zoo bench memory --dtype bf16`, but a network that fails doesn't keep
the others from being measured, and there is a limit of time.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import nf_zoo  # noqa: F401
from nf_zoo.bench.measure import interleaved, quartiles
from nf_zoo.bench.memory import peak_bytes
from nf_zoo.bench.output import machine
from nf_zoo.bench.peers import open_peers
from nf_zoo.bench.settings import Settings, Step
from nf_zoo.files import write_whole

PEER = 'resnet50'
# The most important ones first: a limit of time may cut the list.
NETWORKS = (
    'resnet50 eunnet50 nf_resnet50 wn_resnet50 skipinit_resnet50 fixup_resnet50 rescalenet50 idshort_resnet50 '
    'learnscalar_resnet50 floor resnet50_gn convshort_resnet50'
).split()


def build(name: str) -> nn.Module:
    """``floor``: the ResNet-50 of plain convolutions, with EUNNet's shortcuts."""
    if name == 'floor':
        return open_peers('eunnet50', timm.create_model('eunnet50'), ['floor'])['floor']
    return timm.create_model(name)


def measure(names: list[str], settings: Settings, seconds: float = math.inf) -> list[dict[str, Any]]:
    """A row for each network that runs; one that fails says why instead. No round begins after ``seconds``."""
    start = time.perf_counter()
    batch, device = settings.batch_size or 8, settings.device
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        began = time.perf_counter()
        row = rows[name] = {'name': name, 'compiled': settings.compiled, 'batch': batch, 'size': settings.img_size}
        if steps and began - start > seconds:
            row['error'] = 'no time was left'
            continue
        try:
            model = build(name)
            step = Step(model, *settings.images(model, batch), settings, keep=True)
            step()
            row['activations_mib'] = peak_bytes(step, device) / 2**20
            step.keep = False
            steps[name] = step
        except Exception as error:  # the others go on
            row['error'] = ' '.join(str(error).split())[:500]
        row['start_seconds'] = round(time.perf_counter() - began, 1)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(settings.rounds or 7):
        if number and time.perf_counter() - start > seconds:
            break
        for name, found in interleaved(dict(steps), 1, device=device).items():
            times[name] += found
    for name, found in times.items():
        row = rows[name]
        low, middle, high = quartiles(found)
        row |= {'step_ms': middle, 'step_ms_quartiles': [low, high], 'step_ms_all': found}
        row['images_per_second'] = 1e3 * batch / middle
        peer = rows.get(PEER, {})
        if times.get(PEER):
            row['throughput_of_peer'] = quartiles(times[PEER]).median / middle
        if peer.get('activations_mib'):
            row['activations_of_peer'] = row['activations_mib'] / peer['activations_mib']
    return list(rows.values())


def profiled(name: str, settings: Settings, top: int = 30) -> dict[str, Any]:
    """Kernels of one step by their share of the device's time, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    device, model = settings.device, build(name)
    step = Step(model, *settings.images(model, settings.batch_size or 8), settings)
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
        'batch': settings.batch_size,
        'size': settings.img_size,
        'total_ms': total / 1e3,
        'kernels': [{'name': k, 'ms': t / 1e3, 'share': t / total, 'calls': n} for k, (t, n) in largest],
    }


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
    settings = Settings(
        batch_size=args.batch_size,
        img_size=args.img_size,
        device=torch.device(args.device),
        bfloat16=True,
        compiled=args.what in ('compiled', 'warm'),
        rounds=args.rounds,
    )
    if args.what == 'warm':
        for name in args.model or NETWORKS:
            model = build(name)
            Step(model, *settings.images(model, args.batch_size), settings)()
        return 0
    found: Any
    if args.what == 'profile':
        found = [profiled(name, settings) for name in args.model or ['eunnet50']]
        for row in found:
            print(f'{row["name"]}: {row["total_ms"]:.1f} ms in kernels')
            for kernel in row['kernels'][:15]:
                print(f'  {kernel["share"]:6.1%} {kernel["ms"]:8.2f} ms {kernel["calls"]:5d} x {kernel["name"][:110]}')
    else:
        found = measure(args.model or NETWORKS, settings, args.seconds)
        for row in found:
            print(_line(row))
    if args.json:
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        today = time.strftime('%Y-%m-%d')
        known |= {'date': today, 'machine': machine(settings.device), args.what: found}
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
