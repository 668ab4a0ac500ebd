"""nf_zoo.fold on timm's own convolutions and networks."""

from typing import Any

import pytest
import timm
import torch
from folding import children, close, general, identify, same, traced
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models import nfnet
from torch import nn

import nf_zoo  # noqa: F401
from nf_zoo.folding.blocks import PlainBlock
from nf_zoo.folding.network import fold


def test_timm_convolutions_with_standardised_weight() -> None:
    kinds = [
        StdConv2d(4, 6, 3, stride=2, bias=True, eps=1e-4),
        ScaledStdConv2d(4, 6, 3, groups=2, dilation=2, gamma=1.7),
        StdConv2dSame(4, 6, 3, stride=2),
        ScaledStdConv2dSame(4, 6, 3, stride=2, gamma=1.7),
        ScaledStdConv2dSame(4, 6, 3, dilation=2, gamma=1.7),
    ]
    for conv in kinds:
        model = nn.Sequential(conv).double().eval()
        nn.init.normal_(conv.gain if hasattr(conv, 'gain') else conv.weight)
        folded = fold(model)
        assert type(folded[0]) is (Conv2dSame if getattr(conv, 'same_pad', False) else nn.Conv2d)
        x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
        close(folded(x), model(x))
        assert torch.equal(fold(folded)(x), folded(x))


NARROW = dict(channels=(16, 24, 32, 32), stem_chs=16)
FNET = dict(NARROW, group_size=4, num_features=40)
# timm's own entry points, narrow, and the products that stay; -1 where SAME padding computes with sizes.
TIMM: list[tuple[str, dict[str, Any], int]] = [
    ('nf_resnet50', dict(NARROW, skipinit=True, act_layer='silu'), 0),
    ('nf_resnet50', dict(NARROW, gamma_in_act=True, skipinit=True), 1),  # gamma behind the last features
    ('nf_seresnet50', dict(NARROW, gamma_in_act=True), 6),
    ('nf_ecaresnet26', NARROW, 5),
    ('nf_resnet50', dict(NARROW, attn_layer='cbam'), -1),
    ('nf_regnet_b0', dict(skipinit=True), 5),
    ('nf_regnet_b0', dict(attn_layer='eca', attn_kwargs={}, output_stride=8), -1),
    ('nf_regnet_b0', dict(attn_layer='cbam', attn_kwargs={}), -1),
    ('nfnet_f0', FNET, 5),
    ('nfnet_f0', dict(FNET, act_layer='celu', gamma_in_act=True, skipinit=True), 11),
    ('eca_nfnet_l0', FNET, 5),
    ('dm_nfnet_f0', FNET, -1),
    ('dm_nfnet_f0', dict(FNET, output_stride=16, attn_layer='ese', attn_kwargs={}), -1),
]


@pytest.mark.parametrize(('name', 'kwargs', 'products'), TIMM, ids=identify)
@torch.inference_mode()
def test_timm_networks(name: str, kwargs: dict[str, Any], products: int) -> None:
    depths = dict(depths=(1, 2, 1, 1), num_classes=5)
    model = general(getattr(nfnet, name)(**depths, **kwargs).double().eval())
    assert type(model) is nfnet.NormFreeNet
    x = torch.randn(1, 3, 37, 37, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold(model)
    same(folded, model, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {type(m) for m in children(folded, nn.Conv2d)} <= {nn.Conv2d, Conv2dSame}
    twice = fold(folded)
    assert repr(twice) == repr(folded) and torch.equal(twice(x), folded(x))
    close(torch.jit.script(folded)(x), model(x))
    if products >= 0:
        ops = traced(folded, x)
        assert ops['mul'] + ops['mul_'] == products and ops['add_'] == 5 and not ops['add']

    model = general(getattr(nfnet, name)(**depths, **kwargs, features_only=True).double().eval())
    close(fold(model)(x), model(x))


@torch.inference_mode()
def test_timm_bit() -> None:
    model = general(timm.create_model('resnetv2_50x1_bit', num_classes=5).double().eval())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    folded = fold(model)
    same(folded, model, x)
    assert not list(children(folded, StdConv2d))


def test_names_that_nf_zoo_hands_to_timm() -> None:
    model = timm.create_model('nf_resnet50', depths=(1, 1, 1, 1), num_classes=5, skipinit=True)
    assert type(model).__module__ == 'timm.models.nfnet'
    assert len(list(children(fold(model), PlainBlock))) == 4
