"""The notebook of examples/ runs, and the outputs in it are those of a run."""

import re
from pathlib import Path

import nbformat
import pytest

from tools.notebook import NOTEBOOK, executed


def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What each cell of code printed."""
    code = (cell for cell in notebook.cells if cell.cell_type == 'code')
    return [[output.get('text', output.output_type) for output in cell.outputs] for cell in code]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of Jupyter's own libraries
def test_the_notebook_says_what_it_says_when_it_runs(tmp_path: Path) -> None:
    committed = outputs(nbformat.read(NOTEBOOK, as_version=4))
    found = outputs(executed(tmp_path))
    assert all(len(texts) == 1 for texts in found), 'a cell prints once, and warns of nothing'
    percent = re.compile(r'(\d+) % of the test digits')
    reached = [int(percent.search(str(texts))[1]) for texts in (found[1], committed[1])]
    assert min(reached) > 80
    assert [texts for texts in found if texts != found[1]] == [texts for texts in committed if texts != committed[1]]
    assert NOTEBOOK.stat().st_size < 20_000
