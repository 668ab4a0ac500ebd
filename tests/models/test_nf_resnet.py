"""NF-ResNet (timm's form) against its paper; equality with timm is in test_timm.py."""

import pytest
import timm
import torch
from timm.models import nfnet

import nf_zoo  # noqa: F401


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [block for stage in model.stages for block in stage]


@pytest.mark.parametrize(
    ('name', 'params'), [('nf_resnet26', 15_995_176), ('nf_resnet50', 25_557_032), ('nf_resnet101', 44_549_160)]
)
def test_params(name, params):
    assert sum(p.numel() for p in timm.create_model(name, device='meta').parameters()) == params


def test_beta_in_closed_form_is_timms_running_variance():
    for name in ('nf_resnet26', 'nf_resnet50', 'nf_resnet101'):
        ours, theirs = blocks(timm.create_model(name, device='meta')), blocks(getattr(nfnet, name)(device='meta'))
        assert [b.beta for b in ours] == pytest.approx([b.beta for b in theirs], rel=1e-12)
        assert {b.alpha for b in ours} == {0.2}


def test_variance_grows_by_alpha_squared():
    """With all gains 1, relative to what enters the stage: + alpha^2 a block, less what zero padding takes."""
    torch.manual_seed(0)
    model = timm.create_model('nf_resnet26', depths=(1, 5, 1, 1)).eval()
    outputs: list[float] = []
    with torch.no_grad():
        for block in blocks(model):
            block.conv3.gain.fill_(1.0)
        for block in model.stages[1]:
            block.register_forward_hook(lambda _, __, y: outputs.append(y.var((0, 2, 3)).mean().item()))
        model(torch.randn(4, 3, 128, 128))
    growth = [b - a for a, b in zip(outputs, outputs[1:], strict=False)]
    assert all(0.5 * 0.04 < g / outputs[0] < 1.3 * 0.04 for g in growth)


def test_starts_as_the_identity_path():
    model = timm.create_model('nf_resnet26').eval()
    block = model.stages[0][1]
    x = torch.randn(2, 256, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_every_gain_learns_from_the_start_in_cifar_layouts():
    """Zero-padded channels are exactly zero, where ReLU has no gradient: the branches must not start at zero too."""
    model = timm.create_model('nf_resnet20_cifar')
    model(torch.randn(8, 3, 32, 32)).square().sum().backward()
    gains = {name: p.grad for name, p in model.named_parameters() if name.endswith('.gain')}
    assert gains and all((grad != 0).float().mean() > 0.9 for grad in gains.values())


def test_gains_and_biases_are_not_decayed():
    model = timm.create_model('nf_resnet20_cifar', device='meta')
    spared = model.no_weight_decay()
    decayed = {name for name, _ in model.named_parameters()} - spared
    assert all(name.endswith('.weight') for name in decayed)
    assert {name.rsplit('.', 1)[1] for name in spared} == {'gain', 'bias'}
