"""nf-zoo convert: a run's folder of a network without batch normalization."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from train_toys import run_toy, toys  # noqa: F401

from nf_zoo.cli.main import main
from nf_zoo.inference.loading import load_model
from nf_zoo.train.run_folder import claimed
from tools.conversion import randomize


def test_a_pretrained_control_becomes_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / 'run'
    assert main(['convert', 'bn_resnet20_cifar.cifar10', '-o', str(run)]) == 0
    shown = capsys.readouterr().out
    assert 'wn_resnet20_cifar' in shown and 'largest difference' in shown and '269,722 -> 269,722' in shown
    original = timm.create_model('bn_resnet20_cifar.cifar10', pretrained=True).eval()
    converted = load_model(str(run))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(converted(x), original(x), rtol=0, atol=1e-5 * original(x).abs().max().item())
    result = json.loads((run / 'result.json').read_text())
    assert result['dataset'] == 'cifar10' and result['classes'][3] == 'cat'
    assert result['note'] == 'Converted from bn_resnet20_cifar.cifar10, which has batch normalization.'  # and no path

    # It is a run: it can be published, and its card says what it is.
    assert main(['publish', str(run), '--to', str(tmp_path / 'hub'), '--name', 'wn_resnet20_cifar.mine']) == 0
    assert 'Converted from' in (tmp_path / 'hub' / 'wn_resnet20_cifar.mine' / 'README.md').read_text()
    assert main(['convert', 'bn_resnet20_cifar.cifar10', '-o', str(run)]) == 2
    error = capsys.readouterr().err
    assert 'already holds a run' in error and '--resume' not in error  # which convert has not got


def test_a_folder_that_a_run_trains_into_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(tmp_path / 'run', resume=False):
        assert main(['convert', 'bn_resnet20_cifar.cifar10', '-o', str(tmp_path / 'run')]) == 2
        error = capsys.readouterr().err
        assert 'another run is training into' in error and error.count('\n') == 1
        assert not any((tmp_path / 'run').iterdir())


def test_a_run_keeps_the_keywords_of_its_network(tmp_path: Path, toys: None) -> None:  # noqa: F811
    run_toy(tmp_path / 'bn', model='bn_resnet20_cifar', epochs=1)
    assert main(['convert', str(tmp_path / 'bn'), '-o', str(tmp_path / 'wn')]) == 0
    original, converted = load_model(str(tmp_path / 'bn')), load_model(str(tmp_path / 'wn'))
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(converted(x), original(x), rtol=0, atol=1e-5 * original(x).abs().max().item())
    assert [len(stage) for stage in converted.stages] == [1, 1, 1]
    assert json.loads((tmp_path / 'wn' / 'result.json').read_text())['note'].startswith('Converted from bn, which')


def test_weights_of_a_file_and_an_eunnet_fitted_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = randomize(timm.create_model('bn_resnet20_cifar', num_classes=3)).eval()
    save_file(control.state_dict(), tmp_path / 'weights.safetensors')
    (tmp_path / 'images').mkdir()
    for i in range(4):
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{i}.png')
    command = ['convert', 'bn_resnet20_cifar', '--weights', str(tmp_path / 'weights.safetensors')]
    assert main([*command, '-o', str(tmp_path / 'wn')]) == 0
    assert main([*command, '--to', 'eunnet', '--images', str(tmp_path / 'images'), '-o', str(tmp_path / 'eun')]) == 0
    assert '19 convolutions fitted on 4 images' in capsys.readouterr().out
    trained = [*command, '--to', 'eunnet', '--images', str(tmp_path / 'images'), '--steps', '1']
    assert main([*trained, '-o', str(tmp_path / 'trained')]) == 0
    before, after = (load_file(tmp_path / name / 'model.safetensors') for name in ('eun', 'trained'))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    x = torch.randn(2, 3, 32, 32)
    expected = control(x)
    difference = load_model(str(tmp_path / 'wn'))(x) - expected
    assert difference.abs().max() < 1e-5 * expected.abs().max()
    assert load_model(str(tmp_path / 'eun')).pretrained_cfg['architecture'] == 'eunnet20_cifar'


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['efficientnet_b0'], 'nf_zoo.convert(model) takes any network'),
        (['eunnet20_cifar.cifar10'], 'eunnet20_cifar has no batch normalization to convert'),
        (['resnet18', '--to', 'eunnet', '--images', 'DIR'], "in the form 'eunnet'"),
        (['bn_resnet20_cifar.cifar10', '--to', 'eunnet'], '--images DIR'),
        (['bn_resnet20_cifar.cifar10', '--steps', '5'], '--to eunnet'),
        (['bn_resnet20_cifar.cifar10', '--images', 'DIR'], '--to eunnet'),
        (['bn_resnet20_cifar', '--weights', 'missing.pth'], 'missing.pth'),
        (['bn_resnet20_cifar', '--weights', 'other.safetensors'], 'no classifier'),
        (['bn_resnet20_cifar', '--weights', 'nan.safetensors'], 'fc.weight holds NaN or infinity'),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({'a': torch.ones(1)}, 'other.safetensors')
    save_file({'fc.weight': torch.full((3, 64), float('nan'))}, 'nan.safetensors')
    assert main(['convert', *arguments, '-o', 'run']) == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1
    assert not Path('run').exists()
