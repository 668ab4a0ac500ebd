"""The commands that use trained weights: evaluate, predict, compare."""

import argparse
import json
from pathlib import Path

from ..text import clean
from .parser import JSON, NAME, Add, Command, count


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
    print(f'{args.name} on {clean(dataset)}: top-1 {found["top1"]:.2f} % ({correct} of {found["n"]}), ', end='')
    print(f'top-5 {found["top5"]:.2f} %, loss {found["loss"]:.4f}')
    for name, form in scores.items():
        print(f'{name}: top-1 {form.metrics()["top1"]:.2f} %, {form.others} other answers, ', end='')
        print(f'logits differ by {form.difference:.1e} of the largest')
    if args.per_class:
        left = max(len(clean(row['class'])) for row in own.by_class())
        for row in own.by_class():
            top1 = '' if row['top1'] is None else f'{row["top1"]:6.2f} %'
            taken = f'  taken for {clean(row["taken_for"])}: {row["images"]}' if 'taken_for' in row else ''
            print(f'  {clean(row["class"]):<{left}}  {row["n"]:>6} images  {top1}{taken}')


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
    rows = [[(clean(name), probability) for name, probability in row] for row in rows]
    middle = max(len(name) for row in rows for name, _ in row)
    for image, row in zip(args.images, rows, strict=True):
        for rank, (name, probability) in enumerate(row):
            print(f'{"" if rank else image:<{left}}  {name:<{middle}}  {probability:7.2%}')


def _compare(args: argparse.Namespace) -> None:
    from ..train.compare import as_json, draw, read_runs, table

    runs = read_runs(args.runs)
    if args.output:
        draw(runs, args.output)
    print(as_json(runs) if args.json else table(runs))


def _evaluate_options(add: Add) -> None:
    add('name', metavar='NAME_OR_RUN', help='a model name, with or without a tag, or the folder of a finished run')
    add('--data-dir', metavar='DIR', help='folder of the data set')
    add('--dataset', metavar='SET', help='as in a recipe (default: the one that the weights are for)')
    add('--dataset-download', action='store_true', help='let torchvision or timm fetch it into DIR')
    add('--val-split', metavar='NAME', help="folders, timm's sets: the images to score (a run's own; validation)")
    add('--batch-size', type=count, default=256, metavar='N', help='images at once (256)')
    add('--device', metavar='DEVICE', help='cpu, cuda, ... (cpu)')
    add('--folded', action='store_true', help='the folded network too; it must agree')
    add('--onnx', metavar='FILE', help='this ONNX file of the network too; it must agree')
    add('--per-class', action='store_true', help='a row for each class')
    add('--confusion', type=Path, metavar='FILE.png', help='write a picture of who was taken for whom')
    add('--json', **JSON)


def _predict_options(add: Add) -> None:
    add('name', **NAME)
    add('images', nargs='+', metavar='IMAGE', help='PNG, JPEG, WebP, BMP, GIF or TIFF files of any size and mode')
    add('--top', type=count, default=5, metavar='N', help='classes for each image (5)')
    add('--json', **JSON)


def _compare_options(add: Add) -> None:
    add('runs', nargs='+', metavar='RUN', help='folders of training runs, finished or not')
    add('-o', '--output', type=Path, metavar='FILE.png', help='write a picture of all their curves')
    add('--json', **JSON)


COMMANDS = {
    'evaluate': Command(
        'accuracy of pretrained weights on a data set',
        'nf-zoo evaluate eunnet20_cifar.cifar10 --data-dir DIR',
        _evaluate_options,
        _evaluate,
    ),
    'predict': Command('classify image files', 'nf-zoo predict eunnet20_cifar cat.png', _predict_options, _predict),
    'compare': Command(
        'training runs side by side',
        'nf-zoo compare runs/eunnet20 runs/nf_resnet20 -o compare.png',
        _compare_options,
        _compare,
    ),
}
