"""Size and cost of every name, against one file."""

import pytest
import torch
from families import one_per_method, small
from sizes import SIZES
from torch.utils.flop_counter import FlopCounterMode

import nf_zoo
from nf_zoo.analysis.catalogue import measure, multiply_adds


def test_the_file_has_every_name():
    assert list(SIZES) == nf_zoo.list_models(), 'after a deliberate change: make golden'


@pytest.mark.parametrize('name', SIZES)
def test_params_and_macs(name):
    assert measure(name) == SIZES[name], 'after a deliberate change: make golden'


@pytest.mark.parametrize('name', ['bn_resnet20_cifar', *one_per_method()])
def test_multiply_adds_are_those_of_torchs_counter(name):
    model = small(name, attn_layer='se').to('meta').eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 64, 48, device='meta'))
    assert multiply_adds(model, 3, 64, 48) == counter.get_total_flops() // 2 > 0
