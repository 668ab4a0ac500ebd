"""Size and cost of every name, against one file."""

import json

import pytest

import nf_zoo
from nf_zoo.analysis.catalogue import SIZES_FILE, measure

GOLDEN = json.loads(SIZES_FILE.read_text())


def test_the_file_has_every_name():
    assert list(GOLDEN) == nf_zoo.list_models(), 'after a deliberate change: make golden'


@pytest.mark.parametrize('name', GOLDEN)
def test_params_and_macs(name):
    assert measure(name) == GOLDEN[name], 'after a deliberate change: make golden'
