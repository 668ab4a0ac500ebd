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
import csv
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import nf_zoo
from nf_zoo.analysis.plots import new_figure, save
from nf_zoo.train.curves import COLOURS

COLUMNS = ['batch', 'form', 'lr', 'seed', 'top1', 'n', 'seconds']
RATES = {  # images a step -> learning rates
    1: (0.0001, 0.0003, 0.001),
    2: (0.0003, 0.001, 0.003, 0.01),
    8: (0.001, 0.003, 0.01, 0.03),
    32: (0.003, 0.01, 0.03, 0.1),
}
FORMS = ('converted', 'frozen', 'bn', 'folded')
# Of the converted network at two images a step: with weight decay, with it but not of g and biases, and with AGC.
VARIANTS = ('converted, decay', 'converted, decay of v', 'converted, AGC')
TRAIN_IMAGES, EPOCHS, SEEDS = 2400, 2, (0, 1, 2)


def images_of(folder: Path, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), normalised, and classes (N,) of DIR/CLASS/IMAGE. ``limit``: images in all."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    images, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(path.glob('*.*'))
        for file in files[: limit // len(classes)] if limit else files:
            with Image.open(file) as image:
                small = image.convert('RGB').resize((32, 32), Image.Resampling.BICUBIC)
            pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(32, 32, 3)
            images.append(((pixels / 255 - mean) / std).permute(2, 0, 1))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


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


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy in percent, in eval mode."""
    model.eval()
    with torch.no_grad():
        right = sum(
            (model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(256), labels.split(256), strict=True)
        )
    return 100 * right / len(labels)


def run(form: str, batch: int, lr: float, seed: int, data: tuple[Tensor, ...]) -> float:
    """Fine-tune for some epochs with SGD, the rate falling to 0; accuracy on the validation images."""
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
    return top1(model, val_images, val_labels)


def plan(rows: list[dict[str, str]]) -> Iterator[tuple[int, str, float, int]]:
    """The next run of each form and batch size: every rate with seed 0, then the best rate with the other seeds."""
    forms = [(2, FORMS), (8, FORMS), (32, FORMS), (1, FORMS), (2, VARIANTS)]
    for batch, names in forms:
        for form in names:
            done = {(float(r['lr']), int(r['seed'])) for r in rows if (r['batch'], r['form']) == (str(batch), form)}
            todo = [(lr, 0) for lr in RATES[batch] if (lr, 0) not in done]
            if not todo:
                lr = best_rate(rows, batch, form)
                todo = [(lr, seed) for seed in SEEDS if (lr, seed) not in done]
            if todo:
                yield batch, form, *todo[0]


def best_rate(rows: list[dict[str, str]], batch: int, form: str) -> float:
    """The rate with the best accuracy of seed 0."""
    own = [r for r in rows if (r['batch'], r['form'], r['seed']) == (str(batch), form, '0')]
    return float(max(own, key=lambda r: float(r['top1']))['lr'])


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]]) -> str:
    """Mean of the best rate's seeds with its lowest and highest, and the worst rate's accuracy with seed 0."""
    lines = [
        '| images a step | form | rate | seeds | top-1, mean | lowest to highest | worst rate |',
        '|---|---|---|---|---|---|---|',
    ]
    for batch in RATES:
        for form in (*FORMS, *VARIANTS):
            own = [r for r in rows if (r['batch'], r['form']) == (str(batch), form)]
            if own:
                lr = best_rate(rows, batch, form)
                best = [float(r['top1']) for r in own if float(r['lr']) == lr]
                worst = min((float(r['top1']), float(r['lr'])) for r in own if r['seed'] == '0')
                lines.append(
                    f'| {batch} | {form} | {lr:g} | {len(best)} | {statistics.mean(best):.1f} % '
                    f'| {min(best):.1f} to {max(best):.1f} % | {worst[0]:.1f} % ({worst[1]:g}) |'
                )
    return '\n'.join(lines)


NAMES = {'converted': 'converted (weight normalization)', 'frozen': 'BN, frozen', 'bn': 'BN', 'folded': 'folded'}


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Left: accuracy of the best rate over the images a step. Right: accuracy over the rate, at two images a step."""
    figure = new_figure(9.2, 3.8)
    left, right = figure.subplots(1, 2)
    batches = [batch for batch in RATES if any(r['batch'] == str(batch) for r in rows)]
    for form, colour in zip(FORMS, COLOURS, strict=False):
        found = []
        for batch in batches:
            own = [r for r in rows if (r['batch'], r['form']) == (str(batch), form)]
            if own:
                best = [float(r['top1']) for r in own if float(r['lr']) == best_rate(rows, batch, form)]
                found.append((batch, statistics.mean(best), min(best), max(best)))
        x, mean, low, high = zip(*found, strict=True)
        left.plot(x, mean, marker='o', color=colour, label=NAMES[form])
        left.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        points = sorted(
            (float(r['lr']), float(r['top1'])) for r in rows if (r['batch'], r['form'], r['seed']) == ('2', form, '0')
        )
        right.plot(*zip(*points, strict=True), marker='o', color=colour)
    left.set_xscale('log', base=2)
    left.set_xticks(batches, [str(batch) for batch in batches])
    left.set(
        xlabel='images a step', ylabel='top-1 on 3,925 photographs, %', title='the best rate: mean and range of 3 seeds'
    )
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
    parser.add_argument('--output', type=Path, required=True, help='CSV file of the results')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many minutes')
    parser.add_argument('--table', action='store_true', help='print the table of the results and stop')
    parser.add_argument('--picture', type=Path, help='draw the results and stop')
    args = parser.parse_args()
    if args.picture:
        draw(read(args.output), args.picture)
    if args.table:
        print(table(read(args.output)))
    if args.picture or args.table:
        return
    data = (*images_of(args.data / 'train', TRAIN_IMAGES), *images_of(args.data / 'val'))
    start = time.monotonic()
    while time.monotonic() - start < 60 * args.minutes:
        rows = read(args.output)
        following = next(plan(rows), None)
        if following is None:
            break
        batch, form, lr, seed = following
        begin = time.monotonic()
        accuracy = run(form, batch, lr, seed, data)
        values = [batch, form, lr, seed, f'{accuracy:.2f}', len(data[3]), f'{time.monotonic() - begin:.0f}']
        with open(args.output, 'a', newline='') as file:
            writer = csv.writer(file)
            if not rows:
                writer.writerow(COLUMNS)
            writer.writerow(values)
        print(*values, flush=True)


if __name__ == '__main__':
    main()
