"""One small network per family and layout: what holds for a method must hold for each of these."""

from functools import cache

import timm
import torch
from torch import nn

import nf_zoo
from nf_zoo.errors import UserError

SHALLOW = {3: (2, 1, 1), 4: (1, 2, 1, 1)}


@cache
def classes_and_stages() -> dict[str, tuple[type[nn.Module], int]]:
    """Of every name the method's class and the number of stages; the networks are made with one block a stage."""
    found = {}
    for name in nf_zoo.list_models():
        for stages in (4, 3):
            try:
                model = timm.create_model(name, device='meta', depths=(1,) * stages, width=0.125, num_classes=0)
            except UserError:
                continue
            found[name] = type(model), stages
            break
    return found


@cache
def representatives() -> tuple[str, ...]:
    """The first name, in timm's order, of every method's network in every layout."""
    seen: dict[tuple[object, ...], str] = {}
    for name, (method, stages) in classes_and_stages().items():
        seen.setdefault((method, name.endswith('_cifar'), stages), name)
    return tuple(seen.values())


@cache
def one_per_method() -> tuple[str, ...]:
    """One name of every method without batch normalization, that of the CIFAR layout where there is one."""
    names = [name for name in representatives() if not name.startswith('bn_')]
    found = {classes_and_stages()[name][0]: name for name in sorted(names, key=lambda name: name.endswith('_cifar'))}
    return tuple(sorted(found.values()))


def small(name: str, **kwargs) -> nn.Module:
    """``name`` with few blocks, a quarter of the width and ten classes, and no parameter at its initial value."""
    kwargs = {'depths': SHALLOW[classes_and_stages()[name][1]], 'width': 0.25, 'num_classes': 10, **kwargs}
    model = timm.create_model(name, **kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise * (parameter.std() if parameter.numel() > 1 else 1) + 0.05 * noise)
    return model


def tiny(name: str, **kwargs) -> nn.Module:
    """``name`` with one block a stage and an eighth of the channels, in float64 and in general position."""
    return small(name, depths=(1,) * classes_and_stages()[name][1], width=0.125, **kwargs).double()


def images(name: str, n: int = 2, side: int | None = None, **kwargs) -> torch.Tensor:
    """Random images, 32 pixels for CIFAR layouts, 64 else."""
    side = side or (32 if name.endswith('_cifar') else 64)
    return torch.randn(n, 3, side, side, **kwargs)
