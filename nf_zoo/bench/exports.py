"""Exported networks beside their peers: nodes, bytes, start-up and latency; and the programs of export/.

A network's ONNX file stands beside that of each peer, and each of its formats beside PyTorch ("eager": the network as
it is, not folded). timm's own exporter writes the peers that are timm's.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..analysis.inputs import noise, open_network
from ..errors import UserError, extra
from ..export import ExportReport, export_aoti, export_onnx, export_pt2, export_torchscript
from ..export.survey import randomize
from ..net.network import ResNet
from .kits import bench_kits
from .measure import MIB, BenchRow, interleaved
from .peers import open_peers
from .settings import EAGER, Settings

Run = Callable[[Tensor], object]
FORMATS: dict[str, Callable[..., ExportReport]] = {
    'ONNX': export_onnx,
    'TorchScript': export_torchscript,
    'pt2': export_pt2,
    'AOTInductor': export_aoti,
}


def bench_export(
    names: Sequence[str],
    settings: Settings,
    formats: Sequence[str] = tuple(FORMATS),
) -> Iterator[BenchRow]:
    """Measure each network, folded, in every format.

    With one thread (``OMP_NUM_THREADS=1``) processor time is measured, because other programs disturb it little.

    Args:
        names: Networks.
        settings: Image and batch size, peers and rounds.
        formats: Keys of `FORMATS`. Without a compiler AOTInductor is left out.

    Raises:
        UserError: ONNX Runtime is missing, or a network or peer can't be exported.
    """
    extra('onnxruntime', 'export')
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            yield from _Exports(name, settings, formats, Path(folder)).rows()


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TorchScript and timm's exporter are deprecated upstream
        yield


class _Exports:
    """The files of one network and of its peers, in ``folder``."""

    @_no_warnings()
    def __init__(self, name: str, settings: Settings, formats: Sequence[str], folder: Path):
        self.name, self.settings, self.folder = name, settings, folder
        self.model = open_network(name)
        randomize(self.model)
        self.shape = tuple(self._images(1).shape[1:])
        kinds = [kind for kind in settings.peers if kind != EAGER]  # which every format has as its peer
        peers = open_peers(name, self.model, kinds)
        self.peers = list(peers)
        self.files: dict[str, Path] = {}
        self.reports: dict[str, ExportReport] = {}
        for format in dict.fromkeys(('ONNX', *formats)):
            path = folder / f'{format}.pt2'  # AOTInductor accepts no other suffix; the other formats accept any
            try:
                self.reports[format] = FORMATS[format](self.model, path, input_size=self.shape)
                self.files[format] = path
            except UserError:  # no compiler
                if format != 'AOTInductor':
                    raise
        for number, (label, peer) in enumerate(peers.items()):
            self.files[label] = folder / f'peer {number}.onnx'
            self._export_peer(peer.eval(), self.files[label])

    def _images(self, count: int) -> Tensor:
        return noise(self.model, count, self.settings.img_size)

    def _export_peer(self, peer: nn.Module, path: Path) -> None:
        if isinstance(peer, ResNet):
            export_onnx(peer, path, input_size=self.shape)
            return
        from timm.utils.onnx import onnx_export

        names = dict(input_names=['input'], output_names=['output'])
        onnx_export(peer, str(path), self._images(2), check=False, **names)

    def rows(self) -> Iterator[BenchRow]:
        """All measurements, each as soon as it is made."""
        yield from self._graphs()
        yield from self._start_ups()
        for batch in self.settings.predictions():
            yield from self._latencies(batch)
        if 'TorchScript' in self.files:
            weights, kits = self.folder / 'weights', self.folder / 'kits'
            kits.mkdir()
            safetensors.torch.save_file(self.model.state_dict(), weights)
            yield from bench_kits(self.name, weights, self.files['ONNX'], self.files['TorchScript'], kits)

    def _row(self, what: str, peer: str, values: Sequence[float], peer_values: Sequence[float], unit: str) -> BenchRow:
        return BenchRow(f'{self.name} {what}', peer, values, peer_values, unit, self.name)

    def _graphs(self) -> Iterator[BenchRow]:
        graphs = {label: _nodes(self.files[label], self.folder) for label in ('ONNX', *self.peers)}
        size = {label: path.stat().st_size / MIB for label, path in self.files.items()}
        for peer in self.peers:
            for what, nodes in graphs['ONNX'].items():
                yield self._row(f'ONNX: {what}', peer, [nodes], [graphs[peer][what]], '')
            yield self._row('ONNX: file', peer, [size['ONNX']], [size[peer]], 'MiB')
        weights = sum(parameter.nbytes for parameter in self.model.parameters()) / MIB
        for format, report in self.reports.items():
            errors = [1e6 * report.max_rel_diff], [1e6 * report.tolerance]
            yield self._row(f'{format}: largest difference', 'allowed', *errors, 'e-6')
            yield self._row(f'{format}: file', 'weights', [size[format]], [weights], 'MiB')

    def _start_ups(self) -> Iterator[BenchRow]:
        x = self._images(1)
        start = {label: _start_up(label, path, x) for label, path in self.files.items()}
        for peer in self.peers:
            yield self._row('ONNX: start-up', peer, start['ONNX'], start[peer], 'ms')
        for format in list(self.reports)[1:]:
            yield self._row(f'{format}: start-up', 'ONNX', start[format], start['ONNX'], 'ms')

    def _latencies(self, batch: int) -> Iterator[BenchRow]:
        x = self._images(batch)
        runs: dict[str, Run] = {EAGER: self.model} | {label: _load(label, path) for label, path in self.files.items()}
        calls: dict[str, Callable[[], object]] = {label: partial(run, x) for label, run in runs.items()}
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        with torch.inference_mode():
            times = interleaved(calls, self.settings.rounds or 11, clock, warm=True, advance=self.settings.advance)
        pairs = [('ONNX', peer) for peer in self.peers] + [(format, EAGER) for format in self.reports]
        for label, peer in pairs:
            yield self._row(f'{label}: latency, batch {batch}', peer, times[label], times[peer], 'ms')


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle threads of a session spin for a while, and would slow down the next session.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    return options


def _nodes(path: Path, folder: Path) -> dict[str, int]:
    """Nodes of a file as it is, and after ONNX Runtime has optimised it."""
    import onnx
    import onnxruntime

    options = _options()
    options.optimized_model_filepath = str(folder / 'optimised.onnx')
    onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    files = {'nodes': path, 'nodes after ONNX Runtime': folder / 'optimised.onnx'}
    return {what: len(onnx.load(file).graph.node) for what, file in files.items()}


@_no_warnings()
def _load(label: str, path: Path) -> Run:
    if label == 'TorchScript':
        return torch.jit.load(path)
    if label == 'pt2':
        return torch.export.load(path).module()
    if label == 'AOTInductor':
        return torch._inductor.aoti_load_package(str(path))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, _options(), providers=['CPUExecutionProvider'])
    return lambda x: session.run(None, {'input': x.numpy()})


def _start_up(label: str, path: Path, x: Tensor) -> list[float]:
    """Milliseconds from the file to the first prediction, three times."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            _load(label, path)(x)
        found.append(1e3 * (time.perf_counter() - start))
    return found
