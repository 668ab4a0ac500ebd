"""What trained networks have learned: table, warnings, spectra, picture."""

import json
import math

import pytest
import timm
import torch
from torch import nn

from nf_zoo.analysis.trained import singular_values, trained_blocks, warnings
from nf_zoo.block_scalars import block_shares
from nf_zoo.cli import main as cli
from nf_zoo.layers.std_conv import WSConv2d


def test_a_row_has_the_numbers_of_its_block():
    model = timm.create_model('eunnet20_cifar.cifar10', pretrained=True).eval()
    nn.init.constant_(model.stages[2][1].scale, 1e-4)
    x = torch.randn(4, 3, 32, 32)
    rows = trained_blocks(model, x)
    y = model.stages[0](model.stem(x))
    assert [row.block for row in rows] == [f'stages.{i}.{j}' for i in range(3) for j in range(3)]
    assert rows[2].nonzero == pytest.approx((y != 0).float().mean().item())
    assert rows[2].total_variance == pytest.approx(y.var(correction=0).item(), rel=1e-5)
    assert {row.block: row.share for row in rows} == {
        name: pytest.approx(row['share']) for name, row in block_shares(model, x).items()
    }
    assert [line.partition(':')[0] for line in warnings(rows)] == ['stages.2.1']


@pytest.mark.parametrize('shape', [(8, 4, 3, 3), (40, 4, 1, 1)])
def test_singular_values_are_those_of_the_weight_that_is_applied(shape):
    out, chs, k, _ = shape
    conv = WSConv2d(chs, out, k)
    nn.init.constant_(conv.gain, 2.0)
    with torch.no_grad():
        expected = torch.linalg.svdvals(conv.effective_weight().double().flatten(1))
    assert torch.allclose(singular_values(conv), expected, atol=1e-6)


def test_a_network_without_learned_scalars_has_shares_and_spectra_all_the_same():
    rows = trained_blocks(timm.create_model('idshort_resnet18_cifar', depths=(1, 1, 1, 1)), torch.randn(1, 3, 32, 32))
    assert all(row.scalar == '' and math.isnan(row.value) for row in rows)
    assert all(row.share > 0.1 and row.largest > row.smallest >= 0 for row in rows)


def test_the_command(capsys, tmp_path):
    picture = tmp_path / 'a.svg'
    argv = ['info', 'eunnet20_cifar.cifar10', '--trained', '--beside', 'bn_resnet20_cifar.cifar10', '--batch-size', '2']
    assert cli.main([*argv, '-o', str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22 and lines[2].split()[1] == 'scale' and lines[13].split()[1] == 'bn2.weight'
    assert 'eunnet20_cifar.cifar10: scale' in picture.read_text()
    assert cli.main([*argv, '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2 and found['eunnet20_cifar.cifar10']['warnings'] == []
    assert cli.main(['info', 'eunnet20_cifar', '-o', 'a.svg']) == 2
    assert '--output needs --trained' in capsys.readouterr().err
