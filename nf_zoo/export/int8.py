"""Static quantisation to 8 bits with ONNX Runtime's own quantizer."""

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from .images import Images

CALIBRATION = 256  # images at most, spread over the folder
BESIDE_NORMS = ['Conv', 'Gemm', 'MaxPool', 'AveragePool']


def quantized(proto: Any, images: Images, normed: bool) -> Any:
    """The model with quantize-dequantize pairs: activations per tensor and unsigned, weights per output channel.

    The weights have 7 bits. On x86 processors without VNNI the products of 8-bit numbers overflow, and the predictions
    would differ from those that were compared: https://github.com/microsoft/onnxruntime/issues/14642.

    Args:
        proto: ONNX ModelProto in float32.
        images: The images that give the ranges of the activations.
        normed: Whether the network normalises activations. Normalisation needs more than 8 bits and stays in float32.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    numbers = range(len(images.files))
    step = max(1, -(-len(numbers) // CALIBRATION))
    rows = iter(numbers[::step])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            number = next(rows, None)
            return None if number is None else {'input': images.read(number)[None].numpy()}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / 'before.onnx', Path(folder) / 'after.onnx'
        quant_pre_process(proto, before)
        quantization.quantize_static(
            before,
            after,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=BESIDE_NORMS if normed else None,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(after)


@contextmanager
def _quiet() -> Iterator[None]:
    # The quantizer reports its progress through the root logger and print.
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)
