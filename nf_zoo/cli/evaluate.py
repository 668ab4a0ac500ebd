"""The commands that use trained weights: evaluate, predict, compare."""

import argparse

from ..text import say
from .parser import JSON, NAME, Add, Command, count, fail, png_file, print_json


def _evaluate(args: argparse.Namespace) -> None:
    from ..inference.scoring import draw_confusion, evaluate_command

    report = evaluate_command(
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
    if args.confusion:
        draw_confusion(args.confusion, report)
    if args.json:
        print_json(report.as_dict())
        return
    say(str(report))
    if args.per_class:
        say(report.class_table())


def _predict(args: argparse.Namespace) -> int:
    from ..inference.predict import predict_files

    report = predict_files(args.name, args.images, args.top)
    if args.json:
        print_json(report.as_dicts())
    elif text := str(report):
        say(text)
    return max(map(fail, report.failures), default=0)


def _compare(args: argparse.Namespace) -> None:
    from ..train.compare import as_dicts, draw, read_runs, table

    runs = read_runs(args.runs)
    if args.output:
        draw(runs, args.output)
    print_json(as_dicts(runs)) if args.json else say(table(runs))


def _evaluate_options(add: Add) -> None:
    add('name', **NAME)
    add('--data-dir', metavar='DIR', help="folder of the data set (by default the run's)")
    add('--dataset', metavar='SET', help='data set, as in a recipe (by default the one that the weights are for)')
    add('--dataset-download', action='store_true', help='let torchvision or timm download the data set into DIR')
    add('--val-split', metavar='NAME', help="folder or split of the images to score (the run's own, or validation)")
    add('--batch-size', type=count, default=256, metavar='N', help='images at once (256)')
    add('--device', metavar='DEVICE', help='cpu, cuda, cuda:1 and so on (cpu)')
    add('--folded', action='store_true', help='score the folded network too, and check that it agrees')
    add('--onnx', metavar='FILE', help='score an ONNX file of the network too, and check that it agrees')
    add('--per-class', action='store_true', help='print a row for each class')
    add('--confusion', type=png_file, metavar='FILE.png', help='write the confusion matrix as a picture')
    add('--json', **JSON)


def _predict_options(add: Add) -> None:
    add('name', **NAME)
    text = 'PNG, JPEG, WebP, BMP, GIF or TIFF files of any size and mode, or folders of them'
    add('images', nargs='+', metavar='IMAGE', help=text)
    add('--top', type=count, default=5, metavar='N', help='how many classes to show for each image (5)')
    add('--json', **JSON)


def _compare_options(add: Add) -> None:
    add('runs', nargs='+', metavar='RUN', help='folders of training runs, finished or not')
    add('-o', '--output', type=png_file, metavar='FILE.png', help='write a picture of all their curves')
    add('--json', **JSON)


COMMANDS = {
    'evaluate': Command(
        'measure the accuracy of weights or of a run on a data set',
        'nf-zoo evaluate eunnet20_cifar.cifar10 --data-dir DIR',
        _evaluate_options,
        _evaluate,
    ),
    'predict': Command('classify image files', 'nf-zoo predict eunnet20_cifar cat.png', _predict_options, _predict),
    'compare': Command(
        'show training runs side by side',
        'nf-zoo compare runs/eunnet20 runs/nf_resnet20 -o compare.png',
        _compare_options,
        _compare,
    ),
}
