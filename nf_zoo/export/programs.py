"""Export to the formats that PyTorch loads: TorchScript, torch.export's programs, AOTInductor's compiled libraries."""

import io
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from .case import Case, ExportReport, outputs
from .norms import in_means

FACTS = 'nf_zoo.json'


def export_torchscript(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int] | None = None,
    fold: bool = True,
    trace: bool = False,
    images: str | Path | None = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write ``model`` as a frozen TorchScript file for ``torch.jit.load`` and LibTorch; batch and image size can vary.

    The file has the facts of :func:`export_onnx`'s metadata as its extra file 'nf_zoo.json'. Arguments and errors are
    those of :func:`export_onnx`; ``trace`` records one run instead of compiling the code.
    """
    case = Case(model, path, input_size, fold, tolerance, images)
    file = io.BytesIO()
    with _no_torchscript_warning(), torch.no_grad():
        try:
            scripted = torch.jit.trace(case.network, case.inputs[0]) if trace else torch.jit.script(case.network)
            frozen = torch.jit.freeze(scripted)
        except (RuntimeError, NotImplementedError) as error:  # torch.jit's own errors are RuntimeErrors
            raise case.refuse(error, 'traced' if trace else 'scripted') from None
        torch.jit.save(frozen, file, _extra_files={FACTS: json.dumps(case.facts)})
        loaded = torch.jit.load(io.BytesIO(file.getvalue()))
        ops = Counter(kind for kind in _kinds(frozen.inlined_graph) if not kind.startswith('prim::'))
        return case.finish(file.getvalue(), ops, lambda x: outputs(loaded(x)))


def export_pt2(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int] | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    fold: bool = True,
    images: str | Path | None = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write ``model`` as a program for ``torch.export.load``.

    The file has the facts of :func:`export_onnx`'s metadata as its extra file 'nf_zoo.json'. Arguments and errors are
    those of :func:`export_onnx`.
    """
    case = Case(model, path, input_size, fold, tolerance, images, dynamic_batch, dynamic_size)
    program = _program(case, case.network, dynamic_batch, dynamic_size)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={FACTS: json.dumps(case.facts)})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    return case.finish(file.getvalue(), _calls(program), lambda x: outputs(loaded(x)))


def export_aoti(
    model: nn.Module,
    path: str | Path,
    *,
    input_size: Sequence[int] | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    fold: bool = True,
    images: str | Path | None = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Write ``model`` as a library that AOTInductor compiles for this kind of processor.

    ``torch._inductor.aoti_load_package`` loads it; its ``get_metadata()['nf_zoo.json']`` has the facts of
    :func:`export_onnx`'s metadata. Arguments and errors are those of :func:`export_onnx`.

    Raises:
        UserError: also when there is no C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    case = Case(model, path, input_size, fold, tolerance, images, dynamic_batch, dynamic_size)
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        raise UserError('AOTInductor needs a C++ compiler: install g++, or set CXX to one') from None
    program = _program(case, in_means(case.network), dynamic_batch, dynamic_size)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / 'model.pt2'
        options = {'aot_inductor.metadata': {FACTS: json.dumps(case.facts)}}
        aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
        loaded: Any = aoti_load_package(str(package))
        return case.finish(package.read_bytes(), _calls(program), lambda x: outputs(loaded(x)))


def _program(case: Case, network: nn.Module, dynamic_batch: bool, dynamic_size: bool) -> torch.export.ExportedProgram:
    vary: dict[int, Any] = {0: torch.export.Dim('batch')} if dynamic_batch else {}
    if dynamic_size:
        vary |= dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    try:
        return torch.export.export(network, (case.inputs[0],), dynamic_shapes=(vary,))
    except Exception as error:  # torch.export raises whatever its tracing meets
        raise case.refuse(error) from None


def _calls(program: torch.export.ExportedProgram) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == 'call_function')


def _kinds(block: Any) -> Iterator[str]:
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)


@contextmanager
def _no_torchscript_warning() -> Iterator[None]:
    # Every call of the deprecated TorchScript warns, although the user has asked for this format.
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='`torch.jit', category=FutureWarning)
        yield
