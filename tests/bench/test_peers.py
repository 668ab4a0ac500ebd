"""Peers are the same network with another normalization, or with none."""

from collections import Counter

import pytest
import timm
import torch
from timm.models.nfnet import NormFreeNet
from torch import Tensor, nn

from nf_zoo import fold
from nf_zoo.bench.peers import open_peers, share_weights
from nf_zoo.bench.twins import group_norm, no_norm, twin
from nf_zoo.errors import UserError
from nf_zoo.layers.input_norm import InputNormConv2d, Standardize
from nf_zoo.net.parts import SqueezeExcite
from nf_zoo.saved_memory import saved_bytes

NAMES = (
    'eunnet50 nf_resnet50 nf_seresnet26 nf_regnet_b0 dm_nf_resnet50 dm_nf_regnet_b0 fixup_resnet18 skipinit_resnet50 '
    'rescalenet18 idshort_resnet50 learnscalar_resnet50 convshort_resnet50 wn_resnet50 eunnet20_cifar '
    'convshort_resnet20_cifar idshort_resnet18_cifar'
).split()


def tiny(name: str, **kwargs: object) -> tuple[nn.Module, dict[str, object]]:
    depths = (2, 1, 1) if '20_cifar' in name else (2, 1, 1, 1)
    kwargs = {'depths': depths, 'width': 0.25, **kwargs}
    return timm.create_model(name, num_classes=10, **kwargs), kwargs


def geometry(model: nn.Module) -> Counter[tuple[object, ...]]:
    """Of the convolutions outside of squeeze-and-excite."""
    inside = {
        conv for m in model.modules() if isinstance(m, SqueezeExcite | timm.layers.SEModule) for conv in m.modules()
    }
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m not in inside]
    return Counter((*m.weight.shape, m.stride, m.padding, m.dilation, m.groups) for m in convs)


@pytest.mark.parametrize('name', NAMES)
def test_a_twin_has_the_same_convolutions_and_computes(name: str) -> None:
    model, kwargs = tiny(name)
    for norm, kind in ((nn.BatchNorm2d, nn.BatchNorm2d), (group_norm, nn.GroupNorm), (no_norm, nn.Conv2d)):
        other = twin(name, model, norm, **kwargs)
        assert geometry(other) == geometry(model)
        assert any(isinstance(m, kind) for m in other.modules())
        assert not any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in other.modules()) or norm is not no_norm
        assert not any(isinstance(m, InputNormConv2d | Standardize) for m in other.modules())
        assert all(type(m) is nn.Conv2d for m in other.modules() if isinstance(m, nn.Conv2d))
        x = torch.randn(2, 3, 32, 32)
        logits = other.train()(x)
        assert logits.shape == (2, 10)
        logits.sum().backward()
        assert all(p.grad is not None for p in other.parameters())


@pytest.mark.parametrize('name', ['wn_resnet18', 'wn_resnet50'])
def test_the_twin_of_a_resnet_has_the_parameters_of_timms(name: str) -> None:
    made = twin(name, timm.create_model(name, device='meta'), nn.BatchNorm2d)
    theirs = timm.create_model(name.removeprefix('wn_'))
    assert Counter(p.shape for p in made.parameters()) == Counter(p.shape for p in theirs.parameters())


@pytest.mark.parametrize(('name', 'kwargs'), [('wn_resnet18', {}), ('skipinit_resnet18', {'scale': False})])
def test_in_place_the_floor_is_the_plain_network(name: str, kwargs: dict[str, object]) -> None:
    """Both have plain convolutions behind weights that are computed, so logits and gradients must agree."""
    model, sizes = tiny(name, **kwargs)
    nn.init.normal_(model.head.fc.weight, std=0.1)
    folded = fold(model.double())
    sizes.pop('scale', None)
    floor = twin(name, model, no_norm, **sizes).double().eval()
    share_weights(floor, folded)
    floor.head.load_state_dict(folded.head.state_dict())
    for module in floor.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for m in folded.modules():
        if isinstance(m, nn.Conv2d):
            assert m.bias is None or not m.bias.any()

    def run(net: nn.Module) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=torch.float64).view(2, 3, 32, 32).requires_grad_()
        y = net(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    torch.testing.assert_close(run(floor), run(folded), rtol=1e-9, atol=1e-9)


def test_timms_network_is_the_peer_where_it_has_the_same_stages() -> None:
    def labels(name: str, *kinds: str, **kwargs: object) -> list[str]:
        model = timm.create_model(name, **kwargs)
        return list(open_peers(name, model, kinds, **kwargs))

    assert labels('eunnet18', 'bn', 'floor', 'gn') == ['BN resnet18', 'floor', 'GN twin']
    assert labels('nf_resnet26', 'bn') == ['BN resnet26']
    assert labels('convshort_resnet18', 'bn') == ['BN twin']  # timm's has no convolution in every shortcut
    assert labels('eunnet18', 'bn', width=0.25) == ['BN twin']
    assert labels('eunnet20_cifar', 'bn', 'resnet18') == ['BN twin', 'resnet18']
    assert labels('nf_resnet26', 'timm', 'resnet18') == ['timm nf_resnet26', 'resnet18']


def test_the_peer_timm_is_timms_own_network() -> None:
    kwargs = {'num_classes': 7}
    (theirs,) = open_peers('nf_regnet_b0', timm.create_model('nf_regnet_b0', **kwargs), ['timm'], **kwargs).values()
    assert isinstance(theirs, NormFreeNet) and theirs.num_classes == 7
    for name in ('eunnet18', 'nf_resnet152', 'resnet18'):
        with pytest.raises(UserError, match=f'timm has no network of its own called {name}'):
            open_peers(name, timm.create_model(name, device='meta'), ['timm'])


def test_a_network_of_timms_has_no_twin() -> None:
    with pytest.raises(UserError, match='resnet18 has no bn twin.*--peer NAME'):
        open_peers('resnet18', timm.create_model('resnet18'), ['bn'])


@pytest.mark.parametrize(
    'name', 'eunnet50 nf_resnet50 fixup_resnet18 fixup_resnet50 rescalenet18 rescalenet50 learnscalar_resnet18 '
    'learnscalar_resnet50 idshort_resnet50 skipinit_resnet50 wn_resnet50 fixup_resnet20_cifar'.split()
)  # fmt: skip
def test_training_keeps_as_much_as_the_floor(name: str) -> None:
    """Biases, scalars and normalised inputs cost no memory of features."""
    model, kwargs = tiny(name)
    floor = twin(name, model, no_norm, **kwargs)
    assert saved_bytes(model, 64) <= 1.02 * saved_bytes(floor, 64)
