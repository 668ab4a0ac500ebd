"""Weights that hold NaN or infinity come from nowhere and go nowhere, whatever their hashes say."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from hubs import NAME, TAG, load, make_hub, make_model, make_run, one_line, rewrite
from torch import Tensor

from nf_zoo import hub
from nf_zoo.cli.main import main
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.files import tensor_bytes
from nf_zoo.hub import weights
from nf_zoo.hub.places import DirPlace

KEY = 'stages.1.0.conv1.weight'


def spoil(value: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The toy's weights, with ``value`` in the middle of one of them."""
    state = {key: t.to(dtype) if t.is_floating_point() else t for key, t in make_model().state_dict().items()}
    state[KEY] = state[KEY].clone()
    state[KEY].view(-1)[100] = value
    return state


SPOILED = {
    'nan': lambda: spoil(float('nan')),
    'inf': lambda: spoil(float('inf')),
    '-inf, 16 bits': lambda: spoil(float('-inf'), torch.float16),
    'nan, bfloat16': lambda: spoil(float('nan'), torch.bfloat16),
    'nan, float64': lambda: spoil(float('nan'), torch.float64),
    'too large for float32': lambda: spoil(1e300, torch.float64),
}


@pytest.fixture(params=SPOILED)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub whose weights are spoiled, and all of whose hashes are right."""
    root = make_hub(tmp_path / 'hub')
    rewrite(root / f'{NAME}.{TAG}', 'model.safetensors', tensor_bytes(SPOILED[request.param]()))
    monkeypatch.setenv('NF_ZOO_HUB', str(root))
    return root


def test_they_are_refused_wherever_they_enter(place: Path, tmp_path: Path) -> None:
    folder, name = place / f'{NAME}.{TAG}', f'{NAME}.{TAG}'
    ways: dict[str, Callable[[], object]] = {
        'load': lambda: load(place),
        'create_model': lambda: timm.create_model(name, pretrained=True),
        'features': lambda: timm.create_model(name, pretrained=True, features_only=True, out_indices=(0,)),
        'other classes': lambda: timm.create_model(name, pretrained=True, num_classes=7),
        'local-dir': lambda: timm.create_model(f'local-dir:{folder}', pretrained=True),
        'verify': lambda: hub.verify(name),
        'copy': lambda: hub.publish(name, tmp_path / 'copy'),
        'another tag': lambda: hub.publish(name, tmp_path / 'copy', tag='other'),
        '16 bits': lambda: hub.publish(name, tmp_path / 'copy', dtype='float16', tag='other'),
    }
    for way, enter in ways.items():
        with pytest.raises(CheckFailed) as error:
            enter()
            pytest.fail(way)
        assert KEY in one_line(error) and 'NaN or infinity' in str(error.value), way
    assert not (tmp_path / 'copy').exists()


def test_the_commands_say_so(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = f'{NAME}.{TAG}'
    for argv in (['verify', name], ['publish', name, '--to', str(tmp_path / 'copy')], ['predict', name, 'x.png']):
        assert main(argv) == 1
        shown = capsys.readouterr()
        assert shown.out == '' and len(shown.err.splitlines()) == 1 and KEY in shown.err
    assert main(['verify', '--all', '--hub', str(place)]) == 1
    assert 'FAILED' in capsys.readouterr().out


def test_a_run_with_them_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / 'run')
    data = tensor_bytes(spoil(float('nan')))
    rewrite_run(run, data)
    for enter in (lambda: hub.publish(run, tmp_path / 'hub'), lambda: hub.verify(str(run))):
        with pytest.raises(CheckFailed, match=KEY) as error:
            enter()
        one_line(error)
    assert not (tmp_path / 'hub').exists()


def rewrite_run(run: Path, data: bytes) -> None:
    (run / 'model.safetensors').write_bytes(data)
    result = json.loads((run / 'result.json').read_text())
    (run / 'result.json').write_text(json.dumps(result | {'sha256': hashlib.sha256(data).hexdigest()}))


def test_values_that_only_the_models_dtype_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1e5 is a float32 and no float16."""
    model = make_model()
    model.load_state_dict(spoil(1e5))
    hub.publish(model, tmp_path, f'{NAME}.large')
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path))
    assert timm.create_model(f'{NAME}.large', pretrained=True)
    with pytest.raises(CheckFailed, match='after loading') as error:
        timm.create_model(f'{NAME}.large', pretrained=True, dtype=torch.float16)
    assert KEY in one_line(error)
    with pytest.raises(UserError, match='as float16') as published:
        hub.publish(f'{NAME}.large', tmp_path / 'copy', dtype='float16', tag='small')
    assert KEY in one_line(published)


def test_an_overlay_of_the_users_own(tmp_path: Path) -> None:
    for state in (spoil(float('nan')), spoil(float('inf'))):
        (tmp_path / 'x.safetensors').write_bytes(tensor_bytes(state))
        for source in ({'state_dict': state}, {'file': str(tmp_path / 'x.safetensors')}):
            with pytest.raises(CheckFailed, match=KEY):
                timm.create_model(
                    NAME,
                    pretrained=True,
                    num_classes=3,
                    depths=(1, 1, 1),
                    pretrained_cfg_overlay={**source, 'num_classes': 3},
                )


@pytest.mark.parametrize(
    ('where', 'key', 'value'),
    [('model_args', 'num_classes', 5), ('model_args', 'in_chans', 1), ('root', 'num_classes', 5)],
)
def test_a_config_that_contradicts_itself_leaves_nothing_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, key: str, value: int
) -> None:
    folder = make_hub(tmp_path / 'hub') / f'{NAME}.{TAG}'
    config = json.loads((folder / 'config.json').read_text())
    (config if where == 'root' else config['model_args'])[key] = value
    config.pop('label_names', None)
    rewrite(folder, 'config.json', json.dumps(config).encode())
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path / 'hub'))
    for enter in (
        lambda: timm.create_model(f'{NAME}.{TAG}', pretrained=True),
        lambda: timm.create_model(f'{NAME}.{TAG}'),
        lambda: hub.verify(f'{NAME}.{TAG}'),
        lambda: hub.publish(f'{NAME}.{TAG}', tmp_path / 'copy'),
    ):
        with pytest.raises((CheckFailed, UserError), match=key) as error:
            enter()
        one_line(error)


def test_a_missing_weight_is_named_for_other_classes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_model().state_dict()
    state.pop(KEY)
    rewrite(make_hub(tmp_path) / f'{NAME}.{TAG}', 'model.safetensors', tensor_bytes(state))
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path))
    for options in ({}, {'num_classes': 7}, {'num_classes': 0}, {'features_only': True, 'out_indices': (0,)}):
        with pytest.raises(UserError, match=KEY) as error:
            timm.create_model(f'{NAME}.{TAG}', pretrained=True, **options)
        one_line(error)


def test_the_hubs_config_does_not_choose_the_layer_that_stays_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm leaves out the layer that the config calls the classifier."""
    folder = make_hub(tmp_path) / f'{NAME}.{TAG}'
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg'] |= {'classifier': 'stages', 'first_conv': 'nowhere'}
    rewrite(folder, 'config.json', json.dumps(config).encode())
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path))
    model = timm.create_model(f'{NAME}.{TAG}', pretrained=True, num_classes=7, in_chans=1)
    assert torch.equal(model.state_dict()[KEY], make_model().state_dict()[KEY])
    assert model.pretrained_cfg['classifier'] == 'head.fc'


def test_timms_own_arguments_of_a_name_that_it_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nf_resnet26(skipinit=True) is timm's network; its published weights load by name as any others."""
    torch.manual_seed(0)
    model = timm.create_model('nf_resnet26', skipinit=True, num_classes=2).eval()
    hub.publish(model, tmp_path, 'nf_resnet26.mine', dtype='float16')
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path))
    found = timm.create_model('nf_resnet26.mine', pretrained=True).eval()
    assert 'state_dict' not in found.pretrained_cfg and found.pretrained_cfg['tag'] == 'mine'
    for key, value in found.state_dict().items():
        assert torch.equal(value, model.state_dict()[key].half().float()), key
    assert weights.load('nf_resnet26', 'mine', DirPlace(tmp_path)).model_args['skipinit'] is True
