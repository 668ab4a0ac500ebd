"""The commands that look at models: list and info."""

import argparse
import json
from typing import Any

from ..text import columns
from .parser import JSON, NAME, Add, Command


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


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ' '.join(f'{key} {_in_words(item)}' for key, item in value.items())
    if isinstance(value, list):
        return ' x '.join(map(str, value))
    return f'{value:,}' if isinstance(value, int) else ' '.join(str(value).split())


def _list_options(add: Add) -> None:
    text = "a part of the name, or a pattern such as 'eunnet*_cifar'"
    add('filter', nargs='?', default='', metavar='FILTER', help=text)
    add('--pretrained', action='store_true', help='only models with weights')
    add('--names', action='store_true', help='print names alone; with --pretrained, each with its tags')
    add('--json', **JSON)


def _info_options(add: Add) -> None:
    add('name', **NAME)
    add('--json', **JSON)


COMMANDS = {
    'list': Command('the models', "nf-zoo list 'eunnet*' --pretrained", _list_options, _list),
    'info': Command('size, cost, paper and weights of a model', 'nf-zoo info eunnet20_cifar', _info_options, _info),
}
