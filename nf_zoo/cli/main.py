"""The command `nf-zoo`: one thin function for each subcommand; what is heavy is imported inside it.

Exit codes: 0 done, 1 a check failed, 2 bad input, 130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import CheckFailed, Parser, UserError, nearest
from ..text import columns, say
from .hub import COMMANDS as HUB_COMMANDS
from .hub import NAME


def _list(args: argparse.Namespace) -> None:
    from ..analysis.catalogue import rows

    table = rows(args.filter, args.pretrained)
    if args.json:
        print(json.dumps([row._asdict() for row in table], indent=2))
    elif args.names:
        for row in table:
            print(*([f'{row.name}.{tag}' for tag in row.weights] if args.pretrained else [row.name]), sep='\n')
    elif table:
        lines = []
        for row in table:
            weights = ', '.join(tag + ('' if top1 is None else f' {top1:.2f} %') for tag, top1 in row.weights.items())
            size = _in_words(list(row.input))
            lines.append([row.name, f'{row.params:,}', f'{row.macs:,}', size, row.paper, weights])
        head = ['model', 'params', 'MACs', 'input', 'paper', 'weights (top-1)']
        print(*columns(head, lines, right=(1, 2)), sep='\n')


def _info(args: argparse.Namespace) -> None:
    from ..analysis.catalogue import facts as facts_of

    facts = facts_of(args.name)
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    weights = facts.pop('weights')
    for key, value in facts.items():
        print(f'{key:<12}{_in_words(value)}')
    print('weights' if weights else f'{"weights":<12}none')
    for tag, entry in weights.items():
        print(
            f'  {tag:<10}{", ".join(f"{key} {_in_words(value)}" for key, value in entry.items() if value is not None)}'
        )


def _train(argv: Sequence[str]) -> int | None:
    from .train import main as train

    return train(argv)


def _evaluate(args: argparse.Namespace) -> None:
    from ..inference.scoring import draw_confusion, evaluate_command

    dataset, scores = evaluate_command(
        args.name,
        args.dataset,
        args.data_dir,
        batch_size=args.batch_size,
        device=args.device,
        fold=args.folded,
        onnx=args.onnx,
        download=args.dataset_download,
        val_split=args.val_split,
    )
    own = scores.pop('')
    found = own.metrics()
    if args.confusion:
        draw_confusion(args.confusion, own, f'{args.name} on {dataset}')
    if args.json:
        forms = {name: {**form.metrics(), 'difference': form.difference} for name, form in scores.items()}
        print(json.dumps(found | ({'forms': forms} if forms else {}) | {'classes': own.by_class()}, indent=2))
        return
    correct = round(found['top1'] / 100 * found['n'])
    print(f'{args.name} on {dataset}: top-1 {found["top1"]:.2f} % ({correct} of {found["n"]}), ', end='')
    print(f'top-5 {found["top5"]:.2f} %, loss {found["loss"]:.4f}')
    for name, form in scores.items():
        print(f'{name}: top-1 {form.metrics()["top1"]:.2f} %, {form.others} other answers, ', end='')
        print(f'logits differ by {form.difference:.1e} of the largest')
    if args.per_class:
        left = max(len(row['class']) for row in own.by_class())
        for row in own.by_class():
            top1 = '' if row['top1'] is None else f'{row["top1"]:6.2f} %'
            taken = f'  taken for {row["taken_for"]}: {row["images"]}' if 'taken_for' in row else ''
            print(f'  {row["class"]:<{left}}  {row["n"]:>6} images  {top1}{taken}')


def _compare(args: argparse.Namespace) -> None:
    from ..train.compare import as_json, draw, read_runs, table

    runs = read_runs(args.runs)
    if args.output:
        draw(runs, args.output)
    print(as_json(runs) if args.json else table(runs))


def _predict(args: argparse.Namespace) -> None:
    from ..inference.predict import predict

    rows = predict(args.name, args.images, args.top)
    if args.json:
        found = [
            {'image': image, 'classes': [{'name': name, 'probability': p} for name, p in row]}
            for image, row in zip(args.images, rows, strict=True)
        ]
        print(json.dumps(found, indent=2))
        return
    left = max(len(image) for image in args.images)
    middle = max(len(name) for row in rows for name, _ in row)
    for image, row in zip(args.images, rows, strict=True):
        for rank, (name, probability) in enumerate(row):
            print(f'{"" if rank else image:<{left}}  {name:<{middle}}  {probability:7.2%}')


def _export(args: argparse.Namespace) -> None:
    from .export import export

    export(args)


def _signal(args: argparse.Namespace) -> None:
    from ..analysis.signal import BlockSignal, signal_propagation
    from ..inference.predict import load_model

    rows = signal_propagation(load_model(args.name, args.pretrained))
    if args.json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return
    block, *numbers = BlockSignal._fields
    left = max(len(row.block) for row in rows)
    print(f'{block:<{left}}', *(f'{number:>17}' for number in numbers))
    for name, *values in rows:
        print(f'{name:<{left}}', *(f'{value:>17.4g}' for value in values))


def _bench(args: argparse.Namespace) -> None:
    from ..bench.measure import bench

    print(*bench(args.what), sep='\n')


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ' '.join(f'{key} {_in_words(item)}' for key, item in value.items())
    if isinstance(value, list):
        return ' x '.join(map(str, value))
    return f'{value:,}' if isinstance(value, int) else ' '.join(str(value).split())


# --- The parser ---


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


JSON = dict(action='store_true', help='print JSON')


def _list_options(add: Callable[..., Any]) -> None:
    add(
        'filter',
        nargs='?',
        default='',
        metavar='FILTER',
        help="a part of the name, or a pattern such as 'eunnet*_cifar'",
    )
    add('--pretrained', action='store_true', help='only models with weights')
    add('--names', action='store_true', help='print names alone; with --pretrained, each with its tags')
    add('--json', **JSON)


def _info_options(add: Callable[..., Any]) -> None:
    add('name', **NAME)
    add('--json', **JSON)


def _evaluate_options(add: Callable[..., Any]) -> None:
    add('name', metavar='NAME_OR_RUN', help='a model name, with or without a tag, or the folder of a finished run')
    add('--data-dir', metavar='DIR', help='folder of the data set')
    add('--dataset', metavar='SET', help='as in a recipe (default: the one that the weights are for)')
    add('--dataset-download', action='store_true', help='let torchvision or timm fetch it into DIR')
    add('--val-split', metavar='NAME', help="folders, timm's sets: the images to score (a run's own; validation)")
    add('--batch-size', type=_count, default=256, metavar='N', help='images at once (256)')
    add('--device', metavar='DEVICE', help='cpu, cuda, ... (cpu)')
    add('--folded', action='store_true', help='the folded network too; it must agree')
    add('--onnx', metavar='FILE', help='this ONNX file of the network too; it must agree')
    add('--per-class', action='store_true', help='a row for each class')
    add('--confusion', type=Path, metavar='FILE.png', help='write a picture of who was taken for whom')
    add('--json', **JSON)


def _compare_options(add: Callable[..., Any]) -> None:
    add('runs', nargs='+', metavar='RUN', help='folders of training runs, finished or not')
    add('-o', '--output', type=Path, metavar='FILE.png', help='write a picture of all their curves')
    add('--json', **JSON)


def _predict_options(add: Callable[..., Any]) -> None:
    add('name', **NAME)
    add('images', nargs='+', metavar='IMAGE', help='PNG, JPEG, WebP, BMP, GIF or TIFF files of any size and mode')
    add('--top', type=_count, default=5, metavar='N', help='classes for each image (5)')
    add('--json', **JSON)


def _export_options(add: Callable[..., Any]) -> None:
    from .export import options

    options(add, _count)


def _signal_options(add: Callable[..., Any]) -> None:
    add('name', **NAME)
    add('--pretrained', action='store_true', help='with the pretrained weights; as initialised otherwise')
    add('--json', **JSON)


def _bench_options(add: Callable[..., Any]) -> None:
    add('what', nargs='?', default='all', metavar='WHAT', help='engine, epoch, inference, training, export (all)')


# name: (one line of help, example, options, function)
COMMANDS: dict[str, tuple[str, str, Callable[..., None] | None, Callable[..., int | None]]] = {
    'list': ('the models', "nf-zoo list 'eunnet*' --pretrained", _list_options, _list),
    'info': ('size, cost, paper and weights of a model', 'nf-zoo info eunnet20_cifar', _info_options, _info),
    'train': (
        'train a model by a recipe',
        'nf-zoo train configs/cifar10/eunnet20_cifar.yaml --data-dir DIR --output RUN',
        None,  # its options are the keys of a recipe: it reads them itself
        _train,
    ),
    'evaluate': (
        'accuracy of pretrained weights on a data set',
        'nf-zoo evaluate eunnet20_cifar.cifar10 --data-dir DIR',
        _evaluate_options,
        _evaluate,
    ),
    'compare': (
        'training runs side by side',
        'nf-zoo compare runs/eunnet20 runs/nf_resnet20 -o compare.png',
        _compare_options,
        _compare,
    ),
    'predict': ('classify image files', 'nf-zoo predict eunnet20_cifar cat.png', _predict_options, _predict),
    **HUB_COMMANDS,
    'export': (
        'write an ONNX, TorchScript or other file and check it against PyTorch',
        'nf-zoo export eunnet20_cifar --pretrained -o eunnet20_cifar.onnx',
        _export_options,
        _export,
    ),
    'signal': ('mean and variance at every block', 'nf-zoo signal nf_resnet50', _signal_options, _signal),
    'bench': ('speed and memory, as ratios to peers', 'nf-zoo bench inference', _bench_options, _bench),
}


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog='nf-zoo',
        description='Residual networks without batch normalization, for timm.',
        epilog='`nf-zoo COMMAND --help` shows the options of a command and an example.',
        allow_abbrev=False,
    )
    top.add_argument('--version', action='version', version=f'nf-zoo {__version__}')
    commands = top.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, (text, example, options, function) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=f'{text[0].upper()}{text[1:]}.',
            epilog=f'example: {example}',
            allow_abbrev=False,
        )
        if options:
            options(command.add_argument)
        command.set_defaults(function=function)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] not in COMMANDS and not argv[0].startswith('-'):
            raise UserError(f"unknown command '{argv[0]}'{nearest(argv[0], COMMANDS)} (`nf-zoo --help` shows all)")
        if argv[:1] == ['train']:
            return _train(argv[1:]) or 0
        args = parser().parse_args(argv)
        code = args.function(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `nf-zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, CheckFailed, OSError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f'{error.filename}: {error.strerror}'
        if 'huggingface_hub' in sys.modules:
            from ..hub.huggingface import redact

            text = redact(text)
        say(f'nf-zoo: error: {" ".join(text.split())}', sys.stderr)
        return 1 if isinstance(error, CheckFailed) else 2
    except KeyboardInterrupt:
        say('nf-zoo: interrupted', sys.stderr)
        return 130
