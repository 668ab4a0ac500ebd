"""One small network per family and layout: what holds for a method must hold for each of these."""

import timm
import torch
from torch import nn

import nf_zoo

SHALLOW = {3: (2, 1, 1), 4: (1, 2, 1, 1)}


def representatives() -> list[str]:
    """The first name, in timm's order, of every method's network in every layout."""
    seen: dict[tuple[object, ...], str] = {}
    for name in nf_zoo.list_models():
        model = timm.create_model(name, device='meta')
        key = (type(model), name.endswith('_cifar'), len(model.stages))
        seen.setdefault(key, name)
    return list(seen.values())


def one_per_method() -> list[str]:
    """One name of every method without batch normalization, that of the CIFAR layout where there is one."""
    names = [name for name in representatives() if not name.startswith('bn_')]
    found: dict[type, str] = {}
    for name in sorted(names, key=lambda name: name.endswith('_cifar')):
        found[type(timm.create_model(name, device='meta'))] = name
    return sorted(found.values())


def small(name: str, **kwargs) -> nn.Module:
    """``name`` with few blocks and ten classes, in general position: every parameter away from its initial value."""
    stages = len(timm.create_model(name, device='meta').stages)
    kwargs = {'depths': SHALLOW[stages], 'num_classes': 10, **kwargs}
    model = timm.create_model(name, **kwargs)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * noise * (parameter.std() if parameter.numel() > 1 else 1) + 0.05 * noise)
    return model


def tiny(name: str, **kwargs) -> nn.Module:
    """``name`` with one block a stage and an eighth of the channels, in float64 and in general position."""
    stages = len(timm.create_model(name, device='meta').stages)
    return small(name, depths=(1,) * stages, width=0.125, **kwargs).double()


def images(name: str, n: int = 2, side: int | None = None, **kwargs) -> torch.Tensor:
    """Random images, 32 pixels for CIFAR layouts, 64 else."""
    side = side or (32 if name.endswith('_cifar') else 64)
    return torch.randn(n, 3, side, side, **kwargs)
