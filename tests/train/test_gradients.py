"""Adaptive gradient clipping against timm's and against equation 3."""

import copy

import pytest
import timm
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn

import nf_zoo
from nf_zoo.errors import UserError


def with_gradients(scale: float) -> nn.Module:
    model = timm.create_model('nf_resnet20_cifar', depths=(1, 1, 1)).double()
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize('clip', [0.01, 0.3])
@pytest.mark.parametrize('scale', [1e-4, 1e-2, 1.0])
def test_agc_is_timms(scale: float, clip: float) -> None:
    ours = with_gradients(scale)
    theirs = copy.deepcopy(ours)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = one.grad.clone()
    nf_zoo.agc_(ours.parameters(), clip)
    adaptive_clip_grad(theirs.parameters(), clip)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-15)


def test_agc_clips_units_and_says_how_many() -> None:
    """Rows of a weight one by one, a bias as a whole; the share is that of the units that became shorter."""
    weight, bias = nn.Parameter(torch.ones(4, 3, 1, 1)), nn.Parameter(torch.zeros(2))
    unused = nn.Parameter(torch.ones(5, 5))
    weight.grad = torch.tensor([0.001, 0.02, 3.0, 0.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1).clone()
    bias.grad = torch.tensor([3e-6, 4e-6])
    assert nf_zoo.agc_([weight, bias, unused]) == pytest.approx(2 / 5)
    assert unused.grad is None
    norms = weight.grad.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, 3**0.5 * torch.tensor([0.001, 0.01, 0.01, 0.0]))
    assert torch.equal(bias.grad, torch.tensor([3e-6, 4e-6]))  # less than 1e-3 * 0.01
    bias.grad *= 1e3
    assert nf_zoo.agc_(bias) == 1.0
    assert bias.grad.norm().item() == pytest.approx(1e-5)
    assert nf_zoo.agc_([unused]) == nf_zoo.agc_([]) == 0.0


def test_agc_leaves_what_is_excluded() -> None:
    model = with_gradients(1.0)
    head = model.get_classifier()
    before = [p.grad.clone() for p in head.parameters()]
    body = model.stem.conv.weight.grad.clone()
    nf_zoo.agc_(model.parameters(), exclude=head.parameters())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(head.parameters(), before, strict=True))
    assert not torch.equal(model.stem.conv.weight.grad, body)


@pytest.mark.parametrize('kwargs', [dict(clip=0), dict(clip=-1), dict(eps=0), dict(clip=float('nan'))])
def test_agc_that_would_turn_or_stop_the_gradient(kwargs: dict[str, float]) -> None:
    with pytest.raises(UserError, match='both must be positive'):
        nf_zoo.agc_([], **kwargs)
