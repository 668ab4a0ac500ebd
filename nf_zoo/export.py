"""Export to ONNX and TorchScript: folded, checked against the original network, written whole or not at all."""

import hashlib
import importlib
import io
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from .errors import CheckFailed, UserError
from .files import tensor_bytes, write_whole
from .fold import fold as fold_model

OPSET = 20
BATCHES = (2, 1, 5)  # images at once in the parity check; the exporters see the first
ONNX_LIMIT = 2**31 - 1  # bytes of a protobuf message


@dataclass(frozen=True)
class ExportReport:
    """What was written. ``max_abs_diff``: of any output, from the original network in PyTorch, over all batch sizes."""

    ops: dict[str, int]
    nodes: int
    max_abs_diff: float
    bytes: int
    input_size: tuple[int, int, int]
    batch_sizes: tuple[int, ...]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int] | None = None,
    dynamic_batch: bool = True,
    fold: bool = True,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write ``model`` as one ONNX file: from 'input' (N, C, H, W) to 'output', or to 'output_0' ... of a feature list.

    The file has the class names and how to prepare an image in its metadata (JSON values).

    Args:
        model: Any timm model in float32; a copy in eval mode is exported.
        path: File to write; it is replaced only when all checks hold.
        input_size: Channels, height and width in pixels; those of the model's cfg by default.
        dynamic_batch: Let N vary; else it is 1.
        fold: Export ``nf_zoo.fold(model)``.
        tolerance: Largest difference of an output in ONNX Runtime from the original network, as a part of the largest
            output or, where that is below 1, absolutely.

    Raises:
        UserError: a size or model that can't be exported, an unwritable path, or the extra 'export' is missing.
        CheckFailed: the exported network differs by more than ``tolerance``.
    """
    onnx, runtime, _ = (_extra(name) for name in ('onnx', 'onnxruntime', 'onnxscript'))
    case = _Case(model, path, input_size, dynamic_batch, fold)
    proto = _to_onnx(case, dynamic_batch)
    if proto.ByteSize() > ONNX_LIMIT:
        raise UserError(f'the ONNX file would have {proto.ByteSize():,} bytes; the format ends at {ONNX_LIMIT:,}')
    onnx.helper.set_model_props(proto, {k: v if isinstance(v, str) else json.dumps(v) for k, v in case.facts.items()})
    data = proto.SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone: the user can't do anything about a warning
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(data, options, providers=['CPUExecutionProvider'])

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, {'input': x.numpy()})]

    ops = Counter(node.op_type for node in proto.graph.node)
    return case.finish(data, ops, run, tolerance)


def export_torchscript(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int] | None = None,
    fold: bool = True,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write ``model`` as a frozen TorchScript file for ``torch.jit.load`` and LibTorch; batch and image size can vary.

    The file has the facts of :func:`export_onnx`'s metadata as its extra file 'nf_zoo.json'. Arguments and errors are
    those of :func:`export_onnx`.
    """
    case = _Case(model, path, input_size, True, fold)
    file = io.BytesIO()
    with _no_torchscript_warning():
        try:
            frozen = torch.jit.freeze(torch.jit.script(case.network))
        except (RuntimeError, NotImplementedError) as error:  # torch.jit's own errors are RuntimeErrors
            raise UserError(f"{type(model).__name__} can't be scripted: {_first_line(error)}") from None
        torch.jit.save(frozen, file, _extra_files={'nf_zoo.json': json.dumps(case.facts)})
        loaded = torch.jit.load(io.BytesIO(file.getvalue()))
        ops = Counter(kind for kind in _kinds(frozen.inlined_graph) if not kind.startswith('prim::'))
        return case.finish(file.getvalue(), ops, lambda x: _outputs(loaded(x)), tolerance)


class _Case:
    """One export: the network to write, the one to compare it with, and what both are given."""

    def __init__(
        self, model: nn.Module, path: str | Path, input_size: Sequence[int] | None, dynamic_batch: bool, fold: bool
    ):
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            raise UserError("can't export this; give the PyTorch model itself, as timm.create_model returns it")
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f'{path} is a folder; give the name of a file')
        folder = next(p for p in self.path.absolute().parents if p.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f'cannot write {path}: {folder} is {"read-only" if folder.is_dir() else "not a folder"}')
        tensors = [*model.parameters(), *model.buffers()]
        if any(t.is_meta for t in tensors):
            raise UserError("the model is on the device 'meta' and has no weights to export")
        if any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors):
            raise UserError('only float32 models are exported; give model.float()')
        self.original = deepcopy(model).cpu().eval()
        self.network = fold_model(self.original) if fold else self.original
        self.facts = _facts(model, input_size)
        self.batch_sizes = BATCHES if dynamic_batch else (1,)
        generator = torch.Generator().manual_seed(0)
        self.inputs = [torch.randn(n, *self.facts['input_size'], generator=generator) for n in self.batch_sizes]
        self.expected = []
        for x in self.inputs:
            try:
                self.expected.append(_run(self.original, x))
            except RuntimeError as error:
                size = 'x'.join(map(str, self.facts['input_size']))
                raise UserError(f"{type(model).__name__} can't take {size} images: {_first_line(error)}") from None

    def finish(
        self, data: bytes, ops: Counter[str], run: Callable[[Tensor], list[Tensor]], tolerance: float
    ) -> ExportReport:
        """Compare, write, report."""
        worst = 0.0
        for x, expected in zip(self.inputs, self.expected, strict=True):
            for y, z in zip(run(x), expected, strict=True):
                gap = (y - z).abs().max().item() if y.shape == z.shape else math.inf
                worst = max(worst, gap)
                allowed = tolerance * max(1.0, z.abs().max().item())
                if not gap <= allowed:  # nan too
                    raise CheckFailed(
                        f'nothing written to {self.path}: for {len(x)} images the exported network differs from '
                        f'PyTorch by {gap:.1e}, more than {allowed:.1e} (tolerance {tolerance:g})'
                    )
        write_whole(self.path, data)
        size = self.facts['input_size']
        return ExportReport(dict(ops.most_common()), ops.total(), worst, len(data), size, self.batch_sizes)


def _facts(model: nn.Module, input_size: Sequence[int] | None) -> dict[str, Any]:
    """What the user of the file needs to know of the model and its images."""
    from . import __version__

    cfg: dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    if input_size is None and 'input_size' not in cfg:
        raise UserError(
            f'{type(model).__name__} has no pretrained_cfg that says the size of its images; give input_size'
        )
    data = resolve_model_data_config(model)
    size = tuple(data['input_size'] if input_size is None else input_size)
    channels = getattr(model, 'in_chans', None)
    if len(size) != 3 or any(not isinstance(n, int) or n < 1 for n in size):
        raise UserError(f'input_size={size}: give channels, height and width in pixels')
    if input_size is None:
        size = (channels or size[0], *size[1:])
    elif size[0] != (channels or size[0]):
        raise UserError(f'input_size={size}: the model takes {channels} channels, so give {(channels, *size[1:])}')
    labels = list(cfg.get('label_names') or ())
    facts: dict[str, Any] = dict(
        model=cfg.get('architecture') or type(model).__name__,
        tag=cfg.get('tag'),
        input_size=size,
        **{key: data[key] for key in ('mean', 'std') if len(data[key]) == size[0]},
        interpolation=data['interpolation'],
        crop_pct=data['crop_pct'],
        crop_mode=data['crop_mode'],
        class_names=labels if len(labels) == getattr(model, 'num_classes', None) else None,
        # Of model.safetensors, as a run writes it: published weights can be told by it.
        weights_sha256=hashlib.sha256(tensor_bytes(model.state_dict())).hexdigest(),
        nf_zoo_version=__version__,
    )
    return {key: value for key, value in facts.items() if value is not None}


def _to_onnx(case: _Case, dynamic_batch: bool) -> Any:
    """The network as an ONNX ModelProto, without the exporter's stack traces: they name the user's folders."""
    names = ['output'] if len(case.expected[0]) == 1 else [f'output_{i}' for i in range(len(case.expected[0]))]
    try:
        program = torch.onnx.export(
            case.network,
            (case.inputs[0],),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=['input'],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim('batch')},) if dynamic_batch else None,
            custom_translation_table={torch.ops.aten.group_norm.default: _group_norm},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"{type(case.original).__name__} can't be exported: {_first_line(error)}") from None
    assert program is not None
    proto = program.model_proto
    graph = proto.graph
    for item in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        item.ClearField('metadata_props')
        item.ClearField('doc_string')
    return proto


def _group_norm(  # type: ignore[no-untyped-def]
    x, num_groups: int, weight=None, bias=None, eps: float = 1e-05, cudnn_enabled: bool = True
):
    """How the file normalises activations, chosen here alone. Such a group is a channel of InstanceNormalization."""
    from onnxscript import opset20 as op

    rows = op.Reshape(x, op.Constant(value_ints=[0, num_groups, -1]))
    one, zero = (op.Constant(value_floats=[value] * num_groups) for value in (1.0, 0.0))
    y = op.Reshape(op.InstanceNormalization(rows, one, zero, epsilon=eps), op.Shape(x))
    pixels = op.Constant(value_ints=list(range(1, len(x.shape) - 1)))
    if weight is not None:
        y = op.Mul(y, op.Unsqueeze(weight, pixels))
    return y if bias is None else op.Add(y, op.Unsqueeze(bias, pixels))


def _run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return _outputs(model(x))


def _outputs(y: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [y] if isinstance(y, Tensor) else list(y)


def _kinds(block: Any) -> Iterator[str]:
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"exporting to ONNX needs {name}: pip install 'nf-zoo[export]'") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


@contextmanager
def _no_torchscript_warning() -> Iterator[None]:
    # TorchScript is deprecated upstream, which every call says; here it was asked for.
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='`torch.jit', category=FutureWarning)
        yield
