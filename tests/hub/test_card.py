"""Model cards: a usage block that runs, what the weights are good for, and only the settings that were chosen."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from nf_zoo.hub import card
from nf_zoo.hub.index import bundled
from tools.cards import rendered

FOLDERS = sorted(bundled().glob('*.*/'))


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda path: path.name)
def test_the_packages_cards_are_up_to_date(folder: Path) -> None:
    manifest = json.loads((folder / 'manifest.json').read_bytes())
    text = (folder / 'README.md').read_bytes()
    assert text == rendered(folder, manifest), 'make cards'
    for part in (
        b'Good for:',
        b'Not for:',
        b'Expected calibration error:',
        b'Dead blocks:',
        b'(curves.png)' if 'epochs' in manifest else manifest['note'].encode(),  # what was converted has no curves
        b'## Licence and data',
    ):
        assert part in text


def test_the_usage_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (bundled() / 'eunnet20_cifar.cifar10' / 'README.md').read_text(encoding='utf-8')
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL)
    assert code
    Image.effect_noise((40, 30), 80).convert('RGB').save(tmp_path / 'image.png')
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    _, config = manifest_and_config()
    said = capsys.readouterr().out
    assert any(name in said for name in config['label_names'])


def manifest_and_config() -> tuple[dict, dict]:
    folder = bundled() / 'eunnet20_cifar.cifar10'
    return tuple(json.loads((folder / f'{name}.json').read_bytes()) for name in ('manifest', 'config'))


def test_only_settings_that_were_chosen_are_shown() -> None:
    manifest, config = manifest_and_config()
    text = card.render(manifest, config, curves=False).partition('```yaml\n')[2].partition('```')[0]
    assert 'sched_on_updates: true' in text and 'train_sizes' in text and 'model: eunnet20_cifar' in text
    assert 'null' not in text and 'mixup' not in text


@pytest.mark.parametrize(
    ('recipe', 'parent'),
    [
        ({'model': 'resnet18.a1_in1k', 'pretrained': True}, 'timm/resnet18.a1_in1k'),
        ({'model': 'hf-hub:someone/net@main', 'pretrained': True}, 'someone/net'),
        ({'model': 'resnet18.a1_in1k', 'pretrained': True, 'initial_checkpoint': 'x.safetensors'}, None),
        ({'model': 'resnet18.a1_in1k'}, None),
        ({'model': 'eunnet20_cifar.cifar10', 'pretrained': True}, 'nf-zoo/eunnet20_cifar.cifar10'),
    ],
)
def test_the_hub_is_told_what_the_training_started_from(recipe: dict, parent: str | None) -> None:
    manifest, config = manifest_and_config()
    data = ModelCard(card.render(manifest | {'recipe': recipe}, config, curves=False)).data
    assert data.get('base_model') == parent


def test_what_was_not_measured_is_not_shown() -> None:
    manifest, config = manifest_and_config()
    manifest['metrics'].pop('ece', None)
    manifest.pop('blocks', None)
    text = card.render(manifest, config, curves=False)
    assert 'calibration' not in text and 'Dead' not in text and 'curves.png' not in text


def test_dead_blocks_are_counted() -> None:
    manifest, config = manifest_and_config()
    manifest['blocks'] = {'stages.0.0': {'share': 0.5}, 'stages.0.1': {'share': 0.0}}
    assert 'Dead blocks: 1 of 2.' in card.render(manifest, config, curves=False)


def test_a_folder_of_ones_own_is_called_so() -> None:
    manifest, config = manifest_and_config()
    text = card.render(manifest | {'dataset': 'folder'}, config, curves=False)
    assert 'trained on a folder of pictures (10 classes)' in text and 'the terms of their source hold' in text
