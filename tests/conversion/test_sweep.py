"""The smallest network of every timm module: `make conversion` writes their table, `make soak` measures them again."""

import re

import pytest
import torch

from nf_zoo import fold
from tools.conversion import PAGE, has_batch_norm, image_for, measure, modules, smallest

ROWS = re.findall(r'^\| (\w+) \| `(\w+)` \|', PAGE.read_text(), re.MULTILINE)


def test_the_table_names_each_module_once() -> None:
    named = [module for module, _ in ROWS]
    assert named == sorted(set(named)) and len(named) > 50
    assert set(named) <= set(modules())


@pytest.mark.soak
@pytest.mark.parametrize('module', modules())
def test_the_smallest_network_of_a_module_is_converted_exactly(module: str) -> None:
    name = smallest(module)
    assert name == dict(ROWS).get(module), 'run `make conversion`'
    if name is None:
        pytest.skip('no batch normalization')
    row, converted = measure(module, name)
    assert row.exact is not None and row.exact < 1e-12
    assert converted is not None and not has_batch_norm(converted)
    image = image_for(converted)
    with torch.no_grad():
        found, expected = fold(converted)(image), converted.eval()(image)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (expected, found)), strict=True):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()
