"""The command `nf-zoo export`."""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import CheckFailed, UserError, nearest
from ..text import clean, say
from .parser import JSON, Add, Command, count, limit, output_file, print_json

# Written again, so that the parser of every command needn't import the exporters; a test compares them.
FORMATS = ('onnx', 'torchscript', 'pt2', 'aoti')
DTYPES = ('float32', 'float16', 'int8')


def _export(args: argparse.Namespace) -> None:
    if (args.output is None) == (not args.check):
        raise UserError('give -o FILE to write, or --check to write nothing')
    from ..export.formats import SUFFIXES, export, format_of
    from ..inference.loading import resolve

    file = None if args.all else args.output  # with --all it is a folder
    format = args.format or (format_of(file) if file else 'onnx')
    if args.random and args.pretrained:
        raise UserError('--random and --pretrained exclude one another')
    if args.all:
        _all(args, format)
        return
    if args.name is None:
        raise UserError('give the NAME of a model, or --all (`nf-zoo list` shows all names)')
    source = resolve(args.name, pretrained=False)
    if source.kind == 'run' and args.random:
        raise UserError(f'{args.name} is a run, which has its weights; leave --random out')
    if source.kind == 'random' and not args.random and not args.pretrained:
        raise UserError(
            f"'{args.name}' names no weights: give --pretrained for the best ones, NAME.TAG or the folder of a run for "
            'others, or --random for an untrained network'
        )
    if not args.random:
        source = resolve(args.name)
    with tempfile.TemporaryDirectory() as folder:
        path = args.output or Path(folder) / f'model{SUFFIXES[format]}'
        report = export(source.load(), path, format, input_size=args.input_size, **_options_of(args))
    used = clean('random' if args.random else source.where)
    if args.json:
        print_json(dataclasses.asdict(report) | {'weights': used})
        return
    say(f'{"checked" if args.check else args.output}: {report}\nweights: {used}')
    if not report.top1 and (args.images or args.calibration):
        say("no accuracy: the folder's subfolders are not the model's classes")


def _options_of(args: argparse.Namespace) -> dict[str, Any]:
    same = ('fold', 'images', 'tolerance', 'dtype', 'calibration', 'trace', 'dynamic_size')
    return {key: getattr(args, key) for key in same} | {'dynamic_batch': not args.fixed_batch}


def _all(args: argparse.Namespace, format: str) -> None:
    if args.output and not args.pretrained and not args.random:
        raise UserError('give --pretrained, or --random for files of untrained networks')
    from tqdm import tqdm

    from ..export.survey import SurveyRow, survey
    from ..net.registry import list_models

    pattern = args.name or '*'
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches '{pattern}'{nearest(pattern, list_models())}")
    left = max(map(len, names))
    if not args.json:
        say(SurveyRow.head(left))
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
    add(
        'name',
        nargs='?',
        metavar='NAME',
        help='NAME.TAG, the folder of a run, or a NAME; with --all a pattern of names',
    )
    add('-o', '--output', type=output_file, metavar='FILE', help='the file to write; with --all a folder')
    add('--format', choices=FORMATS, help="format (by FILE's suffix: .onnx, .pt torchscript, .pt2)")
    add('--dtype', choices=DTYPES, help='ONNX: type of the weights; int8 is static quantisation (float32)')
    add('--pretrained', action='store_true', help='take the best pretrained weights of a NAME that has no tag')
    add('--random', action='store_true', help='take the initial weights: random, without training')
    add('--no-fold', dest='fold', action='store_false', help="don't fold the network")
    add('--trace', action='store_true', help='TorchScript: record one run instead of compiling the code')
    size = "channels, height and width (the model's own; with --all 64 pixels at most)"
    add('--input-size', type=count, nargs=3, metavar=('C', 'H', 'W'), help=size)
    add('--fixed-batch', action='store_true', help='accept batches of one image alone')
    add('--dynamic-size', action='store_true', help='accept images of any height and width')
    add('--calibration', metavar='DIR', help='int8: folder of images that give the ranges of the activations')
    add(
        '--images',
        metavar='DIR',
        help='compare on the images of this folder; with class folders, measure the accuracy too',
    )
    add(
        '--tolerance',
        type=limit,
        metavar='X',
        help='largest relative difference from PyTorch (1e-4; float16 0.01, int8 0.25)',
    )
    add('--check', action='store_true', help='export and compare, but keep no file')
    add('--all', action='store_true', help='export every registered model; print a row for each')
    add('--json', **JSON)


COMMANDS = {
    'export': Command(
        'write an ONNX, TorchScript or other file and check it against PyTorch',
        'nf-zoo export eunnet20_cifar --pretrained -o eunnet20_cifar.onnx',
        _options,
        _export,
    )
}
