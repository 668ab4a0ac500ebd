"""The commands of the hub: publish, fetch, verify, hub index."""

import argparse
import shlex
import sys
from pathlib import Path

from ..errors import UserError
from ..files import write_whole
from ..text import columns, say
from .parser import NAME, Add, Command, output_file


def _publish(args: argparse.Namespace) -> None:
    from ..hub.publishing import publish

    options = {key: getattr(args, key) for key in ('replace', 'private', 'dry_run', 'dtype', 'license', 'allow_dead')}
    target = publish(args.source, args.to, args.name, **options)
    print(target, *(['(dry run: nothing written)'] * args.dry_run), flush=True)
    if not args.dry_run:  # on standard error: a script takes the folder from standard output
        say('\n'.join(['use it:', *_uses(Path(target).name, args.to)]), sys.stderr)


def _uses(name_tag: str, hub: str) -> list[str]:
    """The commands that use what was published."""
    from ..hub.places import DirPlace, parse_place, search_path

    place = parse_place(hub)
    where = str(place.path.absolute()) if isinstance(place, DirPlace) else hub  # true in every folder
    return [
        *([] if place in search_path() else [f'  export NF_ZOO_HUB={shlex.quote(where)}']),
        f'  nf-zoo verify {name_tag}',
        f'  nf-zoo predict {name_tag} IMAGE',
        f'  python -c "import nf_zoo, timm; timm.create_model(\'{name_tag}\', pretrained=True)"',
    ]


def _fetch(args: argparse.Namespace) -> None:
    from ..hub.publishing import fetch

    print(fetch(args.name, args.hub))


def _verify(args: argparse.Namespace) -> int | None:
    from ..hub.verification import verify, verify_all

    if bool(args.name) == args.all:
        raise UserError('give a NAME, or --all for a whole hub')
    if args.name:
        print(verify(args.name, args.data_dir, args.hub))
        return None
    from ..hub.listing import percent

    rows, failed = [], 0
    for name_tag, found in verify_all(args.hub, args.data_dir):
        if isinstance(found, Exception):
            failed += 1
            rows.append([name_tag, 'FAILED', '', '', str(found)])
        else:
            tops = [percent((metrics or {}).get('top1')) for metrics in (found.recorded, found.measured)]
            rows.append([name_tag, 'verified', *tops, found.place])
        if args.data_dir:  # minutes each
            say(' '.join(rows[-1][:2]), sys.stderr)
    print(*columns(['name', '', 'recorded', 'measured', 'where'], rows), sep='\n')
    return 1 if failed else None


def _hub(args: argparse.Namespace) -> int | None:
    from ..hub.listing import as_csv, as_html, as_table, list_hub

    rows = list_hub(args.hub)
    if args.csv:
        write_whole(args.csv, as_csv(rows, args.hub).encode())
    if args.html:
        write_whole(args.html, as_html(rows, args.hub, args.html).encode())
    print(as_table(rows))
    return 1 if any(row.error for row in rows) else None


def _publish_options(add: Add) -> None:
    add('source', metavar='RUN_OR_NAME', help='the output folder of a training run, or the NAME.TAG of known weights')
    add('--to', required=True, metavar='HUB', help='a directory, hf://ORG or hf://ORG@BRANCH')
    add('--name', metavar='NAME.TAG', help="the name to publish under (the run's model and data set)")
    add('--replace', action='store_true', help='replace other weights of this name')
    add('--private', action='store_true', help='make a new repository of hf://ORG private')
    add('--dry-run', action='store_true', help='check everything, write nothing')
    add('--dtype', choices=['float32', 'float16', 'bfloat16'], help='store the weights in this type (as they are)')
    add('--allow-dead', action='store_true', help='publish though some blocks contribute nothing')
    add('--license', metavar='SPDX', help='licence of the weights (that of published ones, else apache-2.0)')


def _fetch_options(add: Add) -> None:
    add('name', **NAME)
    add('--hub', metavar='HUB', help='a directory or hf://ORG instead of the search path')


def _verify_options(add: Add) -> None:
    add('name', nargs='?', metavar='NAME_OR_RUN', help='NAME, NAME.TAG, or the folder of a run')
    add('--all', action='store_true', help='every name of the hub, or of the search path, as a table')
    add('--hub', metavar='HUB', help='a directory or hf://ORG instead of the search path')
    add('--data-dir', metavar='DIR', help='measure the accuracy too, on the data sets in the folder DIR')


def _hub_options(add: Add) -> None:
    add('action', choices=['index'], metavar='index', help='list what is in a hub')
    add('hub', metavar='HUB', help='a directory or hf://ORG')
    add('--csv', type=output_file, metavar='FILE', help='write the list as CSV too')
    add('--html', type=output_file, metavar='FILE', help='write the list as a page that sorts and filters, too')


COMMANDS = {
    'publish': Command(
        'put the weights of a run into a hub',
        'nf-zoo publish RUN --to my-hub --name eunnet20_cifar.cifar10',
        _publish_options,
        _publish,
    ),
    'fetch': Command(
        'find weights, check their hashes, print their folder',
        'nf-zoo fetch eunnet20_cifar',
        _fetch_options,
        _fetch,
    ),
    'verify': Command(
        'check the weights of a model', 'nf-zoo verify eunnet20_cifar --data-dir DIR', _verify_options, _verify
    ),
    'hub': Command('list the contents of a hub', 'nf-zoo hub index my-hub --html index.html', _hub_options, _hub),
}
