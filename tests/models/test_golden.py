"""Size and cost of every name, against one file."""

import pytest
from sizes import SIZES

import nf_zoo
from nf_zoo.analysis.catalogue import measure


def test_the_file_has_every_name():
    assert list(SIZES) == nf_zoo.list_models(), 'after a deliberate change: make golden'


@pytest.mark.parametrize('name', SIZES)
def test_params_and_macs(name):
    assert measure(name) == SIZES[name], 'after a deliberate change: make golden'
