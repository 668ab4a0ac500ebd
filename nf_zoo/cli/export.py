"""The command `nf-zoo export`."""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import CheckFailed, UserError, nearest
from .parser import JSON, Add, Command, count

FORMATS = ('onnx', 'torchscript', 'pt2', 'aoti')
DTYPES = ('float32', 'float16', 'int8')


def _export(args: argparse.Namespace) -> None:
    if (args.output is None) == (not args.check):
        raise UserError('give -o FILE to write, or --check to write nothing')
    from ..export.formats import SUFFIXES, export, format_of
    from ..inference.loading import load_model

    format = args.format or format_of(args.output)
    if args.all:
        _all(args, format)
        return
    if args.name is None:
        raise UserError('give the NAME of a model, or --all (`nf-zoo list` shows all names)')
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / f'model{SUFFIXES[format]}'
        model = load_model(args.name, args.pretrained)
        report = export(model, path, format, input_size=args.input_size, **_options_of(args))
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
        return
    print(f'{"checked" if args.check else args.output}: {report}')
    if not report.top1 and (args.images or args.calibration):
        print("no accuracy: the folder's subfolders are not the model's classes")


def _options_of(args: argparse.Namespace) -> dict[str, Any]:
    same = ('fold', 'images', 'tolerance', 'dtype', 'calibration', 'trace', 'dynamic_size')
    return {key: getattr(args, key) for key in same} | {'dynamic_batch': not args.fixed_batch}


def _all(args: argparse.Namespace, format: str) -> None:
    from tqdm import tqdm

    from ..export.survey import SurveyRow, survey
    from ..net.registry import list_models

    pattern = args.name or '*'
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches '{pattern}'{nearest(pattern, list_models())}")
    left = max(map(len, names))
    if not args.json:
        print(SurveyRow.head(left))
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        given = dict(pretrained=args.pretrained, input_size=args.input_size, **_options_of(args))
        rows = survey(names, args.output or Path(folder), format, **given)
        for row in tqdm(rows, total=len(names), unit='model', disable=not sys.stderr.isatty()):
            tqdm.write(json.dumps(row.as_dict()) if args.json else row.line(left))
            failed += [row.name] if row.error else []
    if failed:
        raise CheckFailed(f'{len(failed)} of {len(names)} failed: {", ".join(failed)}')


def _options(add: Add) -> None:
    add('name', nargs='?', metavar='NAME', help='a model name, with or without a tag; with --all a pattern of names')
    add('-o', '--output', type=Path, metavar='FILE', help='the file to write (with --all, a folder)')
    add('--format', choices=FORMATS, help="what to write (by FILE's suffix: .pt torchscript, .pt2 pt2, others onnx)")
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
    add('--json', **JSON)


COMMANDS = {
    'export': Command(
        'write an ONNX, TorchScript or other file and check it against PyTorch',
        'nf-zoo export eunnet20_cifar --pretrained -o eunnet20_cifar.onnx',
        _options,
        _export,
    )
}
