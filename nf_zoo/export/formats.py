"""One export in any format, with the options that the format has."""

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError
from .case import ExportReport
from .onnx_file import export_onnx
from .programs import export_aoti, export_pt2, export_torchscript

SUFFIXES = {'onnx': '.onnx', 'torchscript': '.pt', 'pt2': '.pt2', 'aoti': '.pt2'}
_BY_SUFFIX = {'.onnx': 'onnx', '.pt': 'torchscript', '.pt2': 'pt2'}
_OWNERS = {'dtype': 'onnx', 'calibration': 'onnx', 'trace': 'torchscript'}  # options that one format has


def format_of(path: str | Path) -> str:
    """The format that the suffix of a file stands for. Raises `UserError` for a suffix that stands for none."""
    suffix = Path(path).suffix
    if suffix not in _BY_SUFFIX:
        raise UserError(f"'{path}' says no format: end it with {', '.join(_BY_SUFFIX)}, or give --format")
    return _BY_SUFFIX[suffix]


def export(model: nn.Module, path: Path, format: str, **options: Any) -> ExportReport:
    """Write ``model`` to ``path``; ``options`` are those of the format's function, None and False for its default.

    Raises:
        UserError: an option that the format doesn't have, and as the format's function.
        CheckFailed: as the format's function.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key, owner in _OWNERS.items():
        if key in given and owner != format:
            if given.pop(key):
                raise UserError(f'--{key} is an option of the format {owner}, not of {format}')
    if format == 'torchscript':
        if given.pop('dynamic_batch', True) is False:
            raise UserError('--fixed-batch is no option of the format torchscript: batch and image size can vary')
        given.pop('dynamic_size', None)
        return export_torchscript(model, path, **given)
    write = {'onnx': export_onnx, 'pt2': export_pt2, 'aoti': export_aoti}[format]
    return write(model, path, **given)
