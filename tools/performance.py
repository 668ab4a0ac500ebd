"""Tables and pictures of speed and memory from results/bench/*.json, which `nf-zoo bench ... --json` writes, and from
results/gpu/gpu.json, which tools/gpu.sh writes.
"""

import json
import re
from pathlib import Path
from typing import Any

from nf_zoo.bench.measure import BenchRow
from nf_zoo.bench.output import describe, draw_bars

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / 'results' / 'bench'
GPU = ROOT / 'results' / 'gpu' / 'gpu.json'
DIGITS = {'ms': 1, 's': 2, 'MiB': 1, '': 0}


def measured(name: str) -> list[dict[str, Any]]:
    """The JSON files of this name, NAME.json first, then NAME_*.json: each is one run on some of the networks."""
    return [json.loads(path.read_text(encoding='utf-8')) for path in sorted(BENCH.glob(f'{name}[._]*json'))]


def table(name: str) -> list[str]:
    """All rows of the files of this name, below their commands and machines."""
    return [line for found in measured(name) for line in ['', *_table(found)]][1:]


def _heading(found: dict[str, Any], command: str) -> list[str]:
    """By what, when and where it was measured."""
    machine = found['machine']
    versions = ', '.join(f'{key} {machine[key]}' for key in ('python', 'torch', 'timm', 'cuda') if key in machine)
    return [f'`{command}`, {found["date"]}: {machine["hardware"]}, {versions}.', '']


def _table(found: dict[str, Any]) -> list[str]:
    lines = [
        *_heading(found, found['command']),
        '| what | peer | ratio | middle half | measured | peer | n |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in found['rows']:
        low, high = row['ratio_quartiles']
        half = f'{low:.3f} to {high:.3f}' if row['n'] > 1 else ''
        values = [f'{row[key]:.{DIGITS.get(row["unit"], 2)}f} {row["unit"]}' for key in ('value', 'peer_value')]
        cells = [row['what'], row['peer'], f'**{row["ratio"]:.3f}**', half, *values, str(row['n'])]
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def gpu(part: str) -> list[str]:
    """The measurements of a GPU: ``part`` is 'compiled' or 'steps', of training, or 'profile', of kernels."""
    found = json.loads(GPU.read_text(encoding='utf-8'))
    lines = _kernels(found[part][0]) if part == 'profile' else _steps(found[part])
    return [*_heading(found, 'tools/gpu.sh'), *lines]


def _steps(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        '| network | batch | step | middle half | images/s | throughput, of BN | activations | of BN | n |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        low, high = row['step_ms_quartiles']
        lines.append(
            f'| {row["name"]} | {row["batch"]} | {row["step_ms"]:.1f} ms | {low:.1f} to {high:.1f} '
            f'| {row["images_per_second"]:,.0f} | **{row["throughput_of_peer"]:.3f}** '
            f'| {row["activations_mib"]:,.0f} MiB | **{row["activations_of_peer"]:.3f}** | {len(row["step_ms_all"])} |'
        )
    return lines


def _kernels(profile: dict[str, Any]) -> list[str]:
    """The eight largest kernels."""
    return [
        '| kernel | ms a step | share | calls |',
        '|---|---|---|---|',
        *(
            f'| `{_kernel(kernel["name"])}` | {kernel["ms"]:.1f} | {kernel["share"]:.1%} | {kernel["calls"]} |'
            for kernel in profile['kernels'][:8]
        ),
        f'| all | {profile["total_ms"]:.1f} | | |',
    ]


def _kernel(name: str) -> str:
    """The name of a kernel without its types and arguments; of an elementwise one, with its function."""
    found = re.search(r'([a-zA-Z0-9_]+)(?:<|\()', name.removeprefix('void ').replace('(anonymous namespace)', ''))
    short = found.group(1) if found else name
    functor = re.search(r'([A-Za-z]+Functor|launch_[a-z_]+|ReduceOp)', name)
    return f'{short}, {functor.group(1)}' if functor else short


def _beside_bn(run: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """Network -> its row beside batch normalization."""
    return {row['network']: row for row in run['rows'] if part in row['what'] and row['peer'].startswith('BN')}


def summary() -> list[str]:
    """What a training step keeps and takes beside timm's ResNet-50, for the README."""
    lines = [
        "| beside timm's ResNet-50 | EUNNet-50 | NF-ResNet-50 | Fixup-50 | weight norm-50 |",
        '|---|---|---|---|---|',
    ]
    names = ('eunnet50', 'nf_resnet50', 'fixup_resnet50', 'wn_resnet50')
    for file, part, title in (
        ('memory', 'kept for backward', 'memory kept for backward'),
        ('training', 'training step', 'time of a training step'),
    ):
        runs = [(run, _beside_bn(run, part)) for run in measured(file)]
        runs = [(run, rows) for run, rows in runs if rows.keys() >= set(names)]
        if len(runs) > 1:
            title += ', ' + ' / '.join(_short(run['machine']['hardware']) for run, _ in runs)
        ratios = (' / '.join(f'{rows[name]["ratio"]:.2f}' for _, rows in runs) for name in names)
        lines.append(f'| {title} | {" | ".join(ratios)} |')
    return lines


def _short(hardware: str) -> str:
    """The maker and the name of a processor."""
    return ' '.join(hardware.partition(',')[0].replace('(R)', '').split()[:2])


def draw() -> None:
    """Write docs/figures/performance_*.svg: the ratios to batch normalization of memory and of a step's time."""
    for name, part, title in (
        ('memory', 'kept for backward', 'Memory kept for backward, beside batch normalization'),
        ('training', 'training step', 'Time of a training step, beside batch normalization'),
    ):
        runs = measured(name)
        found: dict[str, dict[str, Any]] = {}
        for run in reversed(runs):
            found |= _beside_bn(run, part)  # of a network that was measured twice, the first run is drawn
        rows = [
            BenchRow(network, row['peer'], row['values'], row['peer_values'], row['unit'], network)
            for network, row in found.items()
        ]
        draw_bars(ROOT / 'docs' / 'figures' / f'performance_{name}.svg', title, describe(runs[0]['machine']), rows)
