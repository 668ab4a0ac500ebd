"""Training from scratch at 1, 2, 8 and 32 images a step: batch and group normalization, EUNNet and NF-ResNet.

Networks of depth 20 are trained on 5,000 images of CIFAR-10 for eight epochs, and scored on its 10,000 test images.
SGD with momentum and no weight decay; the rate rises for a tenth of the steps and then falls to 0. Images are flipped
and shifted, and gradients have norm 5 at most. Convolutions compute in TF32 on a GPU; on a CPU in bfloat16, one image
alone in float32.

At each batch size a network takes three or four learning rates with one seed. While the highest or the lowest one is
the best, the next one is tried too. The best one then runs with three seeds. Results are rows of a CSV file; a run
that stands there is not repeated, so the script can be stopped and started again. Several of them may share the file,
each with batch sizes or networks of its own. On a GPU the rates run side by side, and so do the seeds.

    python examples/batch_size.py --data-dir DIR --output RESULTS.csv --compile
    python examples/batch_size.py --data-dir DIR --output RESULTS.csv --device cuda --batch-sizes 1
    python examples/batch_size.py --output RESULTS.csv --table --picture FILE.svg
"""

import argparse
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from batches import add_options, best_rate, draw_best, following, normalized, run_all, show
from common import Row, fit, start, top1
from side_by_side import Images, SideBySide
from torch import Tensor

import nf_zoo  # noqa: F401  registers the models
from nf_zoo.analysis.plots import new_figure, save
from nf_zoo.cli.parser import Parser
from nf_zoo.errors import UserError
from nf_zoo.train import load_dataset
from nf_zoo.train.build import open_device
from nf_zoo.train.data.memory import crop_and_flip

NAMES = {
    'eunnet20_cifar': 'EUNNet',
    'nf_resnet20_cifar': 'NF-ResNet',
    'bn_resnet20_cifar': 'batch normalization',
    'gn_resnet20_cifar': 'group normalization',
}
ARMS = tuple(NAMES)
RATES = {  # images a step -> learning rates that every network takes
    1: (0.001, 0.003, 0.01),
    2: (0.003, 0.01, 0.03),
    8: (0.003, 0.01, 0.03, 0.1),
    32: (0.01, 0.03, 0.1, 0.3),
}
LADDER = (0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
IMAGES_PER_CLASS, EPOCHS, SHIFT = 500, 8, 4


def images_of(data_dir: str, split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) of CIFAR-10, normalised, and their classes (N,). ``per_class``: the first ones of each."""
    found = load_dataset('cifar10', data_dir, split)
    images, labels = found.images, found.labels
    if per_class:
        index = torch.cat([(labels == label).nonzero()[:per_class, 0] for label in range(10)])
        images, labels = images[index], labels[index]
    return normalized(images), labels


def padded_form(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, H + 2 SHIFT, W + 2 SHIFT, 3), with zeros around."""
    return F.pad(images, [SHIFT] * 4).permute(0, 2, 3, 1).contiguous()


def flipped_and_shifted(padded: Tensor, index: Tensor) -> Tensor:
    """The images of ``index``, each flipped or not and cut out of its padded form.

    ``padded``: (N, H + 2 SHIFT, W + 2 SHIFT, 3) -> (B, 3, H, W), channels last.
    """
    return cut(padded, index, *places(len(index)))


def places(count: int) -> tuple[Tensor, Tensor]:
    """Where ``count`` images are cut, (2, B), and whether they are flipped, (B,)."""
    return torch.randint(2 * SHIFT + 1, (count, 2)).T, torch.rand(count) < 0.5


def cut(padded: Tensor, index: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
    """Windows of the padded images: (N, H + 2 SHIFT, W + 2 SHIFT, 3) -> (B, 3, H, W), channels last."""
    return crop_and_flip(padded, index, corners, mirrored, padded.shape[1] - 2 * SHIFT).permute(0, 3, 1, 2)


def run_together(
    data: tuple[Tensor, ...], device: torch.device, name: str, batch: int, runs: list[tuple[float, int]]
) -> list[float]:
    """Train a network for each rate and seed, all at once; their accuracies on the test images in percent."""
    images, labels, test_images, test_labels = (tensor.to(device) for tensor in data)
    networks = SideBySide(name, batch, runs, Images(padded_form(images), labels), EPOCHS, places, cut)
    networks.train(f'{name}, {batch} images a step, {len(runs)} runs')
    return networks.top1(test_images, test_labels)


def run(data: tuple[Tensor, ...], compiled: bool, name: str, batch: int, runs: list[tuple[float, int]]) -> list[float]:
    """Train a network with the rate and seed of the only one of ``runs``; its accuracy in percent."""
    ((lr, seed),) = runs
    images, labels, test_images, test_labels = data
    torch.manual_seed(seed)
    model = timm.create_model(name).to(memory_format=torch.channels_last)
    forward = torch.compile(model, dynamic=False) if compiled else model
    padded = padded_form(images)

    def loss(index: Tensor) -> Tensor:
        with torch.autocast('cpu', torch.bfloat16, enabled=batch > 1):  # one image is faster without it
            logits = forward(flipped_and_shifted(padded, index))
        return F.cross_entropy(logits.float(), labels[index])

    fit(model.train(), loss, len(images), batch, EPOCHS, lr, f'{name}, {batch} images a step, rate {lr:g}, seed {seed}')
    with torch.autocast('cpu', torch.bfloat16):
        return [top1(model, test_images.contiguous(memory_format=torch.channels_last), test_labels)]


def rates(batch: int, rows: list[Row]) -> list[float]:
    """What seed 0 must have taken: those of RATES, and the next ones of LADDER while the last one is the best."""
    tried = sorted({*RATES[batch], *(float(row['lr']) for row in rows)})
    if set(RATES[batch]) <= {float(row['lr']) for row in rows}:
        place = LADDER.index(best_rate(rows))
        if LADDER[place] == tried[-1]:
            tried += LADDER[place + 1 : place + 2]
        elif LADDER[place] == tried[0]:
            tried += LADDER[max(place - 1, 0) : place]
    return tried


def draw(rows: list[Row], path: Path) -> None:
    figure = new_figure(7.2, 4.0)
    axes = figure.subplots()
    draw_best(axes, rows, list(RATES), NAMES)
    axes.set(ylabel='top-1 on the 10,000 test images, %', title='5,000 images of CIFAR-10, depth 20, 8 epochs')
    axes.grid(alpha=0.3)
    figure.suptitle('From scratch with few images a step: the best rate, mean and range of its seeds', fontsize=11)
    figure.legend(loc='outside lower center', ncols=len(NAMES))
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog='python examples/batch_size.py',
        description=__doc__.splitlines()[0],
        epilog=__doc__.split('\n\n', 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--data-dir', metavar='DIR', help='folder of cifar-10-batches-py')
    add_options(parser)
    parser.add_argument(
        '--batch-sizes', type=int, nargs='+', choices=list(RATES), default=[2, 8, 32, 1], help='which ones, in order'
    )
    parser.add_argument(
        '--networks', nargs='+', choices=ARMS, default=ARMS, metavar='NAME', help='which ones, in order'
    )
    parser.add_argument('--compile', action='store_true', help='compile the networks: twice as fast at one image')
    parser.add_argument('--device', default='cpu', help='cpu or cuda; a GPU captures whole steps instead of compiling')
    args = parser.parse_args(argv)
    if show(args, draw, list(RATES), ARMS):
        return
    if args.data_dir is None:
        raise UserError('training needs the images: --data-dir DIR')
    data = (*images_of(args.data_dir, 'train', IMAGES_PER_CLASS), *images_of(args.data_dir, 'validation'))
    device = open_device(args.device)
    together = device.type == 'cuda'
    one = partial(run_together, data, device) if together else partial(run, data, args.compile)
    runs = following(args.output, [(batch, args.networks) for batch in args.batch_sizes], rates)
    run_all(args.output, runs, one, len(data[3]), args.minutes, device, together)


if __name__ == '__main__':
    start(main)
