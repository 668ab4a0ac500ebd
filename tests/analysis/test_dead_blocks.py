"""A run records what each block contributes; weights with dead blocks are published only if that is asked for."""

import json

import pytest
from train_toys import run_toy, toys  # noqa: F401

import nf_zoo
from nf_zoo.errors import UserError
from nf_zoo.train.run_folder import read_result


def test_a_run_and_its_manifest_have_scalars_and_shares(toys, tmp_path):  # noqa: F811
    run_toy(tmp_path / 'run', epochs=1)
    blocks = read_result(tmp_path / 'run').blocks
    assert list(blocks) == ['stages.0.0', 'stages.1.0', 'stages.2.0']
    assert all(row['scale'] != 1 and row['share'] > 0.01 for row in blocks.values())
    folder = nf_zoo.publish(tmp_path / 'run', tmp_path / 'hub', tag='toy')
    assert json.loads((folder / 'manifest.json').read_text())['blocks'] == blocks
    # As a run of an earlier version, whose result has no blocks.
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    del result['blocks']
    (tmp_path / 'run' / 'result.json').write_text(json.dumps(result))
    older = nf_zoo.publish(tmp_path / 'run', tmp_path / 'hub', tag='older')
    assert 'blocks' not in json.loads((older / 'manifest.json').read_text())
    assert all(nf_zoo.verify(f'eunnet20_cifar.{tag}', hub=tmp_path / 'hub') for tag in ('toy', 'older'))


def test_dead_blocks_are_published_only_on_demand(toys, tmp_path):  # noqa: F811
    run = tmp_path / 'run'
    run_toy(run, epochs=1, model='skipinit_resnet20_cifar', lr=1e-60, warmup_lr=0.0)  # every scalar stays 0
    with pytest.raises(UserError, match='stages.0.0, stages.1.0, stages.2.0 .*--allow-dead') as caught:
        nf_zoo.publish(run, tmp_path / 'hub')
    assert '\n' not in str(caught.value) and not (tmp_path / 'hub').exists()
    assert nf_zoo.publish(run, tmp_path / 'hub', allow_dead=True).is_dir()
