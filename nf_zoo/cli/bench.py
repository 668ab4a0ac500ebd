"""The command `nf-zoo bench`."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import UserError, nearest
from ..text import say
from .parser import Add, Command

if TYPE_CHECKING:
    from ..bench.measure import BenchRow


def _engine() -> 'list[BenchRow]':
    from ..bench.engine import bench_engine

    return bench_engine()


def _epoch() -> 'list[BenchRow]':
    from ..bench.epoch import bench_epoch

    return bench_epoch()


def _inference() -> 'list[BenchRow]':
    from ..bench.networks import bench_inference

    return bench_inference()


def _training() -> 'list[BenchRow]':
    from ..bench.networks import bench_training

    return bench_training()


def _export() -> 'list[BenchRow]':
    from ..bench.exports import bench_export

    return bench_export()


BENCHES: dict[str, 'Callable[[], list[BenchRow]]'] = {
    'engine': _engine,
    'epoch': _epoch,
    'inference': _inference,
    'training': _training,
    'export': _export,
}


def bench(what: str) -> 'list[BenchRow]':
    """Run one bench, or ``all``. Raises `UserError` for an unknown one."""
    if what != 'all' and what not in BENCHES:
        raise UserError(f"no bench '{what}': use {', '.join(BENCHES)} or all{nearest(what, BENCHES)}")
    return [row for name, run in BENCHES.items() if what in (name, 'all') for row in run()]


def _bench(args: argparse.Namespace) -> None:
    for row in bench(args.what):
        say(str(row))


def _options(add: Add) -> None:
    add('what', nargs='?', default='all', metavar='WHAT', help=f'{", ".join(BENCHES)} or all (all)')


COMMANDS = {'bench': Command('measure speed and memory as ratios to peers', 'nf-zoo bench inference', _options, _bench)}
