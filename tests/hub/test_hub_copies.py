"""Published weights that are published again: copied byte for byte, or with what was asked for changed."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hub_client import connect
from hub_server import serve
from hubs import FACTS, NAME, contents_of, make_model, make_run, one_line, rewrite
from PIL import Image
from torch.nn.utils import prune

import nf_zoo
from nf_zoo import hub
from nf_zoo.cli import main as cli
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.hub import places, weights
from nf_zoo.hub.index import bundled


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub on the search path with NAME.toy, published from a run."""
    hub.publish(make_run(tmp_path / 'run'), tmp_path / 'first')
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path / 'first'))
    return tmp_path / 'first'


def test_a_name_is_copied_byte_for_byte(first: Path, tmp_path: Path) -> None:
    name = f'{NAME}.toy'
    folder = Path(hub.publish(name, tmp_path / 'second'))
    assert contents_of(folder) == contents_of(first / f'{NAME}.toy') and 'curves.png' in contents_of(folder)
    before = folder.stat().st_ino
    assert hub.publish(name, tmp_path / 'second') == folder and folder.stat().st_ino == before
    assert hub.verify(f'{NAME}.toy', hub=tmp_path / 'second')


def test_the_bundled_weights_can_be_copied(tmp_path: Path) -> None:
    folder = hub.publish(f'{NAME}.cifar10', tmp_path)
    assert contents_of(Path(folder)) == contents_of(bundled() / f'{NAME}.cifar10')
    assert hub.verify(f'{NAME}.cifar10', hub=tmp_path)


def test_to_the_hub_and_back(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import close_session

    with serve() as server:
        connect(server, tmp_path / 'hf', monkeypatch)
        hub.publish(f'{NAME}.toy', 'hf://org')
        hub.publish(f'{NAME}.toy', 'hf://org')
        assert len(server.repos[f'org/{NAME}.toy'].commits) == 2
        monkeypatch.setenv('NF_ZOO_HUB', 'hf://org')
        hub.publish(f'{NAME}.toy', tmp_path / 'back')
        close_session()
    assert contents_of(tmp_path / 'back') == contents_of(first)


def test_another_tag_type_or_licence(first: Path, tmp_path: Path) -> None:
    folder = Path(hub.publish(f'{NAME}.toy', tmp_path / 'second', f'{NAME}.half', dtype='float16', license='mit'))
    old, new = (json.loads((path / 'manifest.json').read_text()) for path in (first / f'{NAME}.toy', folder))
    assert folder.name == f'{NAME}.half' and (new['dtype'], new['license']) == ('float16', 'mit')
    for key in ('dataset', 'metrics', 'recipe', 'seed', 'epochs', 'hardware', 'num_classes', 'train_n'):
        assert new[key] == old[key]
    assert (folder / 'curves.png').read_bytes() == (first / f'{NAME}.toy' / 'curves.png').read_bytes()
    loaded = weights.load(NAME, 'half', places.DirPlace(tmp_path / 'second'))
    assert loaded.pretrained_cfg['label_names'] == ('a', 'b', 'c')
    assert loaded.pretrained_cfg['mean'] == (0.1, 0.2, 0.3)
    for key, value in make_model().state_dict().items():
        assert torch.equal(loaded.state_dict[key], value.half())
    kept = hub.publish(f'{NAME}.toy', tmp_path / 'third', tag='again')
    assert json.loads((Path(kept) / 'manifest.json').read_text())['license'] == old['license']


def test_the_tag_stays_whatever_the_data_set_is_called(first: Path, tmp_path: Path) -> None:
    hub.publish(make_model(), first, f'{NAME}.mine', dataset='cifar10')
    assert Path(hub.publish(f'{NAME}.mine', tmp_path / 'second', dtype='bfloat16')).name == f'{NAME}.mine'


def test_what_no_model_can_be_built_from_is_not_published(first: Path, tmp_path: Path) -> None:
    config = (first / f'{NAME}.toy' / 'config.json').read_bytes()
    rewrite(first / f'{NAME}.toy', 'config.json', config.replace(b'"depths": [\n      1,', b'"depths": [\n      2,'))
    with pytest.raises(CheckFailed, match='not weights of') as error:
        hub.publish(f'{NAME}.toy', tmp_path / 'second', tag='other')
    one_line(error)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (nf_zoo.fold, 'not those of the eunnet20_cifar that timm.create_model makes'),
        (lambda model: prune.l1_unstructured(model.stages[0][0].conv1, 'weight', 0.5) and model, r'stages.0.0.conv1'),
        (lambda model: model.to('meta'), "on the device 'meta'"),
    ],
)
def test_a_network_that_nobody_could_load_is_not_published(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        hub.publish(change(timm.create_model(NAME, depths=[1, 1, 1])), tmp_path / 'hub', tag='x')
    one_line(error)
    assert not (tmp_path / 'hub').exists()


@pytest.mark.parametrize(
    ('name', 'kwargs'),
    [
        ('eunnet20_cifar', {'width': 0.5}),
        ('dm_nf_resnet50', {'depths': [1, 1, 1, 1], 'width': 0.25, 'gamma': 1.5}),
        ('wn_resnet20_cifar', {'depths': [1, 1, 1], 'weight_norm': False}),
    ],
)
def test_every_keyword_of_a_network_is_published(
    name: str, kwargs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model(name, num_classes=3, **kwargs).eval()
    hub.publish(model, tmp_path, f'{name}.mine')
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(timm.create_model(f'{name}.mine', pretrained=True).eval()(x), model(x))


def test_what_is_no_name(first: Path, tmp_path: Path) -> None:
    for source, word in (
        (f'{NAME}.nowhere', 'no weights'),
        ('no_such_run', 'not a finished run'),
        (f'{NAME}.t y', 'name'),
    ):
        with pytest.raises(UserError, match=word) as error:
            hub.publish(source, tmp_path / 'second')
        one_line(error)
    with pytest.raises(UserError, match='not of nf_resnet20_cifar'):
        hub.publish(f'{NAME}.toy', tmp_path / 'second', 'nf_resnet20_cifar.toy')
    assert not (tmp_path / 'second').exists()


def test_a_damaged_original_is_not_copied(first: Path, tmp_path: Path) -> None:
    path = first / f'{NAME}.toy' / 'curves.png'
    path.write_bytes(b'other')
    with pytest.raises(CheckFailed, match=r'curves\.png'):
        hub.publish(f'{NAME}.toy', tmp_path / 'second')
    assert not (tmp_path / 'second').exists()


def test_private_is_for_an_organization(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='hf://ORG') as error:
        hub.publish(make_model(), tmp_path / 'hub', tag='toy', private=True)
    one_line(error)
    assert not (tmp_path / 'hub').exists()


def test_the_command(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = ['--to', str(tmp_path / 'second')]
    assert cli.main(['publish', f'{NAME}.toy', *to, '--dry-run']) == 0 and not (tmp_path / 'second').exists()
    assert capsys.readouterr().out == f'{tmp_path / "second" / NAME}.toy (dry run: nothing written)\n'
    assert cli.main(['publish', str(tmp_path / 'run'), *to, '--name', f'{NAME}.mine']) == 0
    shown = capsys.readouterr()
    assert shown.out == f'{tmp_path / "second" / NAME}.mine\n'
    head, export, *commands = shown.err.splitlines()
    assert head == 'use it:' and export == f'  export NF_ZOO_HUB={tmp_path / "second"}'
    monkeypatch.setenv('NF_ZOO_HUB', export.partition('=')[2])
    Image.new('RGB', (32, 32)).save(tmp_path / 'x.png')
    for command in commands[:2]:
        assert cli.main(command.replace('IMAGE', str(tmp_path / 'x.png')).split()[1:]) == 0, command
    exec(shlex.split(commands[2])[2])
    capsys.readouterr()
    assert cli.main(['publish', f'{NAME}.mine', *to]) == 0  # it is there, and it is known
    assert 'export' not in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert cli.main(['publish', 'run', '--to', 'third']) == 0
    assert capsys.readouterr().err.splitlines()[1] == f'  export NF_ZOO_HUB={tmp_path / "third"}'  # in every folder


def test_verify_measures_image_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / 'data/validation' / name).mkdir(parents=True)
        for i in range(3):
            image = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / 'data/validation' / name / f'{i}.png')
    torch.manual_seed(0)
    model = timm.create_model(NAME, depths=(1, 1, 1), num_classes=2).eval()
    torch.nn.init.normal_(model.get_classifier().weight)
    from nf_zoo.train import evaluate

    measured = evaluate(model, 'folder', tmp_path / 'data')
    assert measured['n'] == 6
    facts = FACTS | {'dataset': 'folder', 'classes': ['cat', 'dog'], 'metrics': measured}
    hub.publish(model, tmp_path / 'hub', f'{NAME}.pets', **facts)
    assert hub.verify(f'{NAME}.pets', tmp_path / 'data', tmp_path / 'hub').measured == pytest.approx(measured)
    hub.publish(
        model,
        tmp_path / 'hub',
        f'{NAME}.wrong',
        **facts | {'metrics': measured | {'top1': 0.0 if measured['top1'] > 50 else 100.0}},
    )
    with pytest.raises(CheckFailed, match='recorded'):
        hub.verify(f'{NAME}.wrong', tmp_path / 'data', tmp_path / 'hub')
    model.pretrained_cfg['input_size'] = (3, 40, 40)
    larger = evaluate(model, 'folder', tmp_path / 'data')
    model.pretrained_cfg['input_size'] = (3, 32, 32)
    hub.publish(
        model, tmp_path / 'hub', f'{NAME}.larger', **facts | {'metrics': larger, 'recipe': {'val_img_size': 40}}
    )
    again = hub.verify(f'{NAME}.larger', tmp_path / 'data', tmp_path / 'hub').measured
    assert again == pytest.approx(larger) and again['loss'] != measured['loss']
    (tmp_path / 'data/validation').rename(tmp_path / 'data/val')
    hub.publish(model, tmp_path / 'hub', f'{NAME}.val', **facts | {'recipe': {'val_split': 'val'}})
    assert hub.verify(f'{NAME}.val', tmp_path / 'data', tmp_path / 'hub').measured == pytest.approx(measured)
    with pytest.raises(UserError, match='data/validation: no class folders'):
        evaluate(model, 'folder', tmp_path / 'data')
    hub.publish(model, tmp_path / 'hub', f'{NAME}.outside', **facts | {'recipe': {'val_split': '../data/val'}})
    with pytest.raises(CheckFailed, match=r"'\.\./data/val' is not the name of a split"):
        hub.verify(f'{NAME}.outside', tmp_path / 'data', tmp_path / 'hub')
    (tmp_path / 'data/val').rename(tmp_path / 'data/validation')
    (tmp_path / 'data/validation/dog').rename(tmp_path / 'data/validation/wolf')
    with pytest.raises(UserError, match='dog, wolf') as error:
        hub.verify(f'{NAME}.pets', tmp_path / 'data', tmp_path / 'hub')
    one_line(error)


_PEAK = r"""
import re
import nf_zoo, timm
import nf_zoo
from nf_zoo import hub
def peak():  # of this program; getrusage has that of the one that started it
    return int(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1]) << 10
timm.create_model('eunnet20_cifar')
before = peak()
hub.fetch('eunnet20_cifar.big')
fetched = peak()
timm.create_model('eunnet20_cifar.big', pretrained=True)
print(fetched - before, peak() - before)
"""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != 'linux', reason='Linux tells the peak of memory')
def test_a_hub_of_a_gigabyte_needs_the_memory_of_two_models(tmp_path: Path) -> None:
    """Fetching hashes in pieces. Loading has two copies of the weights for a moment."""
    model = timm.create_model(NAME, num_classes=1_000_000)
    size = sum(p.numel() * 4 for p in model.parameters())
    hub.publish(model, tmp_path, f'{NAME}.big')
    for number in range((1 << 30) // size):
        shutil.copytree(tmp_path / f'{NAME}.big', tmp_path / f'{NAME}.other{number}')
    assert sum(p.stat().st_size for p in tmp_path.rglob('*.safetensors')) > 1 << 30
    del model
    env = os.environ | {'NF_ZOO_HUB': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', _PEAK], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fetched, loaded = map(int, done.stdout.split())
    print(f'weights {size:,} bytes; fetch {fetched:,}, create_model {loaded:,} more at its peak')
    assert fetched < 64 << 20 and loaded < 2.1 * size + (64 << 20)
