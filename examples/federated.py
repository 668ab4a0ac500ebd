"""Federated averaging: ten clients with two classes each, and the average of their parameters.

Each round, every client trains a copy of the model on its own digits alone, and the server averages the copies. Of a
network without batch normalization ``parameters()`` is the whole model. With batch normalization the running statistics
have to be averaged too, and each client's are those of its two classes. All networks start from their CIFAR-10 weights.

    python examples/federated.py            # some minutes; --quick: seconds
"""

from collections.abc import Sequence
from copy import deepcopy

import timm
import torch
from common import Row, compare, finish, parser_of, prepared, progress, scans, start, top1
from torch import Tensor, nn
from torch.nn import functional as F

import nf_zoo  # noqa: F401  registers the models

ARMS = ('nf_resnet20_cifar', 'gn_resnet20_cifar', 'bn_resnet20_cifar')
RATES = (0.03, 0.1, 0.3)
SIDE, BATCH, CLIENTS = 16, 16, 10


def shares(classes: Tensor) -> list[Tensor]:
    """The numbers of each client's images: client i has half of class i and half of the next class."""
    halves = [(classes == digit).nonzero()[:, 0].chunk(2) for digit in range(10)]
    return [torch.cat([halves[i][0], halves[(i + 1) % 10][1]]) for i in range(CLIENTS)]


def local(model: nn.Module, images: Tensor, classes: Tensor, own: Tensor, lr: float) -> nn.Module:
    """A copy that has seen the client's ``own`` images once, with plain SGD."""
    copy = deepcopy(model).train()
    optimizer = torch.optim.SGD(copy.parameters(), lr=lr)
    for index in own[torch.randperm(len(own))].split(BATCH):
        loss = F.cross_entropy(copy(images[index]), classes[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(copy.parameters(), 5.0)
        optimizer.step()
    return copy


@torch.no_grad()
def average(model: nn.Module, copies: Sequence[nn.Module]) -> None:
    """Give ``model`` the mean of the copies' parameters, and of its buffers, which only batch normalization has."""
    for tensor, *others in zip(*([*m.parameters(), *m.buffers()] for m in (model, *copies)), strict=True):
        tensor.copy_(torch.stack([other.to(torch.float64) for other in others]).mean(0))


def main(argv: Sequence[str] | None = None) -> list[Row]:
    args = parser_of(__doc__).parse_args(argv)
    images, classes = scans('train', SIDE, 60 if args.quick else None)
    held_out, answers = scans('validation', SIDE, 20 if args.quick else None)
    images, held_out = prepared(images), prepared(held_out)
    rounds, rates = (1, RATES[:1]) if args.quick else (6, RATES)

    def run(name: str, lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        model = timm.create_model(f'{name}.cifar10', pretrained=True)
        model.reset_classifier(10)
        for _ in progress(range(rounds), f'{name}, rate {lr:g}, seed {seed}'):
            average(model, [local(model, images, classes, own, lr) for own in shares(classes)])
        return top1(model, held_out, answers)

    return finish(compare(ARMS, rates, 1, run, 'top-1'), args.output)


if __name__ == '__main__':
    start(main)
