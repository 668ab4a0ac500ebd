"""The files that go with a release say what the package says."""

import re
from pathlib import Path

import yaml

import nf_zoo

ROOT = Path(__file__).resolve().parents[2]


def citation() -> dict:
    return yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))


def test_the_citation_is_of_this_version() -> None:
    found = citation()
    assert found['version'] == nf_zoo.__version__
    assert found['license'] in (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    changes = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert re.findall(r'^## (.*)$', changes, re.MULTILINE)[0] == found['version']


def test_every_paper_of_a_methods_page_is_cited() -> None:
    """By its arXiv number or doi; RescaleNet's has neither."""
    papers = ' '.join(str(paper.get('url', '')) + str(paper.get('doi', '')) for paper in citation()['references'])
    for page in (ROOT / 'nf_zoo' / 'models').glob('[a-z]*.py'):
        head = page.read_text(encoding='utf-8').split('\n\n')[0]
        for paper in re.findall(r'arXiv:(\d+\.\d+)|doi:([\w./]+\w)', head):
            assert ''.join(paper) in papers, page.name
    assert any('normalization indispensable' in paper['title'] for paper in citation()['references'])
