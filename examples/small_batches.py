"""Fine-tuning at 1, 2, 8 and 32 images a step: batch normalization, and what can take its place.

CIFAR-10 weights are fine-tuned on 2,400 photographs of Imagenette at 32 pixels, in four forms of one network:

* bn: with batch normalization,
* frozen: its statistics are constants, its weights and biases are trained,
* converted: ``nf_zoo.convert``, so weight normalization,
* folded: ``nf_zoo.fold``, so plain convolutions.

Each form takes every learning rate of its batch size with one seed; the best rate then runs with three seeds. Results
are rows of a CSV file; a run that stands there is not repeated, so the script can be stopped and started again.

    python examples/small_batches.py --data DIR --output RESULTS.csv            # DIR/train/CLASS/*.jpg, DIR/val/...
    python examples/small_batches.py --output RESULTS.csv --table --picture FILE.png
"""

import argparse
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from batches import add_options, draw_best, following, normalized, rows_of, run_all, show
from common import Row, start, top1
from PIL import Image
from torch import Tensor, nn

import nf_zoo
from nf_zoo.analysis.plots import new_figure, save
from nf_zoo.train.curves import COLOURS

RATES = {  # images a step -> learning rates
    1: (0.0001, 0.0003, 0.001),
    2: (0.0003, 0.001, 0.003, 0.01),
    8: (0.001, 0.003, 0.01, 0.03),
    32: (0.003, 0.01, 0.03, 0.1),
}
FORMS = ('converted', 'frozen', 'bn', 'folded')
# Of the converted network at two images a step: with weight decay, with it but not of g and biases, and with AGC.
VARIANTS = ('converted, decay', 'converted, decay of v', 'converted, AGC')
ARMS = (*FORMS, *VARIANTS)
TRAIN_IMAGES, EPOCHS = 2400, 2


def images_of(folder: Path, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), normalised, and classes (N,) of DIR/CLASS/IMAGE. ``limit``: images in all."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(path.glob('*.*'))
        for file in files[: limit // len(classes)] if limit else files:
            with Image.open(file) as image:
                small = image.convert('RGB').resize((32, 32), Image.Resampling.BICUBIC)
            pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(32, 32, 3)
            images.append(pixels.permute(2, 0, 1))
            labels.append(label)
    return normalized(torch.stack(images)), torch.tensor(labels)


def network(form: str, seed: int) -> nn.Module:
    """The pretrained network with a new classifier, in one of the forms."""
    torch.manual_seed(seed)
    model = timm.create_model('bn_resnet20_cifar.cifar10', pretrained=True)
    model.reset_classifier(10)
    if form.startswith('converted'):
        return nf_zoo.convert(model)
    if form == 'folded':
        return nf_zoo.fold(model).requires_grad_()
    return model


def parameters_of(model: nn.Module, form: str) -> list[dict]:
    """Groups for the optimizer. Without 'decay' in its name a form has no weight decay."""
    decayed = {
        'converted, decay': lambda name: True,
        'converted, decay of v': lambda name: name.endswith('weight'),
    }.get(form, lambda name: False)
    named = list(model.named_parameters())
    return [
        {'params': [p for name, p in named if decayed(name)], 'weight_decay': 5e-4},
        {'params': [p for name, p in named if not decayed(name)], 'weight_decay': 0.0},
    ]


def run(data: tuple[Tensor, ...], form: str, batch: int, runs: list[tuple[float, int]]) -> list[float]:
    """Fine-tune with the rate and seed of the only one of ``runs``, by SGD, the rate falling to 0; accuracy on the
    validation images.
    """
    ((lr, seed),) = runs
    images, labels, val_images, val_labels = data
    model = network(form, seed)
    optimizer = torch.optim.SGD(parameters_of(model, form), lr=lr, momentum=0.9)
    steps = EPOCHS * len(images) // batch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train(form != 'frozen')
    order = (i for _ in range(EPOCHS) for i in torch.randperm(len(images)).split(batch))
    for index in order:
        x = images[index]
        if torch.rand(()) < 0.5:
            x = x.flip(3)
        loss = F.cross_entropy(model(x), labels[index])
        optimizer.zero_grad()
        loss.backward()
        if form == 'converted, AGC':
            nf_zoo.agc_([p for name, p in model.named_parameters() if not name.startswith('head.')], clip=0.01)
        optimizer.step()
        schedule.step()
    return [top1(model, val_images, val_labels)]


NAMES = {'converted': 'converted (weight normalization)', 'frozen': 'BN, frozen', 'bn': 'BN', 'folded': 'folded'}


def draw(rows: list[Row], path: Path) -> None:
    """Left: accuracy of the best rate over the images a step. Right: accuracy over the rate, at two images a step."""
    figure = new_figure(9.2, 3.8)
    left, right = figure.subplots(1, 2)
    batches = [batch for batch in RATES if any(row['batch'] == str(batch) for row in rows)]
    draw_best(left, rows, batches, NAMES)
    for form, colour in zip(NAMES, COLOURS, strict=False):
        points = sorted((float(row['lr']), float(row['top1'])) for row in rows_of(rows, 2, form) if row['seed'] == '0')
        right.plot(*zip(*points, strict=True), marker='o', color=colour)
    left.set(ylabel='top-1 on 3,925 photographs, %', title='the best rate: mean and range of 3 seeds')
    right.set(xscale='log', xlabel='learning rate', title='two images a step, one seed')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(
        'ResNet-20 with and without batch normalization (BN), fine-tuned with few images a step', fontsize=11
    )
    figure.legend(loc='outside lower center', ncols=len(FORMS))
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, help='folder with train/CLASS/IMAGE and val/CLASS/IMAGE')
    add_options(parser)
    args = parser.parse_args()
    if show(args, draw, list(RATES), ARMS):
        return
    data = (*images_of(args.data / 'train', TRAIN_IMAGES), *images_of(args.data / 'val'))
    parts = [(2, FORMS), (8, FORMS), (32, FORMS), (1, FORMS), (2, VARIANTS)]
    runs = following(args.output, parts, lambda batch, _: RATES[batch])
    run_all(args.output, runs, partial(run, data), len(data[3]), args.minutes, torch.device('cpu'))


if __name__ == '__main__':
    start(main)
