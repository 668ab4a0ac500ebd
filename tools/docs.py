"""The pages of the documentation site that no Markdown file holds.

mkdocs calls the functions ``on_*`` (mkdocs.yml, ``hooks``).

A method's page is made from its docstring, the command reference from the parsers, and the pages of results, of the
changelog and of adding a method from the documents at the top of the repository, so that nothing is written twice.
Equations become MathML while the site is built: a browser shows it without a script.
"""

import argparse
import contextlib
import html
import importlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert as mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from nf_zoo.analysis.catalogue import ModelRow, recipe_rows, rows
from nf_zoo.cli import train
from nf_zoo.cli.main import main as nf_zoo_command
from nf_zoo.cli.main import parser
from nf_zoo.hub.index import index
from nf_zoo.text import megabytes

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    'eunnet': 'EUNNet',
    'nf_resnet': 'NF-ResNet',
    'nf_regnet': 'NF-RegNet',
    'dm_nf_resnet': 'NF-ResNet, exact form',
    'dm_nf_regnet': 'NF-RegNet, exact form',
    'fixup': 'Fixup',
    'skipinit': 'SkipInit',
    'rescalenet': 'RescaleNet',
    'convshort': 'IdShort, LearnScalar, ConvShort',
    'weight_norm': 'Weight normalization',
    'bn_resnet': 'The controls',
}
# Names whose signal a method's page shows, the newest form of the method first.
SIGNALS = {
    'eunnet': ['eunnet50'],
    'nf_resnet': ['nf_resnet50'],
    'nf_regnet': ['nf_regnet_b0'],
    'dm_nf_resnet': ['dm_nf_resnet50'],
    'dm_nf_regnet': ['dm_nf_regnet_b0'],
    'fixup': ['fixup_resnet50'],
    'skipinit': ['skipinit_resnet50'],
    'rescalenet': ['rescalenet50'],
    'convshort': ['idshort_resnet50', 'learnscalar_resnet50', 'convshort_resnet50'],
    'weight_norm': ['wn_resnet50'],
    'bn_resnet': ['bn_resnet56_cifar', 'gn_resnet56_cifar', 'bn_preresnet50_cifar'],
}
DOCUMENTS = {
    'results.md': 'RESULTS.md',
    'reference/changelog.md': 'CHANGELOG.md',
    'how-to/add-a-method.md': 'CONTRIBUTING.md',
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for entry in config.nav or []:
        if 'Methods' in entry:
            entry['Methods'] += [{title: f'methods/{name}.md'} for name, title in METHODS.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {f'methods/{name}.md': method_page(name, title) for name, title in METHODS.items()}
    pages['reference/commands.md'] = commands_page()
    for path, source in DOCUMENTS.items():
        pages[path] = document(ROOT / source, path)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for name in METHODS:
        files.append(File.generated(config, f'methods/{name}.svg', content=signal_plot(name)))
    return files


def on_page_content(text: str, **_: Any) -> str:
    """Replace each equation, which Markdown left as LaTeX, by MathML, and the roles of docstrings by what they name."""

    def convert(found: re.Match[str]) -> str:
        latex = html.unescape(found['latex']).strip().removeprefix(r'\(').removeprefix(r'\[')
        latex = latex.removesuffix(r'\)').removesuffix(r'\]')
        if found['tag'] == 'div':  # it scrolls on a phone
            return f'<div class="equation" tabindex="0">{mathml(latex, display="block")}</div>'
        return mathml(latex)

    text = re.sub(r'<(?P<tag>div|span) class="arithmatex">(?P<latex>.*?)</(?P=tag)>', convert, text, flags=re.DOTALL)
    text = re.sub(r':(?P<tag>math):<code>(?P<latex>.*?)</code>', convert, text, flags=re.DOTALL)
    text = re.sub(r':\w+:<code>~[^<]*?([^<.]+)</code>', r'<code>\1</code>', text)
    return re.sub(r':(?:class|func|mod|meth|attr|data):<code>', '<code>', text)


def method_page(name: str, title: str) -> str:
    """A method's docstring as Markdown, its signal, its names, their weights and recipes."""
    module = importlib.import_module(f'nf_zoo.models.{name}')
    found = [row for row in rows('', False) if entry_module(row.name) == module.__name__]
    lines = [
        f'# {title}',
        '',
        markdown(module.__doc__ or ''),
        '',
        '## Signal at initialisation',
        '',
        f'![Signal propagation: {", ".join(SIGNALS[name])}]({name}.svg)',
        '',
        'Mean, variance and gradients at every residual block. Branches that start at 0 are opened. The command:',
        '',
        '```shell',
        f'nf-zoo {" ".join(signal_command(name))} -o signal.svg',
        '```',
        '',
        '## Names',
        '',
        '| name | parameters | multiply-adds | image size |',
        '|---|---|---|---|',
    ]
    lines += [f'| `{row.name}` | {row.params:,} | {row.macs:,} | {row.input[-1]} |' for row in found]
    return '\n'.join([*lines, *weights_of(found), *recipes_of({row.name for row in found})]) + '\n'


def weights_of(found: list[ModelRow]) -> list[str]:
    """A section on the weights in the package and on timm's tags."""
    ours, theirs = [], []
    for row in found:
        for tag in row.weights:
            entry = index().get(f'{row.name}.{tag}')
            if entry:
                reached = f'{entry["top1"]:.2f} % of {entry["n"]:,} images'
                size = f'{entry["input_size"][-1]} | {megabytes(entry["bytes"])}'
                ours.append(f'| `{row.name}.{tag}` | {reached} | {size} | {entry["license"]} |')
        others = ', '.join(f'`{tag}`' for tag in row.weights if f'{row.name}.{tag}' not in index())
        if others:
            theirs.append(f'- `{row.name}`: {others}')
    lines = ['', '## Weights', '']
    if ours:
        lines += [
            'In the package:',
            '',
            '| name | top-1 | image size | size | licence |',
            '|---|---|---|---|---|',
            *ours,
        ]
        lines += ['', 'What they were trained on and how: [Results](../results.md).', '']
    if theirs:
        lines += ["On the Hub, by timm's tags (`NAME.TAG`):", '', *theirs, '']
    return lines if ours or theirs else [*lines, 'None are published.', '']


def recipes_of(names: set[str]) -> list[str]:
    """A section on the recipes that train one of ``names``."""
    table = [row for row in recipe_rows() if row.model.partition('.')[0] in names]
    if not table:
        return ['', '## Recipes', '', 'None.']
    head = ['', '## Recipes', '', '`nf-zoo train RECIPE` takes these names:', '']
    head += ['| recipe | epochs | what it is |', '|---|---|---|']
    return head + [f'| `{row.name}` | {row.epochs} | {row.title} |' for row in table]


def signal_command(name: str) -> list[str]:
    return ['signal', *SIGNALS[name], '--awake', '--width', '0.25', '--img-size', '64', '--batch-size', '2']


def signal_plot(name: str) -> bytes:
    """The picture that the command of a method's page draws."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / 'signal.svg'
        nf_zoo_command([*signal_command(name), '-o', str(path)])
        return path.read_bytes()


def entry_module(name: str) -> str:
    """The module of a registered name's page."""
    import timm

    return timm.model_entrypoint(name).__module__


def markdown(docstring: str) -> str:
    """A docstring in reStructuredText as Markdown: equations, code, references."""
    text = re.sub(
        r'^\.\. math::(?P<body>.*?)\n(?=\n|\Z)',
        lambda found: '$$\n' + ' '.join(found['body'].split()) + '\n$$\n',
        docstring + '\n',
        flags=re.MULTILINE | re.DOTALL,
    )
    text = re.sub(r':math:`([^`]*)`', r'$\1$', text)
    text = re.sub(r':\w+:`~?\.?([^`]*)`', r'`\1`', text)
    return re.sub(r'``(.*?)``', r'`\1`', text)


def commands_page() -> str:
    """Every command's ``--help``, as the command prints it."""
    top = parser()
    lines = ['# Commands', '', 'What `nf-zoo COMMAND --help` prints.', '']
    for name, command in commands(top):
        command = train._parser() if name == 'train' else command  # its options are the keys of a recipe
        lines += [f'## nf-zoo {name}', '', '```text', command.format_help().rstrip(), '```', '']
    return '\n'.join(lines)


def commands(top: argparse.ArgumentParser, prefix: str = '') -> list[tuple[str, argparse.ArgumentParser]]:
    """The commands below a parser, with their names, in the order of its help."""
    found = []
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                below = commands(command, f'{prefix}{name} ')
                found += below or [(f'{prefix}{name}', command)]
    return found


def document(source: Path, path: str) -> str:
    """A document of the repository, its links turned to the site's pages or named as files."""
    text = source.read_text(encoding='utf-8')
    up = '../' * path.count('/')

    def link(found: re.Match[str]) -> str:
        label, target = found['label'], found['target']
        if target.startswith(('http', '#')):
            return found[0]
        file, _, anchor = target.partition('#')
        pages = {name: page for page, name in DOCUMENTS.items()}
        page = file.removeprefix('docs/') if file.startswith('docs/') else pages.get(file)
        if page:
            return f'{found["mark"]}[{label}]({up}{page}{"#" if anchor else ""}{anchor})'
        return f'{label} (`{target}`)' if target not in label else f'`{label}`'

    return re.sub(r'(?P<mark>!?)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)', link, text)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a page would load anything from elsewhere: a script, a style, a picture, a font."""
    outside = re.compile(
        r'<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc="(?:https?:)?//[^"]*"'
        r'|<link\b(?=[^>]*\brel="(?:stylesheet|icon|preload|preconnect)")[^>]*\bhref="(?:https?:)?//[^"]*"'
        r'|url\(["\']?(?:https?:)?//'
    )
    for path in sorted(Path(config.site_dir).rglob('*')):
        if path.suffix in ('.html', '.css'):
            found = outside.search(path.read_text(encoding='utf-8'))
            if found:
                raise PluginError(f'{path.name} loads from elsewhere: {found[0]}')
