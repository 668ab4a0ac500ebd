"""What the examples share: digits and scenes of digits, training with SGD, one choice of rates for all, and tables.

The pictures are scikit-learn's scans of handwritten digits (UCI optdigits, 8 x 8 pixels), so boxes and masks are known
by construction.
"""

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from nf_zoo.cli.parser import Parser, fail, output_file
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.files import write_whole
from nf_zoo.text import say
from nf_zoo.train import load_dataset

Row = dict[str, str]
MEAN, STD = 0.25, 0.35  # of the pixels, between 0 and 1
PRETRAINING_RATE = 0.05  # of every network; not tuned
MOMENTUM, CLIP = 0.9, 5.0  # of SGD; the largest norm of a gradient


def parser_of(text: str) -> Parser:
    """The parser of an example: its first line as the description, and the options that every example has."""
    name = Path(sys.argv[0]).name
    parser = Parser(prog=f'python examples/{name}', description=text.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='a few steps on few images, to see whether it runs')
    parser.add_argument('--output', type=_table_file, metavar='FILE', help='write the table too, as .csv or .md')
    return parser


def _table_file(text: str) -> Path:
    path = output_file(text)
    if path.suffix not in ('.csv', '.md'):
        raise argparse.ArgumentTypeError(f"'{path}' doesn't end with .csv or .md")
    return path


def finish(rows: list[Row], output: Path | None) -> list[Row]:
    """Print the table, write it into ``output`` if that is given, and return it."""
    head = list(rows[0])
    lines = ['| ' + ' | '.join(cells) + ' |' for cells in (head, *(row.values() for row in rows))]
    lines.insert(1, '|---' * len(head) + '|')
    for line in lines:
        say(line)
    if output and output.suffix == '.csv':
        text = io.StringIO()
        writer = csv.DictWriter(text, head, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        write_whole(output, text.getvalue().encode())
    elif output:
        write_whole(output, ''.join(f'{line}\n' for line in lines).encode())
    return rows


def start(main: Callable[[], Any]) -> None:
    """Run an example as a program: bad input is one line and exit code 2."""
    try:
        main()
    except (UserError, CheckFailed, OSError) as error:
        sys.exit(fail(error))
    except KeyboardInterrupt:
        say('interrupted', sys.stderr)
        sys.exit(130)


def progress(items: Iterable[Any], text: str) -> Iterable[Any]:
    """The items, with a progress bar where standard error is a terminal."""
    return tqdm(items, desc=text, leave=False, disable=not sys.stderr.isatty())


# ---- data


def scans(split: str, side: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Scans of single digits (N, 1, side, side), 0 to 1 for ink, and their classes (N,), in one random order.

    Raises `UserError` if scikit-learn is missing.
    """
    found = load_dataset('digits', None, split)
    order = torch.randperm(len(found.labels), generator=torch.Generator().manual_seed(0))[:limit]
    grey = found.images[order, :1].float() / 255
    if side != grey.shape[-1]:
        grey = F.interpolate(grey, size=(side, side), mode='bicubic', antialias=True)
    return grey, found.labels[order]


def prepared(grey: Tensor) -> Tensor:
    """Grey pixels between 0 and 1, (N, 1, H, W), as the networks take them: three channels, normalised."""
    return ((grey - MEAN) / STD).expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Scenes:
    """Pictures of digits on noise, with what is to be found in them."""

    images: Tensor  # (N, 3, H, W)
    boxes: list[Tensor]  # of each picture (k, 4): x0, y0, x1, y1 around the ink
    labels: list[Tensor]  # (k,): 0 to 9
    masks: Tensor  # (N, H, W): 0, or 1 + the digit


def scenes(split: str, count: int, side: int, seed: int, sizes: tuple[int, int] = (16, 32)) -> Scenes:
    """``count`` pictures of one to three digits, ``sizes`` pixels high, on ``side`` x ``side`` pixels of noise."""
    digits, classes = scans(split, 32)
    rng = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=rng))

    canvas = torch.rand(count, 1, side, side, generator=rng) * 0.5
    masks = torch.zeros(count, side, side, dtype=torch.long)
    boxes: list[Tensor] = []
    labels: list[Tensor] = []
    for i in range(count):
        placed: list[list[int]] = []
        kinds: list[int] = []
        for _ in range(number(1, 3)):
            size, k = number(*sizes), number(0, len(digits) - 1)
            x, y = number(0, side - size), number(0, side - size)
            if any(x < b[2] and b[0] < x + size and y < b[3] and b[1] < y + size for b in placed):
                continue  # digits don't cover one another
            digit = F.interpolate(digits[k : k + 1], size=(size, size), mode='bilinear')[0, 0]
            ink = digit > 0.3
            window = canvas[i, 0, y : y + size, x : x + size]
            window.copy_(torch.maximum(window, digit * (0.6 + 0.4 * torch.rand((), generator=rng))))
            masks[i, y : y + size, x : x + size][ink] = 1 + classes[k]
            rows, columns = ink.any(1).nonzero(), ink.any(0).nonzero()
            placed.append(
                [x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1],
            )
            kinds.append(int(classes[k]))
        boxes.append(torch.tensor(placed, dtype=torch.float))
        labels.append(torch.tensor(kinds))
    return Scenes(prepared(canvas), boxes, labels, masks)


# ---- training


def sgd(model: nn.Module, lr: float, steps: int) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LRScheduler]:
    """SGD with momentum over the trainable parameters, and its schedule, that of :func:`rate_factor`."""
    learned = [p for p in model.parameters() if p.requires_grad]
    # Not fused, going through the parameters takes 1.8 of the 13.6 ms of a step of ResNet-20 with one image.
    optimizer = torch.optim.SGD(learned, lr=lr, momentum=MOMENTUM, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))


def rate_factor(step: int, steps: int) -> float:
    """The factor of the learning rate at a ``step``: it rises for a tenth of the ``steps``, then falls to 0."""
    rise = max(1, steps // 10)
    return min((step + 1) / rise, 1 - (step - rise) / max(1, steps - rise))


def order_of(count: int, batch: int) -> list[Tensor]:
    """The batches (B,) of an epoch over ``count`` images, in an order that follows from torch's seed."""
    return list(torch.randperm(count)[: count // batch * batch].split(batch))


def fit(
    model: nn.Module, loss_of: Callable[[Tensor], Tensor], count: int, batch: int, epochs: float, lr: float, text: str
) -> None:
    """Train with SGD. ``loss_of`` takes the numbers of a batch's images, of ``count``; gradients have norm 5 at most.

    The order of the images follows from torch's seed.
    """
    steps = max(1, int(epochs * count / batch))
    optimizer, schedule = sgd(model, lr, steps)
    order: list[Tensor] = []
    for _ in progress(range(steps), text):
        if not order:
            order = order_of(count, batch)
        loss = loss_of(order.pop())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()


def network(name: str, width: float, **kwargs: Any) -> nn.Module:
    """``name`` of nf_zoo, or a resnet of timm, for ten classes. ``width``: a factor of all widths but timm's stem."""
    stages = tuple(int(width * channels) for channels in (64, 128, 256, 512))
    sizes: dict[str, Any] = dict(channels=stages) if name.startswith('resnet') else dict(width=width)
    return timm.create_model(name, num_classes=10, **sizes, **kwargs)


def classifier(name: str, width: float, epochs: float, limit: int | None = None) -> nn.Module:
    """A `network` that was trained to classify single digits of 48 pixels on noise, 32 a step.

    ``limit``: the number of held-out digits that are scored.
    """
    torch.manual_seed(0)
    model = network(name, width)
    digits, classes = scans('train', 48)

    def loss(index: Tensor) -> Tensor:
        noisy = torch.maximum(digits[index], 0.5 * torch.rand(len(index), 1, 48, 48))
        return F.cross_entropy(model(prepared(noisy)), classes[index])

    fit(model.train(), loss, len(digits), 32, epochs, PRETRAINING_RATE, f'{name}: pretraining')
    held_out, answers = scans('validation', 48, limit)
    say(f'{name}: {top1(model, prepared(held_out), answers):.1f} % of held-out digits after pretraining')
    return model


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy in percent, in evaluation mode; the model's mode is left as it was."""
    mode = model.training
    model.eval()
    answers = torch.cat([model(x).argmax(1) for x in images.split(128)])
    model.train(mode)
    return 100 * (answers == labels).float().mean().item()


def compare(
    arms: Sequence[str], rates: Sequence[float], seeds: int, run: Callable[[str, float, int], float], metric: str
) -> list[Row]:
    """A row for each arm. Each takes every rate with seed 0; the best rate then runs with the other seeds too.

    Args:
        arms: Names of what is compared.
        rates: Learning rates, the same for every arm.
        seeds: Runs at the best rate.
        run: Takes an arm, a rate and a seed; returns the measured percentage.
        metric: The heading of what is measured.
    """

    def once(arm: str, lr: float, seed: int) -> float:
        value = run(arm, lr, seed)
        say(f'{arm}, rate {lr:g}, seed {seed}: {value:.1f} %', sys.stderr)
        return value

    rows = []
    for arm in arms:
        first = {lr: once(arm, lr, 0) for lr in rates}
        lr = max(first, key=lambda rate: first[rate])
        values = [first[lr], *(once(arm, lr, seed) for seed in range(1, seeds))]
        heading = metric if seeds > 1 else f'{metric}, one seed'
        row = {'network': arm, 'rate': f'{lr:g}', heading: f'{statistics.mean(values):.1f} %'}
        if seeds > 1:
            row[f'lowest to highest of {seeds} seeds'] = f'{min(values):.1f} to {max(values):.1f} %'
        others = (f'{value:.1f} % ({rate:g})' for rate, value in first.items() if rate != lr)
        rows.append(row | {'at the other rates, one seed': ', '.join(others)})
    return rows
