"""Export to ONNX."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, extra, nearest
from .case import Case, ExportReport
from .images import Images
from .norms import in_means

OPSET = 20
ONNX_LIMIT = 2**31 - 1  # bytes of a protobuf message
TOLERANCES = {'float32': 1e-4, 'float16': 1e-2, 'int8': 0.25}  # by the type of the weights


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int] | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    fold: bool = True,
    dtype: str = 'float32',
    calibration: str | Path | None = None,
    images: str | Path | None = None,
    tolerance: float | None = None,
) -> ExportReport:
    """Write ``model`` as one ONNX file.

    Its input is 'input' (N, C, H, W). Its output is 'output', or 'output_0', 'output_1' and so on if the model returns
    a list of features.

    Input and outputs are float32 for every ``dtype``. The file's metadata (JSON values) say how to prepare an image,
    what the classes are called, and how far the outputs may differ from PyTorch's.

    Args:
        model: Any timm model in float32 and eval mode; a copy is exported.
        path: File to write; it is replaced only when all checks hold.
        input_size: Channels, height and width in pixels; those of the model's cfg by default.
        dynamic_batch: Let N vary; else it is 1.
        dynamic_size: Let H and W vary.
        fold: Export ``nf_zoo.fold(model)``.
        dtype: 'float32'; 'float16', which stores weights in half the bytes and computes in float32; or 'int8', static
            quantisation by ONNX Runtime with a scale for each output channel.
        calibration: Folder of images that give the ranges of the activations; for 'int8' alone.
        images: Folder of images for the comparison with PyTorch. By default ``calibration``, or noise without one.
            If the subfolders are named like the classes, the accuracy before and after is measured.
        tolerance: Largest difference of an output in ONNX Runtime from the original network, as a part of the largest
            output, or of 1 if that is smaller. By default 1e-4, for 'float16' 0.01, for 'int8' 0.25.

    Raises:
        UserError: the model can't be exported at this size, the path can't be written, or the extra 'export' is
            missing.
        CheckFailed: the exported network differs by more than ``tolerance``.
    """
    onnx, runtime, _ = (extra(name, 'export') for name in ('onnx', 'onnxruntime', 'onnxscript'))
    if dtype not in TOLERANCES:
        raise UserError(f"dtype='{dtype}': use one of {', '.join(TOLERANCES)}{nearest(str(dtype), TOLERANCES)}")
    if (dtype == 'int8') != (calibration is not None):
        raise UserError('a folder of images for calibration goes with int8, and int8 needs one')
    tolerance = TOLERANCES[dtype] if tolerance is None else tolerance
    images = calibration if images is None else images
    case = Case(model, path, input_size, fold, tolerance, images, dynamic_batch, dynamic_size)
    # A convolution of a normalised input has the same range for every image, and that range fits 8 bits.
    network = in_means(case.network, defer=dtype != 'int8')
    normed = network is not case.network
    if dtype == 'int8':
        from .int8 import padded, quantized

        network = padded(network)
    proto = _to_onnx(case, network, dynamic_batch, dynamic_size)
    if dtype == 'float16':
        _halve(proto)
    elif calibration is not None:
        proto = quantized(proto, Images(calibration, case.facts), normed)
    if proto.ByteSize() > ONNX_LIMIT:
        raise UserError(f'the ONNX file would have {proto.ByteSize():,} bytes; the format ends at {ONNX_LIMIT:,}')
    facts = case.facts | {'dtype': dtype, 'tolerance': tolerance}
    onnx.helper.set_model_props(proto, {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
    data = proto.SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    ops = Counter(node.op_type for node in proto.graph.node)
    return case.finish(data, ops, _runner(runtime, data))


def _runner(runtime: Any, data: bytes) -> Callable[[Tensor], list[Tensor]]:
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone: a user can't act on a warning
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(data, options, providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {'input': x.numpy()})]


def _to_onnx(case: Case, network: nn.Module, dynamic_batch: bool, dynamic_size: bool) -> Any:
    """The network as an ONNX ModelProto. The exporter's stack traces, which name the user's folders, are removed."""
    names = ['output'] if len(case.expected[0]) == 1 else [f'output_{i}' for i in range(len(case.expected[0]))]
    vary = {0: 'batch'} if dynamic_batch else {}
    if dynamic_size:
        vary |= {2: 'height', 3: 'width'}
    try:
        program = torch.onnx.export(
            network,
            (case.inputs[0],),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=['input'],
            output_names=names,
            dynamic_shapes=({i: torch.export.Dim(name) for i, name in vary.items()},) if vary else None,
            custom_translation_table={torch.ops.aten.mean.dim: _mean, torch.ops.aten.maximum.default: _maximum},
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise case.refuse(error) from None
    assert program is not None
    proto = program.model_proto
    graph = proto.graph
    for item in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        item.ClearField('metadata_props')
        item.ClearField('doc_string')
    return proto


def _mean(x, dim: Sequence[int], keepdim: bool = False, dtype: int = -1):  # type: ignore[no-untyped-def]
    """Means over height and width as a pooling, since ONNX Runtime pools in the layout of its convolutions."""
    from onnxscript import opset20 as op

    rank = len(x.shape)
    axes, pixels = sorted(d % rank for d in dim), list(range(2, rank))
    if pixels and dtype == -1:
        if axes == pixels:
            y = op.GlobalAveragePool(x)
            return y if keepdim else op.Flatten(y)
        if axes == [1, *pixels] and keepdim:
            x, axes = op.GlobalAveragePool(x), [1]
    return op.ReduceMean(x, op.Constant(value_ints=axes), keepdims=keepdim)


def _maximum(x, least):  # type: ignore[no-untyped-def]
    """The maximum with one number as Clip, which ONNX Runtime computes inside the convolution before it."""
    from onnxscript import opset20 as op

    if len(least.shape) <= len(x.shape) and all(size == 1 for size in least.shape):
        return op.Clip(x, op.Squeeze(least))
    return op.Max(x, least)


def _halve(proto: Any) -> None:
    """Store weights in float16, each with a Cast back to float32."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            name = tensor.name
            with np.errstate(over='ignore'):
                half = numpy_helper.to_array(tensor).astype(np.float16)
            if not np.isfinite(half).all():
                raise UserError(f"{name} has weights above float16's largest, {np.finfo(np.float16).max}; use float32")
            tensor.CopyFrom(numpy_helper.from_array(half, f'{name}_half'))
            casts.append(helper.make_node('Cast', [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
