"""The commands that look at models: list and info."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..text import clean, columns
from .parser import JSON, NAME, Add, Command, count
from .trained import check_options, show_trained


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
    if args.trained:
        return show_trained(args)
    check_options(args)
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


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ' '.join(f'{key} {_in_words(item)}' for key, item in value.items())
    if isinstance(value, list):
        return ' x '.join(map(clean, value))
    return f'{value:,}' if isinstance(value, int) else clean(value)


def _list_options(add: Add) -> None:
    text = "a part of the name, or a pattern such as 'eunnet*_cifar'"
    add('filter', nargs='?', default='', metavar='FILTER', help=text)
    add('--pretrained', action='store_true', help='only models with weights')
    add('--names', action='store_true', help='print names alone; with --pretrained, each with its tags')
    add('--json', **JSON)


def _info_options(add: Add) -> None:
    add('name', **NAME)
    add('--trained', action='store_true', help='what each block of the weights, or of the folder of a run, has learned')
    add('--images', metavar='DIR', help='with --trained: send the images of a folder instead of noise N(0, 1)')
    add('--batch-size', type=count, default=32, metavar='N', help='with --trained: images (32)')
    add('--beside', metavar='NAME', help='with --trained: a second network in the tables and the picture')
    add('-o', '--output', type=Path, metavar='FILE', help='with --trained: write a picture, .png or .svg')
    add('--json', **JSON)


COMMANDS = {
    'list': Command('the models', "nf-zoo list 'eunnet*' --pretrained", _list_options, _list),
    'info': Command('size, cost, paper and weights of a model', 'nf-zoo info eunnet20_cifar', _info_options, _info),
}
