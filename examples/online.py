"""Online learning: a stream of single digits, each predicted first and learned from then.

Without batch normalization ``train()`` computes what ``eval()`` computes, so one forward pass gives the prediction and
the gradient. With it there are two passes: running statistics predict, and the statistics of one image are learned
with, unless those of the pretraining are frozen. All networks start from their CIFAR-10 weights.

    python examples/online.py            # some minutes; --quick: seconds
"""

from collections.abc import Sequence

import timm
import torch
from common import Row, compare, finish, parser_of, prepared, progress, scans, start
from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch.nn import functional as F

import nf_zoo

ARMS = (
    'eunnet20_cifar',
    'nf_resnet20_cifar',
    'gn_resnet20_cifar',
    'bn_resnet20_cifar, statistics trained',
    'bn_resnet20_cifar, statistics frozen',
)
RATES = (0.01, 0.03, 0.1)
SIDE = 16


def network_of(arm: str) -> nn.Module:
    """The pretrained network of an arm, with a new classifier for ten digits."""
    name, _, form = arm.partition(', ')
    model = timm.create_model(f'{name}.cifar10', pretrained=True)
    model.reset_classifier(10)
    return freeze_batch_norm_2d(model) if form == 'statistics frozen' else model


def main(argv: Sequence[str] | None = None) -> list[Row]:
    args = parser_of(__doc__).parse_args(argv)
    images, classes = scans('train', SIDE, 8 if args.quick else 500)
    images = prepared(images)
    rates = RATES[:1] if args.quick else RATES

    def run(arm: str, lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        model = network_of(arm).train()
        one_pass = nf_zoo.is_batch_independent(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        right = 0
        for i in progress(torch.randperm(len(classes)).tolist(), f'{arm}, rate {lr:g}, seed {seed}'):
            image, label = images[i : i + 1], classes[i : i + 1]
            if not one_pass:
                with torch.no_grad():
                    prediction = model.eval()(image)
                model.train()
            logits = model(image)
            if one_pass:
                prediction = logits
            right += int(prediction.argmax(1) == label)
            loss = F.cross_entropy(logits, label)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
        return 100 * right / len(classes)

    return finish(compare(ARMS, rates, 1, run, 'right before learning'), args.output)


if __name__ == '__main__':
    start(main)
