"""Drop-in for the names that timm owns."""

import pytest
import timm
import torch
from timm.models import nfnet

import nf_zoo  # noqa: F401

OWNED = [n for n in nf_zoo.list_models() if hasattr(nfnet, n)]


def randomized(name: str) -> torch.nn.Module:
    """timm's own model with every gain and bias away from its initial value."""
    torch.manual_seed(1)
    model = getattr(nfnet, name)().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith('gain'):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif key.endswith('bias'):
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize('name', OWNED)
def test_same_keys_shapes_and_cfg(name):
    ours, theirs = timm.create_model(name, device='meta'), getattr(nfnet, name)(device='meta')
    assert type(ours).__module__.startswith('nf_zoo')
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours.feature_info == theirs.feature_info and len(ours.feature_info) == 5


@pytest.mark.parametrize('name', OWNED)
def test_same_logits_and_features(name):
    theirs, ours = randomized(name), timm.create_model(name, device='meta').eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    for dtype, tolerance in (torch.float32, 1e-5), (torch.float64, 1e-10):
        ours, theirs, x = ours.to(dtype), theirs.to(dtype), torch.randn(2, 3, 40, 40, dtype=dtype)
        with torch.no_grad():
            pairs = [(ours(x), theirs(x)), (ours.forward_features(x), theirs.forward_features(x))]
            (last, stages), (their_last, their_stages) = (net.forward_intermediates(x) for net in (ours, theirs))
        for mine, yours in [*pairs, (last, their_last), *zip(stages, their_stages, strict=True)]:
            assert (mine - yours).abs().max() <= tolerance * yours.abs().max()


@pytest.mark.parametrize('output_stride', [8, 16])
def test_same_logits_dilated(output_stride):
    theirs = nfnet.nf_resnet26(output_stride=output_stride).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = timm.create_model('nf_resnet26', output_stride=output_stride).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max() <= 1e-10 * theirs(x).abs().max()


def test_timms_keywords_go_to_timm():
    model = timm.create_model('nf_resnet26', skipinit=True, act_layer='silu', device='meta')
    assert isinstance(model, nfnet.NormFreeNet)
    assert isinstance(timm.create_model('nf_resnet26', attn_layer='eca', device='meta'), nfnet.NormFreeNet)
    assert not isinstance(timm.create_model('nf_resnet26', depths=(1, 1, 1, 1), device='meta'), nfnet.NormFreeNet)


def test_unknown_tag_is_refused():
    with pytest.raises(RuntimeError, match='no_such_tag'):
        timm.create_model('eunnet50.no_such_tag', device='meta')
    with pytest.raises(ValueError, match='no_such_tag'):
        timm.create_model('eunnet50.no_such_tag', pretrained=True)
