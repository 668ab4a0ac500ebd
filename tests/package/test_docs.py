"""The documentation site: generated pages, equations, and nothing from elsewhere. `make docs` builds it whole."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from chromium import chromium
from mkdocs.exceptions import PluginError

from nf_zoo.analysis.catalogue import rows
from tools import docs

MODELS = docs.ROOT / 'nf_zoo' / 'models'


def test_every_method_has_a_page_with_its_signal() -> None:
    pages = {path.stem for path in MODELS.glob('[a-z]*.py')}
    assert set(docs.METHODS) == set(docs.SIGNALS) == pages
    for page, names in docs.SIGNALS.items():
        assert {docs.entry_module(name) for name in names} == {f'nf_zoo.models.{page}'}


def test_a_methods_weights_and_recipes_are_listed() -> None:
    found = rows('eunnet50', False)
    weights, recipes = '\n'.join(docs.weights_of(found)), '\n'.join(docs.recipes_of({'eunnet50'}))
    assert '`eunnet50.imagenette`' in weights and ' MB |' in weights
    assert '`imagenet/eunnet50`' in recipes and '`imagenette/eunnet50`' in recipes and 'resnet110' not in recipes
    assert 'None are published.' in docs.weights_of(rows('fixup_resnet152', False))


def test_equations_become_mathml() -> None:
    text = docs.on_page_content('<p><span class="arithmatex">\\(a_1 &lt; b\\)</span></p>')
    assert '<math' in text and '<msub>' in text and 'arithmatex' not in text
    text = docs.on_page_content('see :class:<code>~nf_zoo.net.layout.Site</code>, :math:<code>a_1</code>')
    assert text.startswith('see <code>Site</code>, <math')


@pytest.mark.parametrize(
    'page',
    [
        '<script src="https://elsewhere.example/a.js"></script>',
        '<img alt="" src="//elsewhere.example/a.png">',
        '<link rel="stylesheet" href="https://elsewhere.example/a.css">',
        '<style>@font-face { src: url(https://elsewhere.example/a.woff) }</style>',
    ],
)
def test_a_page_that_loads_from_elsewhere_fails_the_build(page: str, tmp_path: Path) -> None:
    (tmp_path / 'good.html').write_text('<a href="https://arxiv.org">a link</a><img src="a.png">')
    docs.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
    (tmp_path / 'bad.html').write_text(page)
    with pytest.raises(PluginError, match='bad.html loads from elsewhere'):
        docs.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))


@pytest.mark.kit
@pytest.mark.timeout(600)
def test_the_search_answers_where_pages_are_opened_as_files(tmp_path: Path) -> None:
    if not shutil.which('chromium'):
        pytest.skip('no Chromium')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--site-dir', str(tmp_path / 'site')]
    subprocess.run(command, cwd=docs.ROOT, check=True, env=os.environ | {'NO_MKDOCS_2_WARNING': '1'})
    with chromium(tmp_path / 'profile') as page:
        page.open(tmp_path / 'site' / 'index.html')
        page.run("document.querySelector('[data-md-toggle=search]').click()")
        page.run("document.querySelector('[data-md-component=search-query]').focus()")
        page.type('stochastic')
        deadline = time.monotonic() + 30
        while not (found := page.run("document.querySelectorAll('.md-search-result__link').length")):
            assert time.monotonic() < deadline, page.complaints()
            time.sleep(0.1)
        assert found > 2
        assert all(url.startswith(('file:', 'data:')) for url in page.requests())
