"""Few-shot learning: MAML through torch.func, a gradient through the gradient steps of many tasks at once.

A task is to tell three digits apart after three scans of each. Start values are learned on tasks with the digits 0 to
5, so that one gradient step learns a task (Finn, Abbeel, Levine, ICML 2017). They are measured on tasks with 6 to 9.
``vmap`` over the tasks refuses batch normalization, because it would change the running statistics.

    python examples/maml.py            # some minutes; --quick: seconds
"""

from collections.abc import Sequence

import timm
import torch
from common import Row, compare, finish, parser_of, prepared, progress, scans, start
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import nf_zoo  # noqa: F401  registers the models

ARMS = ('eunnet20_cifar', 'nf_resnet20_cifar', 'gn_resnet20_cifar')
RATES = (0.001, 0.003, 0.01)
WAYS, SHOTS, QUERIES, TASKS, INNER_RATE = 3, 3, 5, 8, 0.1


def tasks(images: Tensor, classes: Tensor, digits: range, count: int) -> tuple[Tensor, ...]:
    """Images and labels to learn from, and to answer: (count, WAYS * SHOTS, ...) and (count, WAYS * QUERIES, ...)."""
    of_class = [images[classes == digit] for digit in range(10)]
    each = []
    for _ in range(count):
        kinds = torch.tensor(digits)[torch.randperm(len(digits))[:WAYS]].tolist()
        each.append(torch.stack([of_class[k][torch.randperm(len(of_class[k]))[: SHOTS + QUERIES]] for k in kinds]))
    drawn, labels = torch.stack(each), torch.arange(WAYS).repeat(count, 1)
    known, asked = drawn.split([SHOTS, QUERIES], dim=2)
    return (
        known.flatten(1, 2),
        labels.repeat_interleave(SHOTS, 1),
        asked.flatten(1, 2),
        labels.repeat_interleave(QUERIES, 1),
    )


def main(argv: Sequence[str] | None = None) -> list[Row]:
    args = parser_of(__doc__).parse_args(argv)
    images, classes = scans('train', 16)
    images = prepared(images)
    steps, rates = (1, RATES[:1]) if args.quick else (150, RATES)

    def run(name: str, lr: float, seed: int) -> float:
        torch.manual_seed(seed)
        model = timm.create_model(name, depths=(1, 1, 1), width=0.5, num_classes=WAYS)
        parameters = dict(model.named_parameters())
        optimizer = torch.optim.Adam(parameters.values(), lr=lr)

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(model, values, (x,)), y)

        def answers(values: dict[str, Tensor], x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
            gradient = grad(loss)(values, x, y)
            learned = {key: value - INNER_RATE * gradient[key] for key, value in values.items()}
            return functional_call(model, learned, (asked,))

        for _ in progress(range(steps), f'{name}, rate {lr:g}, seed {seed}'):
            known, labels, asked, right = tasks(images, classes, range(6), TASKS)
            logits = vmap(answers, (None, 0, 0, 0))(parameters, known, labels, asked)
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), right.flatten()).backward()
            optimizer.step()
        known, labels, asked, right = tasks(images, classes, range(6, 10), 10 if args.quick else 200)
        with torch.no_grad():
            logits = vmap(answers, (None, 0, 0, 0), chunk_size=10)(parameters, known, labels, asked)
        return 100 * (logits.argmax(2) == right).float().mean().item()

    return finish(compare(ARMS, rates, 1, run, 'new digits, after one step'), args.output)


if __name__ == '__main__':
    start(main)
