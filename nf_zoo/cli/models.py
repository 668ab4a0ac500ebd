"""The commands that look at what the package has: list, info, recipes."""

import argparse

from ..text import clean, columns, say
from .parser import JSON, NAME, Add, Command, count, output_file, print_json
from .trained import check_options, show_trained


def _list(args: argparse.Namespace) -> None:
    from ..analysis.catalogue import names, rows

    if args.names and not args.json:
        say('\n'.join(map(clean, names(args.filter, args.pretrained))))
        return
    table = rows(args.filter, args.pretrained)
    if args.json:
        print_json([row._asdict() for row in table])
    elif table:
        lines = []
        for row in table:
            weights = [tag + ('' if top1 is None else f' {top1:.2f} %') for tag, top1 in row.weights.items()]
            size = ' x '.join(map(str, row.input))
            lines.append([row.name, f'{row.params:,}', f'{row.macs:,}', size, row.paper, ', '.join(weights)])
        head = ['model', 'params', 'MACs', 'input', 'paper', 'weights (top-1)']
        say('\n'.join(columns(head, lines, right=(1, 2))))


def _recipes(args: argparse.Namespace) -> None:
    from ..analysis.catalogue import recipe_rows

    table = recipe_rows(args.filter)
    if args.json:
        print_json([row._asdict() for row in table])
    else:
        cells = [[row.name, row.model, row.dataset, str(row.epochs), row.title] for row in table]
        say('\n'.join(columns(['recipe', 'model', 'data set', 'epochs', ''], cells, right=(3,))))


def _info(args: argparse.Namespace) -> None:
    if args.trained:
        return show_trained(args)
    check_options(args)
    from ..analysis.catalogue import facts

    found = facts(args.name)
    print_json(found.as_dict()) if args.json else say(str(found))


def _list_options(add: Add) -> None:
    text = "a part of the name, or a pattern such as 'eunnet*_cifar'"
    add('filter', nargs='?', default='', metavar='FILTER', help=text)
    add('--pretrained', action='store_true', help='a row for each set of weights, with the size of their network')
    add('--names', action='store_true', help='print the names alone')
    add('--json', **JSON)


def _info_options(add: Add) -> None:
    add('name', **NAME)
    add('--trained', action='store_true', help='what each block of the weights, or of the folder of a run, has learned')
    add('--images', metavar='DIR', help='with --trained: send the images of a folder instead of noise N(0, 1)')
    add('--batch-size', type=count, default=32, metavar='N', help='with --trained: images (32)')
    add('--beside', metavar='NAME', help='with --trained: a second network in the tables and the picture')
    add('-o', '--output', type=output_file, metavar='FILE', help='with --trained: write a picture, .png or .svg')
    add('--json', **JSON)


def _recipes_options(add: Add) -> None:
    text = "a part of the name, or a pattern such as 'cifar10/eunnet*'"
    add('filter', nargs='?', default='', metavar='FILTER', help=text)
    add('--json', **JSON)


COMMANDS = {
    'list': Command('list the models', "nf-zoo list 'eunnet*' --pretrained", _list_options, _list),
    'info': Command(
        'show size, cost, paper and weights of a model', 'nf-zoo info eunnet20_cifar', _info_options, _info
    ),
    'recipes': Command(
        'list the training recipes that come with the package', 'nf-zoo recipes cifar10/', _recipes_options, _recipes
    ),
}
