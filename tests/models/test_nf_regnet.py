"""NF-RegNet in timm's form: the same networks as timm's, but for stochastic depth."""

import pytest
import timm
import torch
from timm.models import nfnet

import nf_zoo
from nf_zoo.analysis.catalogue import multiply_adds
from nf_zoo.models.nf_regnet import NFRegNet

SIZES_FILE = ('b0', 'b1', 'b2', 'b3', 'b4', 'b5')


@pytest.mark.parametrize(
    ('name', 'params', 'side', 'macs'),
    [
        ('nf_regnet_b0', 8_764_288, 224, 0.4766),
        ('nf_regnet_b1', 10_223_984, 256, 0.7907),
        ('nf_regnet_b2', 14_314_608, 272, 1.1905),
        ('nf_regnet_b3', 18_593_832, 320, 2.0024),
        ('nf_regnet_b4', 30_210_816, 384, 4.6292),
        ('nf_regnet_b5', 49_741_728, 456, 11.5765),
    ],
)
def test_parameters_and_multiply_adds(name, params, side, macs):
    model = timm.create_model(name, device='meta')
    assert isinstance(model, NFRegNet)
    assert sum(p.numel() for p in model.parameters()) == params
    assert round(multiply_adds(model, 3, side, side) / 1e9, 4) == macs


@pytest.mark.parametrize('kwargs', [{}, dict(attn_layer=None), dict(output_stride=8), dict(output_stride=16)], ids=str)
@pytest.mark.parametrize('size', ['b0', 'b3'])
def test_timms_logits(size, kwargs):
    kwargs |= dict(depths=(1, 2, 2, 1), num_classes=10)
    theirs = getattr(nfnet, f'nf_regnet_{size}')(**kwargs).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    # Not create_model, which drops arguments that are None.
    ours = getattr(nf_zoo.models.nf_regnet, f'nf_regnet_{size}')(**kwargs).double().eval()
    assert isinstance(ours, NFRegNet)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 72, 72, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('index', [0, 1, 2, 3, 4])
def test_pruned_to_a_level_as_timm(index):
    ours, theirs = timm.create_model('nf_regnet_b0', device='meta'), nfnet.nf_regnet_b0(device='meta')
    assert ours.feature_info == theirs.feature_info
    assert ours.prune_intermediate_layers([index]) == theirs.prune_intermediate_layers([index])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.num_features == theirs.num_features


def test_the_last_level_is_behind_the_last_convolution_and_before_the_activation():
    model = timm.create_model('nf_regnet_b0', features_only=True, depths=(1, 1, 1, 1)).eval()
    assert model.feature_info.module_name(-1) == 'final_conv'
    with torch.no_grad():
        last = model(torch.randn(1, 3, 32, 32))[-1]
    assert last.shape[1] == 960 and last.min() < -0.5  # SiLU's minimum is -0.28


def test_learning_rate_groups_as_timms():
    groups = [m.nf_regnet_b0(device='meta').group_matcher() for m in (nfnet, nf_zoo.models.nf_regnet)]
    assert groups[0] == groups[1]


@pytest.mark.parametrize('size', SIZES_FILE)
def test_timms_keywords_go_to_timm_and_its_cfg_stays(size):
    name = f'nf_regnet_{size}'
    for keyword in (dict(ch_div=1), dict(skipinit=True), dict(gamma_in_act=True), dict(attn_layer='eca')):
        assert isinstance(timm.create_model(name, device='meta', **keyword), nfnet.NormFreeNet)
    ours = timm.create_model(name, device='meta').pretrained_cfg
    assert ours == getattr(nfnet, name)(device='meta').pretrained_cfg


def test_timms_tag_stays():
    assert timm.is_model_pretrained('nf_regnet_b1.ra2_in1k')
    assert timm.get_pretrained_cfg('nf_regnet_b1.ra2_in1k').hf_hub_id == 'timm/nf_regnet_b1.ra2_in1k'
