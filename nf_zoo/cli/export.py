"""The command `nf-zoo export`."""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckFailed, UserError, nearest

SUFFIXES = {'onnx': '.onnx', 'torchscript': '.pt', 'pt2': '.pt2', 'aoti': '.pt2'}
DTYPES = ('float32', 'float16', 'int8')


def options(add: Callable[..., Any], count: Callable[[str], int]) -> None:
    """``add`` is the parser's add_argument, ``count`` the type of a number above 0."""
    add('name', nargs='?', metavar='NAME', help='a model name, with or without a tag; with --all a pattern of names')
    add('-o', '--output', type=Path, metavar='FILE', help='the file to write (with --all, a folder)')
    add('--format', choices=SUFFIXES, help="what to write (by FILE's suffix: .pt torchscript, .pt2 pt2, others onnx)")
    add('--dtype', choices=DTYPES, help='ONNX: type of the weights, int8 for static quantisation (float32)')
    add('--pretrained', action='store_true', help='with the pretrained weights; random ones otherwise')
    add('--no-fold', dest='fold', action='store_false', help="keep the method's graph instead of folding it")
    add('--trace', action='store_true', help='TorchScript: record one run instead of compiling the code')
    size = "channels and pixels (the model's own; with --all 64 pixels at most)"
    add('--input-size', type=count, nargs=3, metavar=('C', 'H', 'W'), help=size)
    add('--fixed-batch', action='store_true', help='batches of one image only')
    add('--dynamic-size', action='store_true', help='let height and width vary too')
    add('--calibration', metavar='DIR', help='int8: a folder of images that the ranges of activations come from')
    add('--images', metavar='DIR', help='compare on these images; class folders give the accuracy before and after')
    add('--tolerance', type=float, metavar='X', help='largest relative difference (1e-4; float16 0.01, int8 0.25)')
    add('--check', action='store_true', help='check the export and keep no file')
    add('--all', action='store_true', help='every registered name, one row each')
    add('--json', action='store_true', help='print JSON')


def export(args: argparse.Namespace) -> None:
    if (args.output is None) == (not args.check):
        raise UserError('give -o FILE to write, or --check to write nothing')
    kind = args.format or {'.pt': 'torchscript', '.pt2': 'pt2'}.get(getattr(args.output, 'suffix', ''), 'onnx')
    if args.all:
        _all(args, kind)
        return
    if args.name is None:
        raise UserError('give the NAME of a model, or --all (`nf-zoo list` shows all names)')
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / f'model{SUFFIXES[kind]}'
        report = run(args, kind, _load(args), path)
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
        return
    print(f'{"checked" if args.check else args.output}: {report.bytes:,} bytes, {report.nodes} nodes')
    print('  '.join(f'{op} {number}' for op, number in report.ops.items()))
    print(f'largest difference from PyTorch: {report.max_abs_diff:.1e}, on ', end='')
    print(f'{report.images} images' if report.images else 'noise')
    if report.top1:
        print('top-1: {:.2f} % before, {:.2f} % after, of {} images'.format(*report.top1))
    elif args.images or args.calibration:
        print("no accuracy: the folder's subfolders are not the model's classes")


def run(args: argparse.Namespace, kind: str, model: Any, path: Path) -> Any:
    """One export with the options that its format has. Raises UserError: one that it doesn't have."""
    from ..export import export_aoti, export_onnx, export_pt2, export_torchscript

    given: dict[str, Any] = dict(input_size=args.input_size, fold=args.fold, images=args.images)
    if args.tolerance is not None:
        given['tolerance'] = args.tolerance
    varying: dict[str, Any] = dict(dynamic_batch=not args.fixed_batch, dynamic_size=args.dynamic_size)
    for key, format in (('dtype', 'onnx'), ('calibration', 'onnx'), ('trace', 'torchscript')):
        if getattr(args, key):
            if kind != format:
                raise UserError(f'--{key} is an option of the format {format}, not of {kind}')
            given[key] = getattr(args, key)
    if kind == 'torchscript':
        if args.fixed_batch:
            raise UserError('--fixed-batch is no option of the format torchscript: batch and image size can vary')
        return export_torchscript(model, path, **given)
    write = {'onnx': export_onnx, 'pt2': export_pt2, 'aoti': export_aoti}[kind]
    return write(model, path, **given, **varying)


def _load(args: argparse.Namespace) -> Any:
    from ..inference.predict import load_model

    return load_model(args.name, args.pretrained)


def _all(args: argparse.Namespace, kind: str) -> None:
    from ..export.survey import survey
    from ..net.registry import list_models

    pattern = args.name or '*'
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches '{pattern}'{nearest(pattern, list_models())}")
    with tempfile.TemporaryDirectory() as folder:
        failed = survey(args, kind, names, args.output or Path(folder))
    if failed:
        raise CheckFailed(f'{len(failed)} of {len(names)} failed: {", ".join(failed)}')
