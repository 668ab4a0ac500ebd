"""timm's own weights where no Hub can be reached: one line that says what to do, and no half a minute of retries."""

import socket
from pathlib import Path

import pytest
import timm
from hub_client import connect
from hub_server import Hub
from hubs import one_line

from nf_zoo.cli.main import main
from nf_zoo.hub.huggingface import Unreachable


@pytest.fixture
def pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        port = closed.getsockname()[1]
    return connect(Hub(endpoint=f'http://127.0.0.1:{port}'), tmp_path / 'hf', monkeypatch)


@pytest.mark.parametrize('name', ['wn_resnet18', 'wn_resnet18.a1_in1k', 'nf_resnet50.ra2_in1k'])
def test_weights_of_timm_fail_at_once(pauses: list[float], name: str) -> None:
    with pytest.raises(Unreachable, match="Hub can't be reached") as error:
        timm.create_model(name, pretrained=True)
    said = one_line(error)
    assert 'hf://timm/' in said and 'nf-zoo list --pretrained' in said and 'NF_ZOO_HUB' in said
    assert 'HF_HUB_OFFLINE=1' in said and pauses == []


@pytest.mark.parametrize(
    'command',
    [
        'info resnet18 --trained',
        'export resnet18.a1_in1k --check',
        'predict hf-hub:org/x IMAGE',
        'train --model resnet18 --pretrained --dataset digits --output RUN',
    ],
)
def test_commands_say_it_in_one_line(
    pauses: list[float], capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    (tmp_path / 'a.png').touch()
    command = command.replace('IMAGE', str(tmp_path / 'a.png')).replace('RUN', str(tmp_path / 'run'))
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("nf-zoo: error: the Hub can't be reached") and said.count('\n') == 1, said
    assert '--weights FILE' in said and '--initial-checkpoint FILE' in said and pauses == []


def test_offline_the_variable_is_named(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(Unreachable, match='HF_HUB_OFFLINE is set'):
        timm.create_model('wn_resnet18', pretrained=True)


def test_offline_training_from_timms_weights_says_so_too(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    run = ['--dataset', 'digits', '--output', str(tmp_path / 'run')]
    for plan in [], ['--dry-run']:
        assert main(['train', '--model', 'resnet18', '--pretrained', *run, *plan]) == 2
        said = capsys.readouterr().err
        assert 'HF_HUB_OFFLINE is set' in said and 'hf://timm/resnet18' in said and said.count('\n') == 1
