"""Export: folded, compared with the original network, written whole or not at all."""

from .case import ExportReport
from .onnx_file import export_onnx
from .programs import export_aoti, export_pt2, export_torchscript

__all__ = ['ExportReport', 'export_aoti', 'export_onnx', 'export_pt2', 'export_torchscript']
