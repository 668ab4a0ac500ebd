"""EUNNet against its page and its paper."""

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import nf_zoo
from nf_zoo.bench.twins import no_norm, twin
from nf_zoo.saved_memory import saved_bytes
from nf_zoo.train.groups import parameter_groups


def count(name: str, **kwargs) -> int:
    return sum(p.numel() for p in timm.create_model(name, device='meta', **kwargs).parameters())


@pytest.mark.parametrize(
    ('name', 'params'),
    [
        ('eunnet50', 25_530_488),
        ('eunnet101', 44_496_521),
        ('eunnet152', 60_117_146),
        ('eunnet20_cifar', 269_043),
        ('eunnet56_cifar', 851_013),
        ('eunnet110_cifar', 1_723_968),
    ],
)
def test_params(name, params):
    assert count(name) == params


def test_params_without_scalars():
    assert count('eunnet50', scale=False) == 25_530_472
    assert count('eunnet50', residual_scaling=False) == count('eunnet50')


def test_coefficients():
    blocks = [b for stage in timm.create_model('eunnet50', device='meta').stages for b in stage]
    depth = len(blocks)
    for k, block in enumerate(blocks, start=depth - 1):
        assert block.alpha**2 == pytest.approx(k / (k + 1)) and block.beta**2 == pytest.approx(1 / depth)
        assert 1 <= block.alpha**2 + block.beta**2 <= 1 + 1 / depth
    plain = timm.create_model('eunnet50', device='meta', residual_scaling=False, depths=(1, 1, 1, 1))
    assert {(b.alpha, b.beta) for stage in plain.stages for b in stage} == {(1.0, 1.0)}


@pytest.mark.parametrize('kwargs', [{}, dict(scale=False), dict(residual_scaling=False), dict(norm='l2')])
def test_forward_is_the_equation(kwargs):
    """relu(alpha h + beta s F), each EUNConv written out, at every block of a small net."""
    model = timm.create_model('eunnet50', depths=(2, 1, 1, 1), **kwargs).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))

    def conv(c, x):
        if c.norm == 'l2':
            x = F.normalize(x, dim=1)
        else:
            mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
            x = (x - mean) / (var + 1e-5).sqrt()
        return F.conv2d(x, c.weight, c.bias, c.stride, c.padding)

    x = torch.rand(2, 64, 10, 10, dtype=torch.float64)
    for block in (b for stage in model.stages for b in stage):
        h = x if block.downsample is None else conv(block.downsample.conv, block.downsample.pool(x))
        f = conv(block.conv3, conv(block.conv2, conv(block.conv1, x).relu()).relu())
        expected = (block.alpha * h + block.beta * block.scale * f).relu()
        x = block(x)
        torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)


def test_block_variance_is_the_papers():
    """Figure 7: between 0.1 and 1.4 and no doubling from block to block; beta s F has the branch's variance 2 / L."""
    torch.manual_seed(0)
    model = timm.create_model('eunnet50').eval()
    variances: list[float] = []
    for stage in model.stages:
        for block in stage:
            block.register_forward_hook(lambda _, __, y: variances.append(y.var().item()))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert len(variances) == 16 and all(0.1 < v < 1.4 for v in variances)
    assert all(b < 2 * a for a, b in zip(variances, variances[1:], strict=False))


def test_without_coefficients_the_variance_grows():
    torch.manual_seed(0)
    model = timm.create_model('eunnet20_cifar', depths=(6, 1, 1), residual_scaling=False).eval()
    outputs: list[float] = []
    for block in model.stages[0]:
        block.register_forward_hook(lambda _, __, y: outputs.append(y.var().item()))
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32))
    assert outputs[-1] > 2 * outputs[0]


def test_neighbours_matter_to_the_official_form_only():
    x = torch.randn(3, 3, 32, 32) * torch.tensor([0.3, 1.0, 3.0]).view(3, 1, 1, 1)
    for norm, apart in (('sample', False), ('l2', False), ('tensor', True)):
        torch.manual_seed(0)
        model = timm.create_model('eunnet20_cifar', norm=norm).double().eval()
        with torch.no_grad():
            gap = (model(x.double())[:1] - model(x[:1].double())).abs().max()
        assert (gap > 1e-2) == apart, norm


def test_drop_conv_is_in_the_last_stages():
    model = timm.create_model('eunnet50', device='meta', drop_conv_rate=0.1)
    dropped = [any(type(m).__name__ == 'Dropout2d' for m in stage.modules()) for stage in model.stages]
    assert dropped == [False, False, True, True]


def test_the_normalisation_keeps_no_memory():
    """Bytes kept for backward: those of the same network with plain convolutions, and two numbers an image and conv."""
    depths = (2, 1, 1, 1)
    model = timm.create_model('eunnet50', depths=depths)
    floor = twin('eunnet50', model, no_norm, depths=depths)
    assert saved_bytes(model, 64) <= 1.01 * saved_bytes(floor, 64)


def test_gradients_of_each_sample_by_torch_func():
    """As differentially private training takes them: a network without batch normalization has one for each image."""
    model = timm.create_model('eunnet20_cifar', depths=[1, 1, 1]).double()
    x, y = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 5, 9])

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(3):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(found[name][i], p.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('train', [False, True])
def test_a_folded_network_overwrites_nothing_that_is_used_twice(train):
    model = timm.create_model('eunnet50', depths=(2, 1, 1, 1)).double()
    plain = nf_zoo.fold(model).train(train)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.set_grad_enabled(train):
        one, other = plain(x), plain(x)
        assert torch.equal(one, other)
        torch.testing.assert_close(model.train(train)(x), one, rtol=1e-10, atol=1e-10)


def test_the_scalars_and_nothing_else_learn_at_a_tenth_of_the_rate() -> None:
    model = timm.create_model('eunnet20_cifar', device='meta')
    slow = [name for group in parameter_groups(model, 5e-4) if group['lr_scale'] == 0.1 for name in names(model, group)]
    assert slow == [f'stages.{i}.{j}.scale' for i in range(3) for j in range(3)]
    plain = timm.create_model('eunnet20_cifar', scale=False, device='meta')
    assert [group['lr_scale'] for group in parameter_groups(plain, 5e-4)] == [1.0]


def names(model: nn.Module, group: dict[str, Any]) -> list[str]:
    """Of the parameters in an optimizer's group."""
    ids = {id(p) for p in group['params']}
    return [name for name, p in model.named_parameters() if id(p) in ids]
