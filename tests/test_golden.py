"""Size and cost of every name, against one file."""

import json

import pytest
from golden import PATH, measure

import nf_zoo

GOLDEN = json.loads(PATH.read_text())


def test_the_file_has_every_name():
    assert list(GOLDEN) == nf_zoo.list_models(), 'after a deliberate change: make golden'


@pytest.mark.parametrize('name', GOLDEN)
def test_params_and_macs(name):
    assert measure(name) == GOLDEN[name], 'after a deliberate change: make golden'
