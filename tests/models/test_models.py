"""What timm's users may rely on, for every family and layout."""

import copy

import pytest
import timm
import torch
from families import images, representatives, small
from timm.layers import SEModule
from torch import nn

import nf_zoo

NAMES = representatives()
per_family = pytest.mark.parametrize('name', NAMES)


def test_list_models_filters_and_leaves_timm_alone():
    names = nf_zoo.list_models('eunnet*_cifar')
    assert names == ['eunnet20_cifar', 'eunnet56_cifar', 'eunnet110_cifar']
    assert 'resnet50' not in nf_zoo.list_models() and timm.is_model('resnet50')


@per_family
def test_gradients_reach_every_parameter(name):
    model = small(name)
    model(images(name)).square().sum().backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unreached
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@per_family
@pytest.mark.parametrize('training', [False, True])
def test_an_image_does_not_see_its_neighbours(name, training):
    if name.startswith('bn_') and training:
        pytest.skip('batch normalization is the control that does see them')
    model = small(name).double().train(training)
    x = images(name, 3, dtype=torch.float64) * torch.tensor([0.5, 1.0, 4.0]).view(3, 1, 1, 1)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


@per_family
def test_squeeze_excite_is_twice_its_gate_and_learns(name):
    """2 sigmoid(W2 a(W1 mean(x) + b1) + b2) x, in every block, whatever the method's activation a."""
    model = small(name, attn_layer='se').double()
    seen = []
    for block in (block for stage in model.stages for block in stage):
        (module,) = (m for m in block.modules() if isinstance(m, SEModule))
        module.register_forward_hook(lambda module, args, y: seen.append((module, args[0], y)))
    model(images(name, dtype=torch.float64)).square().sum().backward()
    assert len(seen) == sum(len(stage) for stage in model.stages)
    for module, x, y in seen:
        hidden = module.act(x.mean((2, 3)) @ module.fc1.weight.flatten(1).T + module.fc1.bias)
        gate = torch.sigmoid(hidden @ module.fc2.weight.flatten(1).T + module.fc2.bias)
        torch.testing.assert_close(y, 2 * gate[:, :, None, None] * x, rtol=1e-9, atol=1e-9)
        assert all(p.grad is not None for p in module.parameters())
        assert module.fc2.bias.grad.abs().sum() > 0  # the weights' may be 0 where ReLU lets no hidden unit through


@per_family
def test_width_is_a_factor_of_all_widths(name):
    model, narrow = timm.create_model(name, device='meta'), timm.create_model(name, device='meta', width=0.5)
    for (key, p), (other, q) in zip(model.named_parameters(), narrow.named_parameters(), strict=True):
        assert key == other
        if p.ndim == 4 and 'attn' not in key and not key.endswith('gain'):
            assert q.shape[0] % 8 == 0 and q.shape[0] == pytest.approx(p.shape[0] / 2, abs=16)
    with pytest.raises(ValueError, match='width=0: give a factor'):
        timm.create_model(name, device='meta', width=0)


@pytest.mark.parametrize('name', ['fixup_resnet50', 'fixup_resnet20_cifar', 'skipinit_resnet18', 'rescalenet50'])
def test_without_scale_the_branch_has_the_scalar_one(name):
    """The same function as with all scalars 1, and nothing in the state_dict for them."""
    plain, model = small(name, scale=False), small(name)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and {key.rsplit('.', 1)[1] for key in missing} == {'skip_gain' if 'skip' in name else 'scale'}
    for key in missing:
        nn.init.ones_(model.get_parameter(key))
    x = images(name)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), model(x), rtol=1e-4, atol=1e-5)


@per_family
def test_stochastic_depth_does_not_rescale(name):
    """With rate r the mean over masks of a one-block change is (1 - r) of it: the branch is never divided by 1 - r."""
    model = small(name, drop_path_rate=0.5).train()
    paths = [m for m in model.modules() if type(m).__name__ == 'DropPath']
    assert paths and all(not m.scale_by_keep for m in paths)
    kept = paths[-1](torch.ones(4096, 1, 1, 1))
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(kept.mean().item() - (1 - paths[-1].drop_prob)) < 0.05


@per_family
def test_script_and_fx_and_copy_agree(name):
    model = small(name).eval()
    x = images(name)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(torch.jit.script(model)(x), y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(copy.deepcopy(model)(x), y, rtol=0, atol=0)


@per_family
def test_features_are_the_stages(name):
    model = small(name).eval()
    x = images(name)
    kwargs = dict(depths=[len(s) for s in model.stages], width=0.25)
    features = timm.create_model(name, features_only=True, **kwargs).eval()
    with torch.no_grad():
        maps = features(x)
        final, intermediates = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x), rtol=1e-4, atol=1e-5)
    channels, reductions = features.feature_info.channels(), features.feature_info.reduction()
    assert [f.shape[1] for f in maps] == channels
    assert [x.shape[-1] // f.shape[-1] for f in maps] == reductions
    assert [f.shape for f in intermediates] == [f.shape for f in maps]
    for level in range(len(maps)):
        pruned = copy.deepcopy(model)
        pruned.prune_intermediate_layers([level])
        with torch.no_grad():
            alone = pruned.forward_intermediates(x, indices=[level], intermediates_only=True)[0]
        torch.testing.assert_close(alone, intermediates[level], rtol=1e-4, atol=1e-5)


@per_family
def test_classifier_contract(name):
    model = small(name).eval()
    x = images(name)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(features), model(x), rtol=1e-5, atol=1e-5)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.get_classifier().out_features == 3
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity) and model(x).shape == (2, model.num_features)


@per_family
def test_channels_dtype_and_device(name):
    model = small(name, in_chans=1, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(images(name, dtype=torch.float64)[:, :1]).dtype == torch.float64
    meta = timm.create_model(name, device='meta')
    assert all(p.is_meta for p in meta.parameters())
    half = small(name).to(torch.bfloat16).eval()
    with torch.no_grad():
        assert torch.isfinite(half(images(name, dtype=torch.bfloat16))).all()


@per_family
def test_channels_last_changes_nothing(name):
    model = small(name).eval()
    x = images(name)
    with torch.no_grad():
        y = model(x)
        z = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)


@per_family
def test_autocast_keeps_the_features_small(name):
    """A parameter in float32 does not make float32 of the features, which take twice the memory."""
    model = small(name).train()
    with torch.autocast('cpu', torch.bfloat16):
        stages = model.forward_intermediates(images(name), intermediates_only=True)
    assert {stage.dtype for stage in stages} == {torch.bfloat16}


@per_family
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model, x = small(name).double(), images(name, dtype=torch.float64)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-10, atol=1e-10)


@per_family
def test_unknown_keyword_is_a_type_error(name):
    with pytest.raises(TypeError):
        timm.create_model(name, device='meta', no_such_keyword=1)


@per_family
def test_names_without_decay_exist(name):
    model = timm.create_model(name, device='meta')
    assert set(model.no_weight_decay()) <= {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize('name', [n for n in NAMES if not n.endswith('_cifar')])
@pytest.mark.parametrize('output_stride', [8, 16])
def test_output_stride(name, output_stride):
    model = small(name, output_stride=output_stride).eval()
    with torch.no_grad():
        assert model.forward_features(images(name)).shape[-1] == 64 // output_stride
        assert model.forward_features(images(name, side=65)).shape[-1] == -(-65 // output_stride)


def test_bad_values_are_one_line():
    for name, kwargs, part in [
        ('eunnet50', dict(output_stride=5), '8, 16 or 32'),
        ('eunnet20_cifar', dict(output_stride=8), 'ImageNet'),
        ('eunnet20_cifar', dict(depths=(1, 1)), '3 positive'),
        ('eunnet20_cifar', dict(depths=(1, 1, 0)), '3 positive'),
        ('eunnet20_cifar', dict(norm='smaple'), "did you mean 'sample'"),
        ('eunnet20_cifar', dict(attn_layer='sse'), "'se'"),
        ('eunnet50', dict(in_chans=0), 'in_chans=0: .* 1 or more'),
        ('nf_resnet50', dict(in_chans=0), 'in_chans=0: .* 1 or more'),
        ('eunnet50', dict(in_chans='rgb'), "in_chans='rgb'"),
        ('eunnet50', dict(num_classes=-1), 'num_classes=-1: .* 0 or more'),
        ('dm_nf_resnet50', dict(drop_path_rate=-0.1), 'drop_path_rate=-0.1: .* rate from 0'),
        ('eunnet50', dict(drop_path_rate=1.5), 'drop_path_rate=1.5: .* rate from 0'),
        ('eunnet50', dict(drop_rate=-0.1), 'drop_rate=-0.1: .* rate from 0'),
        ('rescalenet50', dict(drop_conv_rate=-0.1), 'drop_conv_rate=-0.1: .* rate from 0'),
        ('wn_resnet50', dict(drop_conv_rate=2), 'drop_conv_rate=2: .* rate from 0'),
    ]:
        with pytest.raises(ValueError, match=part) as caught:
            timm.create_model(name, device='meta', **kwargs)
        assert '\n' not in str(caught.value)


def test_hundreds_of_blocks():
    model = timm.create_model('nf_resnet50', depths=(50, 50, 50, 50), device='meta')
    assert sum(len(stage) for stage in model.stages) == 200
