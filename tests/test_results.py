"""The tables of results say what the bundled manifests say, and each recipe that they name is there."""

import json
from typing import Any

import pytest

from nf_zoo.train.recipe import load_recipe
from results import ROOT, files, rows


def test_the_tables_are_up_to_date() -> None:
    for path, text in files().items():
        assert path.read_text(encoding='utf-8') == text, f'{path.name}: make results'


@pytest.mark.parametrize('row', [row for table in rows().values() for row in table], ids=lambda row: row['model'])
def test_the_recipe_is_the_one_that_it_was_trained_by(row: dict[str, Any]) -> None:
    committed = load_recipe(ROOT / row['recipe']).settings()
    trained = json.loads(json.dumps(row['manifest']['recipe']))
    committed = json.loads(json.dumps(committed))
    assert {key: committed[key] for key in trained} == trained
