"""The command `nf-zoo bench`."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError, nearest, refused
from ..text import say
from .parser import Add, Command, count, output_file

if TYPE_CHECKING:
    from ..bench.measure import BenchRow
    from ..bench.settings import Settings

Rows = Iterable['BenchRow']


class Bench(NamedTuple):
    """One bench. ``run`` takes one network's name and the settings.

    ``takes``: the options that it knows besides --rounds, --threads, --json and -o.
    """

    run: Callable[[str, 'Settings'], Rows]
    takes: frozenset[str] = frozenset()
    names: tuple[str, ...] = ('',)


def _inference(name: str, settings: 'Settings') -> Rows:
    from ..bench.networks import bench_inference

    return bench_inference([name], settings)


def _training(name: str, settings: 'Settings') -> Rows:
    from ..bench.networks import bench_training

    return bench_training([name], settings)


def _memory(name: str, settings: 'Settings') -> Rows:
    from ..bench.memory import bench_memory

    return bench_memory([name], settings)


def _depth(name: str, settings: 'Settings') -> Rows:
    from ..bench.networks import bench_depth

    return bench_depth([name], settings)


def _import(name: str, settings: 'Settings') -> Rows:
    from ..bench.imports import bench_import

    return bench_import(**_given(settings, 'rounds'))


def _engine(name: str, settings: 'Settings') -> Rows:
    from ..bench.engine import bench_engine

    return bench_engine(**_given(settings, 'rounds', 'batch_size'), model=name)


def _epoch(name: str, settings: 'Settings') -> Rows:
    from ..bench.epoch import bench_epoch

    return bench_epoch(**_given(settings, 'rounds', 'batch_size'), model=name)


def _export(name: str, settings: 'Settings') -> Rows:
    from ..bench.exports import bench_export

    return bench_export([name], settings)


def _given(settings: 'Settings', *names: str) -> dict[str, Any]:
    """What the user has set of these, and where to report a measurement."""
    given = {name: getattr(settings, name) for name in names if getattr(settings, name)}
    return {'advance': settings.advance, **given}


# A network of each method, as deep as most tables of the papers have it.
FAMILIES = (
    'eunnet50', 'nf_resnet50', 'nf_regnet_b0', 'dm_nf_resnet50', 'dm_nf_regnet_b0', 'fixup_resnet50',
    'skipinit_resnet50', 'rescalenet50', 'idshort_resnet50', 'learnscalar_resnet50', 'convshort_resnet50',
    'wn_resnet50',
)  # fmt: skip
NETWORK = frozenset({'names', 'batch_size', 'img_size', 'device', 'dtype', 'channels_last', 'compile', 'peer'})
RECIPE = frozenset({'names', 'batch_size'})
BENCHES: dict[str, Bench] = {
    'inference': Bench(_inference, NETWORK, FAMILIES),
    'training': Bench(_training, NETWORK, FAMILIES),
    'memory': Bench(_memory, NETWORK, FAMILIES),
    'depth': Bench(_depth, NETWORK - {'peer'}, ('eunnet50', 'nf_resnet50')),
    'import': Bench(_import),
    'engine': Bench(_engine, RECIPE, ('eunnet20_cifar',)),
    'epoch': Bench(_epoch, RECIPE, ('eunnet20_cifar',)),
    'export': Bench(_export, RECIPE | {'img_size', 'peer'}, ('eunnet50', 'nf_resnet50')),
}


def _parts(args: argparse.Namespace) -> list[str]:
    """The benches to run. Raises `UserError` for an unknown one, and for an option that it doesn't take."""
    if args.what == 'all':
        return list(BENCHES)
    if args.what not in BENCHES:
        raise UserError(f"no bench '{args.what}': use {', '.join(BENCHES)} or all{nearest(args.what, BENCHES)}")
    for option in sorted(NETWORK - BENCHES[args.what].takes):
        if getattr(args, option) not in (None, []):
            given = 'NAME' if option == 'names' else f'--{option.replace("_", "-")}'
            raise UserError(f'bench {args.what} takes no {given} (`nf-zoo bench --help` shows the usage)')
    return [args.what]


def _bench(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..analysis.plots import check_suffix
    from ..bench import output
    from ..inference.loading import resolve

    parts = _parts(args)
    for name in args.names:
        resolve(name, pretrained=False)  # an unknown one is refused before anything is measured
    if args.output:
        check_suffix(args.output)
    work = [
        (BENCHES[part], name)
        for part in parts
        for name in ('names' in BENCHES[part].takes and args.names) or BENCHES[part].names
    ]
    rows: list[BenchRow] = []
    with tqdm(work, desc=args.what, unit='network', leave=False, disable=not sys.stderr.isatty()) as bar:
        measured = 0

        def advance() -> None:
            nonlocal measured
            measured += 1
            bar.set_postfix_str(f'{measured} measurements')

        settings = _settings(args, advance)
        machine = output.machine(settings.device)
        say(output.describe(machine))
        for bench, name in bar:
            for row in _measured(bench, name, settings):
                rows.append(row)
                bar.clear()
                say(str(row))
    command = _command(args)
    if args.json:
        output.write_json(args.json, command, machine, rows)
    if args.output:
        output.draw_bars(args.output, command, output.describe(machine), rows)


def _measured(bench: Bench, name: str, settings: 'Settings') -> Rows:
    with refused(f'{name or "the bench"} cannot be measured with these settings'):
        yield from bench.run(name, settings)


def _settings(args: argparse.Namespace, advance: Callable[[], object]) -> 'Settings':
    import torch

    from ..bench.settings import Settings
    from ..train.build import open_device

    if args.threads:
        torch.set_num_threads(args.threads)
    return Settings(
        batch_size=args.batch_size,
        img_size=args.img_size,
        device=open_device(args.device or 'cpu'),
        bfloat16=args.dtype == 'bf16',
        channels_last=args.channels_last is not False,
        compiled=bool(args.compile),
        peers=tuple(dict.fromkeys(args.peer or ['bn'])),
        rounds=args.rounds,
        advance=advance,
    )


def _command(args: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = ['nf-zoo', 'bench', args.what, *args.names]
    for option in ('batch_size', 'img_size', 'device', 'dtype', 'rounds', 'threads'):
        if getattr(args, option):
            words += [f'--{option.replace("_", "-")}', str(getattr(args, option))]
    if args.channels_last is not None:
        words.append('--channels-last' if args.channels_last else '--no-channels-last')
    if args.compile:
        words.append('--compile')
    for peer in args.peer or ():
        words += ['--peer', peer]
    return shlex.join(words)


def _options(add: Add) -> None:
    add('what', nargs='?', default='all', metavar='WHAT', help=f'{", ".join(BENCHES)} or all (all)')
    add('names', nargs='*', metavar='NAME', help='networks of nf_zoo or timm (one of each method)')
    add('--batch-size', type=count, metavar='N', help='images (8; inference 1 and 8, depth 2)')
    add('--img-size', type=count, metavar='PIXELS', help="side of the images (the network's, depth 128)")
    add('--device', metavar='DEVICE', help='cpu, cuda or another one of torch (cpu)')
    add('--dtype', choices=('float32', 'bf16'), help='bf16: autocast computes in bfloat16 (float32)')
    add(
        '--channels-last',
        action=argparse.BooleanOptionalAction,
        help='memory format of images and weights (channels last)',
    )
    add('--compile', action='store_true', default=None, help='compile networks and peers by torch.compile')
    add(
        '--peer',
        action='append',
        metavar='PEER',
        help="what to compare with, may be given again: bn (timm's ResNet with batch normalization, or a twin), "
        'gn (the same with group normalization), floor (plain convolutions alone), '
        "timm (timm's own network of this name), eager (the network itself, not compiled), or a name of timm (bn)",
    )
    add('--rounds', type=count, metavar='N', help='rounds that count, all networks in turn in each (3 to 15)')
    add('--threads', type=count, metavar='N', help="threads of the processor (torch's)")
    add('--json', type=output_file, metavar='FILE', help='write all rows, the machine and the command')
    add('-o', '--output', type=output_file, metavar='FILE', help='write a picture, .png or .svg: bars with quartiles')


COMMANDS = {
    'bench': Command(
        'measure speed and memory as ratios to peers',
        'nf-zoo bench training eunnet50 --peer bn --peer floor --json training.json -o training.png',
        _options,
        _bench,
    )
}
