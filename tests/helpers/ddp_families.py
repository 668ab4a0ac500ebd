"""Gradients of one update, taken as one batch, as two in turn, and in two processes, for every family.

Prints, from the first process, {name: [difference of the two in turn, of the two processes]} as JSON: the largest
difference from the one batch, relative to the largest gradient.
"""

import json
import sys
from pathlib import Path

import torch
from families import SHALLOW, classes_and_stages, representatives, small
from torch import Tensor
from train_toys import toy_recipe

from nf_zoo.train import MemorySet
from nf_zoo.train.engine import Run
from nf_zoo.train.processes import Processes

PART = 3  # images of half an update


def images() -> MemorySet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2 * PART, 3, 32, 32), generator=rng, dtype=torch.uint8)
    return MemorySet(pixels, torch.arange(2 * PART) % 3, ['a', 'b', 'c'])


def families() -> list[str]:
    """A network of every family, in the smaller layout where there are two."""
    names = sorted(representatives(), key=lambda name: not name.endswith('_cifar'))
    chosen: dict[type, str] = {}
    for name in names:
        chosen.setdefault(classes_and_stages()[name][0], name)
    return list(chosen.values())


def gradients(
    name: str, state: dict[str, Tensor], folder: Path, batch: int, accumulate: int, processes: Processes
) -> Tensor:
    size = {'depths': SHALLOW[classes_and_stages()[name][1]], 'width': 0.25}
    options = {'model': name, 'model_kwargs': size, 'batch_size': batch, 'grad_accum_steps': accumulate}
    run = Run(toy_recipe(folder, **options), folder, lambda line: None, False, (images(),) * 2, processes)
    run.model.load_state_dict(state)  # an initialisation from data depends on the size of its batches
    run.model.train()
    batches = run.data.train_batches(0, processes.rank, processes.size)
    run.backward(((x.double(), y) for x, y in batches), 0, 0)
    return torch.cat([p.grad.flatten() for p in run.model.parameters()])


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    alone = Processes()
    alone.rank, alone.size = 0, 1
    found = {}
    with Processes() as processes:
        for name in families():
            place = folder / name / str(processes.rank)
            torch.manual_seed(0)
            state = small(name, num_classes=3).state_dict()
            in_two = gradients(name, state, place, PART, 1, processes)
            if processes.first:
                whole = gradients(name, state, place, 2 * PART, 1, alone)
                others = gradients(name, state, place, PART, 2, alone), in_two
                found[name] = [float((other - whole).abs().max() / whole.abs().max()) for other in others]
    if processes.first:
        print(json.dumps(found))


if __name__ == '__main__':
    main()
