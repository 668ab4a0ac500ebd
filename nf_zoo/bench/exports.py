"""Exported networks against their peers: nodes, bytes, start-up and latency; and the programs of export/.

The peers: "timm nf" is timm's ONNX export of its nf_resnet50, "BN" timm's export of its resnet50, "floor" the same
network without normalisation, "eager" the unfolded network in PyTorch.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import nfnet
from torch import Tensor, nn

from ..errors import UserError, extra
from ..export import ExportReport, export_aoti, export_onnx, export_pt2, export_torchscript
from ..export.survey import randomize
from ..folding.network import fold
from .kits import bench_kits
from .measure import Advance, BenchRow, floor_of, interleaved

Run = Callable[[Tensor], object]
NF, EUN = 'nf_resnet50', 'eunnet50'
FORMATS: dict[str, Callable[..., ExportReport]] = {
    'ONNX': export_onnx,
    'TorchScript': export_torchscript,
    'pt2': export_pt2,
    'AOTInductor': export_aoti,
}


def bench_export(
    rounds: int = 11,
    img_size: int = 224,
    formats: Sequence[str] = tuple(FORMATS),
    batch_size: int | None = None,
    advance: Advance = lambda: None,
) -> list[BenchRow]:
    """Measure nf_resnet50 and eunnet50, folded, in every format.

    With one thread (``OMP_NUM_THREADS=1``) processor time is measured, because other programs disturb it little.

    Args:
        rounds: Measurements that count.
        img_size: Height and width of the images in pixels.
        formats: Keys of `FORMATS`.
        batch_size: Images of a prediction; None for 1 and then 8.
        advance: Called after each measurement.

    Raises:
        UserError: ONNX Runtime is missing.
    """
    extra('onnxruntime', 'export')
    with tempfile.TemporaryDirectory() as folder, _no_warnings():
        return _rows(
            Path(folder), rounds, (3, img_size, img_size), formats, [batch_size] if batch_size else (1, 8), advance
        )


def _rows(
    folder: Path,
    rounds: int,
    shape: tuple[int, int, int],
    formats: Sequence[str],
    batch_sizes: Sequence[int],
    advance: Advance,
) -> list[BenchRow]:
    models = {NF: timm.create_model(NF).eval(), EUN: timm.create_model(EUN).eval()}
    for model in models.values():
        randomize(model)
    rows: list[BenchRow] = []
    files: dict[str, Path] = {}
    reports: dict[str, ExportReport] = {}
    for name, model in models.items():
        for format in formats:
            path = folder / f'{name} {format}.pt2'  # AOTInductor accepts no other suffix; the other formats accept any
            try:
                reports[f'{name} {format}'] = FORMATS[format](model, path, input_size=shape)
                files[f'{name} {format}'] = path
            except UserError:  # no compiler
                if format != 'AOTInductor':
                    raise
    files['floor'] = folder / 'floor.onnx'
    export_onnx(floor_of(fold(models[EUN])), files['floor'], fold=False, input_size=shape)
    for name, peer in (('timm nf', nfnet.nf_resnet50()), ('BN', timm.create_model('resnet50'))):
        files[name] = folder / f'{name}.onnx'
        _timm_export(peer.eval(), files[name], shape)

    mine = f'{NF} ONNX'
    if 'TorchScript' in formats:
        for name, model in models.items():
            kits = folder / f'{name} kits'
            kits.mkdir()
            safetensors.torch.save_file(model.state_dict(), kits / 'weights')
            rows += bench_kits(name, kits / 'weights', files[f'{name} ONNX'], files[f'{name} TorchScript'], kits)
    nodes, left = {}, {}
    for name in (mine, 'timm nf', 'BN'):
        nodes[name], left[name] = _nodes(files[name], folder)
    for peer_name in ('timm nf', 'BN'):
        rows.append(BenchRow(f'{mine}: nodes', peer_name, [nodes[mine]], [nodes[peer_name]], '', NF))
        left_over = [left[mine]], [left[peer_name]]
        rows.append(BenchRow(f'{mine}: nodes after ONNX Runtime', peer_name, *left_over, '', NF))
    size = {name: path.stat().st_size / 2**20 for name, path in files.items()}
    rows += [BenchRow(f'{mine}: file', peer, [size[mine]], [size[peer]], 'MiB', NF) for peer in ('timm nf', 'BN')]

    start = {name: _start_up(name, path, torch.randn(1, *shape)) for name, path in files.items()}
    peers = [(mine, 'timm nf'), (mine, 'BN'), (f'{EUN} ONNX', 'floor')]
    rows += [
        BenchRow(f'{name}: start-up', peer, start[name], start[peer], 'ms', name.split()[0]) for name, peer in peers
    ]
    weights = {name: sum(p.nbytes for p in model.parameters()) / 2**20 for name, model in models.items()}
    for name, report in reports.items():
        network = name.split()[0]
        errors = [1e6 * report.max_rel_diff], [1e6 * report.tolerance]
        rows.append(BenchRow(f'{name}: largest difference', 'allowed', *errors, 'e-6', network))
        rows.append(BenchRow(f'{name}: file', 'weights', [size[name]], [weights[network]], 'MiB', network))
        rows.append(BenchRow(f'{name}: start-up', f'{NF} ONNX', start[name], start[mine], 'ms', network))

    runs: dict[str, Run] = {f'{name} eager': model for name, model in models.items()}
    runs |= {name: _load(name, path) for name, path in files.items()}
    for batch in batch_sizes:
        x = torch.randn(batch, *shape)
        calls = {name: _call(run, x) for name, run in runs.items()}
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        with torch.inference_mode():
            times = interleaved(calls, rounds, clock, warm=True, advance=advance)
        found = peers + [(name, f'{name.split()[0]} eager') for name in reports]
        rows += [
            BenchRow(f'{name}: latency, batch {batch}', peer, times[name], times[peer], 'ms', name.split()[0])
            for name, peer in found
        ]
    return rows


def _timm_export(model: nn.Module, path: Path, shape: tuple[int, int, int]) -> None:
    from timm.utils.onnx import onnx_export

    onnx_export(model, str(path), torch.randn(2, *shape), check=False, input_names=['input'], output_names=['output'])


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads of a session spin for a while, and would slow down the next session.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    return options


def _nodes(path: Path, folder: Path) -> tuple[int, int]:
    """Nodes of a file, and nodes after ONNX Runtime has optimised it."""
    import onnx
    import onnxruntime

    options = _options()
    options.optimized_model_filepath = str(folder / 'optimised.onnx')
    onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    before, after = (onnx.load(file).graph.node for file in (path, folder / 'optimised.onnx'))
    return len(before), len(after)


def _load(name: str, path: Path) -> Run:
    if name.endswith('TorchScript'):
        return torch.jit.load(path)
    if name.endswith('pt2'):
        return torch.export.load(path).module()
    if name.endswith('AOTInductor'):
        return torch._inductor.aoti_load_package(str(path))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, _options(), providers=['CPUExecutionProvider'])
    return lambda x: session.run(None, {'input': x.numpy()})


def _start_up(name: str, path: Path, x: Tensor) -> list[float]:
    """Milliseconds from the file to the first prediction, three times."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            _load(name, path)(x)
        found.append(1e3 * (time.perf_counter() - start))
    return found


def _call(run: Run, x: Tensor) -> Callable[[], object]:
    return lambda: run(x)


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TorchScript and timm's exporter are deprecated upstream
        yield
