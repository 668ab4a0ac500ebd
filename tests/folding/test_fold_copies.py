"""What a fold makes of computed weights, wrapped convolutions, frozen parameters and hooks."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from families import images, representatives, small
from folding import close
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import nf_zoo
from nf_zoo.errors import UserError

FOLDABLE = [name for name in representatives() if not name.startswith('gn_')]
BLOCKS = [name for name in FOLDABLE if name.endswith('_cifar') or name.startswith(('nf_', 'dm_', 'wn_'))]


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight


def old_weight_norm(conv: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        nn.utils.weight_norm(conv)
    with torch.no_grad():
        conv.weight_g.mul_(0.7)


COMPUTED: dict[str, Callable[[Any], object]] = {
    'pruned': lambda conv: prune.l1_unstructured(conv, 'weight', amount=0.6),
    'parametrized': lambda conv: parametrize.register_parametrization(conv, 'weight', Halved()),
    'spectral norm': parametrizations.spectral_norm,
    'weight norm': parametrizations.weight_norm,
    'spectral norm by a hook': nn.utils.spectral_norm,
    'weight norm by a hook': old_weight_norm,
}


@pytest.mark.parametrize('name', BLOCKS)
def test_a_computed_weight_is_made_plain(name: str) -> None:
    for kind, compute in COMPUTED.items():
        model = small(name, width=0.25, dtype=torch.float64).eval()
        x = images(name, dtype=torch.float64)
        with torch.no_grad():
            plain = model(x)
        for target in (model.stages[1][0].conv2, model.stages[0][0].conv1, model.stem.conv):
            compute(target)
        with torch.no_grad():
            model(x[:1])  # a computed weight is then no leaf
            folded = nf_zoo.fold(model)
            close(folded(x), model(x))
            assert kind != 'pruned' or not torch.allclose(model(x), plain)  # some methods ignore the weight's scale
        assert not any(parametrize.is_parametrized(m) or m._forward_pre_hooks for m in folded.modules()), kind
        assert all(p.requires_grad for p in model.stages[1][0].conv2.parameters()), kind  # the original is as it was


class Wrapped(nn.Module):
    """A convolution with an adapter beside it, as LoRA has it."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv
        self.adapter = copy.deepcopy(conv)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.conv(x, *args, **kwargs) + self.adapter(x)


class Derived(nn.Conv2d):
    def forward(self, x: Tensor, *args: Any) -> Tensor:
        return 2 * super().forward(x)


def derived(conv: nn.Conv2d) -> nn.Module:
    return Derived(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)


def patched(conv: nn.Conv2d) -> nn.Module:
    forward = conv.forward
    conv.forward = lambda *args: 2 * forward(*args)
    return conv


def reflecting(conv: nn.Conv2d) -> nn.Module:
    conv.padding_mode = 'reflect'
    return conv


def hooked(conv: nn.Conv2d) -> nn.Module:
    weight = conv.weight.detach()
    del conv.weight
    conv.register_forward_pre_hook(lambda conv, args: setattr(conv, 'weight', 2 * weight))
    return conv


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (Wrapped, r'stages\.1\.0\.conv2: it is a Wrapped, not a convolution; merge it'),
        (derived, r'stages\.1\.0\.conv2: Derived computes something else'),
        (patched, r'stages\.1\.0\.conv2: .* computes something else'),
        (reflecting, r"stages\.1\.0\.conv2: it doesn't pad"),
        (hooked, r'stages\.1\.0\.conv2: its weight is computed'),
    ],
)
@pytest.mark.parametrize('name', ['eunnet20_cifar', 'idshort_resnet18_cifar', 'nf_resnet20_cifar', 'fixup_resnet18'])
def test_a_part_that_fold_does_not_know_is_named(name: str, change: Callable[[Any], nn.Module], message: str) -> None:
    model = small(name, width=0.25)
    model.stages[1][0].conv2 = change(model.stages[1][0].conv2)
    with pytest.raises(UserError, match=message) as caught:
        nf_zoo.fold(model)
    assert '\n' not in str(caught.value)


def test_a_part_of_timms_own_network_is_named() -> None:
    model = timm.create_model('nf_resnet26', skipinit=True, depths=(1, 1, 1, 1))
    model.stages[1][0].conv3 = Wrapped(model.stages[1][0].conv3)
    with pytest.raises(UserError, match=r'stages\.1\.0\.conv3: it is a Wrapped'):
        nf_zoo.fold(model)


@pytest.mark.parametrize('name', FOLDABLE)
def test_what_is_frozen_stays_frozen(name: str) -> None:
    model = small(name, width=0.25)
    assert all(p.requires_grad for p in nf_zoo.fold(model).parameters())
    assert not any(p.requires_grad for p in nf_zoo.fold(model.requires_grad_(False)).parameters())
    model.stages[-1].requires_grad_(True)
    model.head.requires_grad_(True)
    folded = nf_zoo.fold(model)
    trained = {name.split('.')[0] + name.split('.')[1] for name, p in folded.named_parameters() if p.requires_grad}
    assert trained == {f'stages{len(model.stages) - 1}', 'headfc'}


@pytest.mark.parametrize('name', FOLDABLE)
def test_inside_a_stage_features_differ_by_a_constant_and_at_its_end_by_nothing(name: str) -> None:
    model = small(name, width=0.25, dtype=torch.float64).eval()
    folded = nf_zoo.fold(model)
    y = z = images(name, dtype=torch.float64)
    with torch.no_grad():
        y, z = model.stem(y), folded.stem(z)
        for stage, plain in zip(model.stages, folded.stages, strict=True):
            for block, other in zip(stage, plain, strict=True):
                y, z = block(y), other(z)
                factor = (z * y).sum() / y.square().sum()
                if not name.startswith('bn_pre'):  # there the next batch normalization moves too
                    close(z, factor * y)
            close(z, y)


@pytest.mark.parametrize('name', FOLDABLE)
def test_what_a_hook_has_seen_is_not_overwritten(name: str) -> None:
    """By hooks of all modules, of those without children, of some blocks, or a global one; without gradients."""
    x = images(name)
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: object, y: Tensor) -> None:
        seen.append((y, y.clone()))

    def run(network: nn.Module) -> None:
        seen.clear()
        with torch.no_grad():
            network(x)
        assert seen and all(torch.equal(y, kept) for y, kept in seen)

    for attn_layer in (None, 'se'):
        model = small(name, width=0.25, attn_layer=attn_layer)
        for network in (model, nf_zoo.fold(model)):
            modules = list(network.modules())
            for chosen in (modules, [m for m in modules if not list(m.children())], modules[len(modules) // 2 :]):
                handles = [module.register_forward_hook(keep) for module in chosen]
                run(network)
                for handle in handles:
                    handle.remove()
        handle = nn.modules.module.register_module_forward_hook(keep)
        run(network)
        handle.remove()


@pytest.mark.parametrize('name', representatives())
@pytest.mark.parametrize('folds', [False, True])
def test_full_backward_hooks_work_everywhere(name: str, folds: bool) -> None:
    """They change no gradient, and give each module the gradient of its output."""
    model = small(name, width=0.25, attn_layer='se', dtype=torch.float64)
    if folds:
        model = nf_zoo.fold(model).train()
    x = images(name, dtype=torch.float64).requires_grad_()
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    called: dict[nn.Module, Tensor] = {}
    for module in model.modules():
        module.register_full_backward_hook(lambda m, grads, outs: called.__setitem__(m, outs[0]))
    kept: dict[nn.Module, Tensor] = {}
    block = model.stages[1][0]
    handle = block.conv2.register_forward_hook(lambda m, args, y: (y.retain_grad(), kept.__setitem__(m, y))[0])
    model(x).square().sum().backward()
    handle.remove()
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)
    with_parameters = {m for m in model.modules() if list(m.parameters(recurse=False))}
    assert with_parameters <= set(called)
    torch.testing.assert_close(called[block.conv2], kept[block.conv2].grad, rtol=1e-9, atol=1e-12)
