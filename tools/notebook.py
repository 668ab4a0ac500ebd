"""Runs the notebook of examples/ and writes its outputs into it: ``python -m tools.notebook``."""

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / 'examples' / 'fine_tune_convert_deploy.ipynb'


def executed(folder: str | Path) -> Any:
    """The notebook with the outputs of a run in ``folder``, without anything that differs from run to run."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=100, coalesce_streams=True, resources={'metadata': {'path': str(folder)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == 'code':  # warnings on the state of this installation are not the reader's
            cell.outputs = [output for output in cell.outputs if output.get('name') != 'stderr']
    notebook.metadata = {
        'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
        'language_info': {'name': 'python'},
    }
    return notebook


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as scratch:
        nbformat.write(executed(scratch), NOTEBOOK)
