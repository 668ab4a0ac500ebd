"""One way from what a user writes to a model with weights: a name, NAME.TAG of any hub, or the folder of a run."""

import json
from pathlib import Path

import pytest
import timm
import torch
from hubs import FACTS, NAME, make_model, make_run, one_line, without_weights

from nf_zoo import hub
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.inference.loading import class_names, load_model, resolve

X = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub on the search path with NAME.toy, published from the run beside it."""
    hub.publish(make_run(tmp_path / 'run'), tmp_path / 'hub')
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path / 'hub'))
    return tmp_path / 'hub'


@pytest.mark.parametrize('kind', ['run', 'hub', 'folder'])
def test_a_run_a_tag_and_a_folder_give_the_same_model(place: Path, kind: str) -> None:
    run = place.parent / 'run'
    name = {'run': str(run), 'hub': f'{NAME}.toy', 'folder': f'{place}/{NAME}.toy'}[kind]
    source = resolve(name)
    assert source.kind == ('run' if kind == 'run' else 'hub') and source.architecture == NAME
    assert source.where == (str(run) if kind == 'run' else f'{place}/{NAME}.toy')
    assert source.dataset == 'toy' and source.facts['metrics'] == FACTS['metrics']
    model = source.load()
    assert not model.training and torch.equal(model(X), make_model()(X))
    assert class_names(model) == ['a', 'b', 'c']
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config['mean']) == (0.1, 0.2, 0.3) and config['interpolation'] == 'bilinear'


def test_a_folder_needs_no_search_path(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('NF_ZOO_HUB')
    monkeypatch.chdir(place)
    assert torch.equal(load_model(f'{NAME}.toy')(X), make_model()(X))  # as NAME.TAG reads inside of the hub
    with pytest.raises(UserError, match='no weights'):
        load_model(f'{NAME}.other')


def test_a_bare_name_is_the_package_s_whatever_hubs_there_are(place: Path) -> None:
    hub.publish(make_model(2), place, f'{NAME}.cifar10')
    source = resolve(NAME)
    assert (source.kind, source.tag, source.dataset) == ('package', 'cifar10', 'cifar10')
    assert source.load().num_classes == 10 and source.facts['metrics']['top1'] > 80
    assert load_model(f'{NAME}.cifar10').num_classes == 3  # named: the first on the search path


def test_without_weights_a_tag_still_says_which_network(place: Path) -> None:
    bare = resolve(NAME, pretrained=False)
    assert bare.kind == 'random' and bare.where == '' and bare.load(device='meta').num_classes == 10
    tagged = resolve(f'{NAME}.toy', pretrained=False).load(device='meta')
    assert tagged.num_classes == 3 and len(tagged.stages[0]) == 1 and class_names(tagged) == ['a', 'b', 'c']
    assert timm.create_model(f'{NAME}.toy').num_classes == 3  # the same through timm
    with pytest.raises(RuntimeError, match='Invalid pretrained tag'):
        timm.create_model(f'{NAME}.no_such_tag')


def test_timms_names_work_too(place: Path) -> None:
    source = resolve('nf_resnet50')
    assert (source.kind, source.tag, source.where) == ('timm', 'ra2_in1k', 'hf://timm/nf_resnet50.ra2_in1k')
    assert resolve('nf_resnet50.ra2_in1k').kind == resolve('resnet18').kind == 'timm'
    local = f'local-dir:{place}/{NAME}.toy'
    assert resolve(local).kind == 'timm' and torch.equal(load_model(local)(X), make_model()(X))


def test_arguments_go_to_the_model_of_a_name_and_not_to_a_run(place: Path) -> None:
    assert load_model(f'{NAME}.toy', num_classes=7).num_classes == 7
    assert load_model(f'{NAME}.toy', in_chans=1).in_chans == 1
    with pytest.raises(UserError, match='as it was trained') as error:
        load_model(str(place.parent / 'run'), num_classes=7)
    one_line(error)


@pytest.mark.parametrize(
    ('name', 'word'),
    [
        ('eunet20_cifar', 'did you mean'),
        (f'{NAME}.toi', f"did you mean '{NAME}.toy'"),
        (without_weights(), 'no weights'),
        ('nowhere/run', 'no such folder'),
        ('', 'unknown model'),
        ('a\0b', 'unknown model'),
        ('../x', 'no such folder'),
        (f'{NAME}.a/b', 'not a model name'),
        ('.', 'not a finished run'),
        ('local-dir:nowhere', 'cannot load'),
        ('hf-hub:a/b/c/d', 'cannot load'),
    ],
)
def test_what_leads_nowhere_is_one_line(place: Path, name: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    with pytest.raises(UserError, match=word) as error:
        load_model(name)
    one_line(error)


def test_an_unfinished_or_changed_run_is_one_line(place: Path) -> None:
    run = place.parent / 'run'
    data = (run / 'model.safetensors').read_bytes()
    (run / 'model.safetensors').write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckFailed, match='has changed since training') as error:
        load_model(str(run))
    one_line(error)
    (run / 'model.safetensors').write_bytes(data)
    result = json.loads((run / 'result.json').read_text())
    for change in ({'num_classes': 4}, {'model': 'nowhere'}, {'input_size': []}, {'classes': 'abc'}, {'mean': None}):
        (run / 'result.json').write_text(json.dumps(result | change))
        with pytest.raises(UserError) as error:
            load_model(str(run))
        one_line(error)
    (run / 'result.json').unlink()
    with pytest.raises(UserError, match='not a finished run') as error:
        load_model(str(run))
    one_line(error)


@pytest.mark.parametrize('cut', [0, 4, 100, -1])
def test_a_truncated_file_in_local_dir_is_one_line(place: Path, cut: int) -> None:
    path = place / f'{NAME}.toy' / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:cut])
    for load in (load_model, lambda name: timm.create_model(name, pretrained=True)):
        with pytest.raises(UserError) as error:
            load(f'local-dir:{path.parent}')
        one_line(error)


def test_a_config_of_local_dir_that_fits_no_model_is_one_line(place: Path) -> None:
    path = place / f'{NAME}.toy' / 'config.json'
    config = json.loads(path.read_text())
    for change in (
        {'model_args': {'bogus': 1}},
        {'architecture': 'nowhere'},
        {'pretrained_cfg': []},
        {'num_classes': 'x'},
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(UserError) as error:
            load_model(f'local-dir:{path.parent}')
        one_line(error)
    path.write_text('{')
    with pytest.raises(UserError) as error:
        load_model(f'local-dir:{path.parent}')
    one_line(error)
    path.write_text(json.dumps(config))
    hub.publish(make_model(), place, f'{NAME}.other')
    with pytest.raises(TypeError, match='bogus'):  # an argument of the caller's own, as in timm
        load_model(f'{NAME}.other', bogus=1)
