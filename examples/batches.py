"""What the examples of batch sizes share: options, images, order of the runs, CSV file of results, table, curves."""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from common import Row
from torch import Tensor

from nf_zoo.cli.parser import output_file
from nf_zoo.errors import UserError
from nf_zoo.net.registry import CIFAR
from nf_zoo.train.curves import COLOURS
from nf_zoo.train.report import hardware

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ['batch', 'form', 'lr', 'seed', 'top1', 'n', 'seconds', 'hardware']
SEEDS = (0, 1, 2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What both examples take: where the results are, how long to go on, and what to show of them instead."""
    parser.add_argument('--output', type=output_file, required=True, metavar='FILE', help='CSV file of the results')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many minutes')
    parser.add_argument('--table', action='store_true', help='print the table of the results and stop')
    parser.add_argument('--picture', type=output_file, metavar='FILE', help='draw the results and stop')


def show(
    args: argparse.Namespace, draw: Callable[[list[Row], Path], None], batches: Sequence[int], forms: Sequence[str]
) -> bool:
    """Draw and print the results as the options say; whether they say so. Raises `UserError` where there are none."""
    if not args.picture and not args.table:
        return False
    rows = read(args.output)
    if not rows:
        raise UserError(f'{args.output} has no results yet')
    if args.picture:
        draw(rows, args.picture)
    if args.table:
        print(table(rows, batches, forms))
    return True


def normalized(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) of 0 to 255 as networks of the CIFAR layouts take them."""
    mean, std = (torch.tensor(CIFAR[key]).view(3, 1, 1) for key in ('mean', 'std'))
    return (images / 255 - mean) / std


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def append(path: Path, row: Sequence[object]) -> None:
    """Add a row. Programs that run at the same time may share the file."""
    new = not path.exists() or not path.stat().st_size
    with open(path, 'a', newline='') as file:
        csv.writer(file).writerows([COLUMNS, row] if new else [row])


def rows_of(rows: list[Row], batch: int, form: str) -> list[Row]:
    """Those of a form at ``batch`` images a step."""
    return [row for row in rows if (row['batch'], row['form']) == (str(batch), form)]


def best_rate(rows: list[Row]) -> float:
    """The rate with the best accuracy of seed 0."""
    return float(max((row for row in rows if row['seed'] == '0'), key=lambda row: float(row['top1']))['lr'])


def best_runs(rows: list[Row]) -> list[float]:
    """Accuracies of the best rate's seeds."""
    lr = best_rate(rows)
    return [float(row['top1']) for row in rows if float(row['lr']) == lr]


def missing(rows: list[Row], rates: Sequence[float]) -> list[tuple[float, int]]:
    """Rate and seed of the runs that come next in a form: the ``rates`` with seed 0, then the best with all seeds."""
    done = {(float(row['lr']), int(row['seed'])) for row in rows}
    todo = [(lr, SEEDS[0]) for lr in rates if (lr, SEEDS[0]) not in done]
    return todo or [(best_rate(rows), seed) for seed in SEEDS if (best_rate(rows), seed) not in done]


def following(
    path: Path, parts: Iterable[tuple[int, Sequence[str]]], rates: Callable[[int, list[Row]], Sequence[float]]
) -> Iterator[tuple[int, str, list[tuple[float, int]]]]:
    """Batch size, form, and rate and seed of the next runs of it, as long as ``path`` lacks some.

    Args:
        path: The results. They are read again before each run.
        parts: Batch sizes and their forms, in order.
        rates: Takes the batch size and the rows of a form at it; returns the rates that seed 0 must have taken, before
            the best one runs with the other seeds.
    """
    for batch, forms in parts:
        for form in forms:
            while todo := missing(rows := rows_of(read(path), batch, form), rates(batch, rows)):
                yield batch, form, todo


def run_all(
    path: Path,
    runs: Iterator[tuple[int, str, list[tuple[float, int]]]],
    run: Callable[[str, int, list[tuple[float, int]]], list[float]],
    images: int,
    minutes: float,
    device: torch.device,
    together: bool = False,
) -> None:
    """Make the runs, of which each becomes a row of ``path``, and start none after ``minutes``.

    Args:
        path: The results.
        runs: As from :func:`following`.
        run: Takes form, batch size, and rate and seed of each run; returns their accuracies in percent.
        images: The number of images that accuracies are measured on.
        minutes: Of this call.
        device: Where the runs compute; its name becomes a part of the row.
        together: Hand over all runs that may come next, not one after the other.
    """
    start = time.monotonic()
    for batch, form, todo in runs:
        if time.monotonic() - start >= 60 * minutes:
            return
        todo = todo if together else todo[:1]
        begin = time.process_time()
        found = run(form, batch, todo)
        seconds = (time.process_time() - begin) / len(todo)
        for (lr, seed), accuracy in zip(todo, found, strict=True):
            row = [batch, form, lr, seed, f'{accuracy:.2f}', images, f'{seconds:.0f}', hardware(device)]
            append(path, row)
            print(*row, flush=True)


def table(rows: list[Row], batches: Sequence[int], forms: Sequence[str]) -> str:
    """Mean of the best rate's seeds with its lowest and highest, and the worst rate's accuracy with seed 0."""
    lines = [
        '| images a step | form | rate | seeds | top-1, mean | lowest to highest | worst rate |',
        '|---|---|---|---|---|---|---|',
    ]
    for batch in batches:
        for form in forms:
            own = rows_of(rows, batch, form)
            if own:
                best = best_runs(own)
                worst = min((float(row['top1']), float(row['lr'])) for row in own if row['seed'] == '0')
                lines.append(
                    f'| {batch} | {form} | {best_rate(own):g} | {len(best)} | {statistics.mean(best):.1f} % '
                    f'| {min(best):.1f} to {max(best):.1f} % | {worst[0]:.1f} % ({worst[1]:g}) |'
                )
    return '\n'.join(lines)


def draw_best(axes: 'Axes', rows: list[Row], batches: Sequence[int], names: dict[str, str]) -> None:
    """Mean accuracy of each form's best rate over the batch size, with the range of the seeds as a band."""
    for (form, name), colour in zip(names.items(), COLOURS, strict=False):
        found = [(batch, best_runs(own)) for batch in batches if (own := rows_of(rows, batch, form))]
        sizes = [batch for batch, _ in found]
        axes.plot(sizes, [statistics.mean(best) for _, best in found], marker='o', color=colour, label=name)
        low, high = [min(best) for _, best in found], [max(best) for _, best in found]
        axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xscale('log', base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel('images a step')
