"""The pages of the documentation site that no Markdown file holds.

mkdocs calls the functions ``on_*`` (mkdocs.yml, ``hooks``).

A method's page is made from its docstring, the command reference from the parsers, and the pages of results, of the
changelog and of adding a method from the documents at the top of the repository, so that nothing is written twice.
Equations become MathML while the site is built: a browser shows it without a script.
"""

import argparse
import html
import importlib
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert as mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from nf_zoo.analysis.catalogue import rows
from nf_zoo.cli import train
from nf_zoo.cli.main import parser

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
DOCUMENTS = {
    'results.md': 'RESULTS.md',
    'reference/changelog.md': 'CHANGELOG.md',
    'how-to/add-a-method.md': 'CONTRIBUTING.md',
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    for entry in config.nav or []:
        if 'Methods' in entry:
            entry['Methods'] = [{title: f'methods/{name}.md'} for name, title in METHODS.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {f'methods/{name}.md': method_page(name, title) for name, title in METHODS.items()}
    pages['reference/commands.md'] = commands_page()
    for path, source in DOCUMENTS.items():
        pages[path] = document(ROOT / source, path)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for picture in sorted((ROOT / 'results').glob('*.png')):
        files.append(File.generated(config, f'results/{picture.name}', content=picture.read_bytes()))
    return files


def on_page_content(text: str, **_: Any) -> str:
    """Replace each equation, which Markdown left as LaTeX, by MathML."""

    def convert(found: re.Match[str]) -> str:
        block = found['tag'] == 'div'
        latex = html.unescape(found['latex']).strip().removeprefix(r'\(').removeprefix(r'\[')
        return mathml(latex.removesuffix(r'\)').removesuffix(r'\]'), display='block' if block else 'inline')

    return re.sub(r'<(?P<tag>div|span) class="arithmatex">(?P<latex>.*?)</(?P=tag)>', convert, text, flags=re.DOTALL)


def method_page(name: str, title: str) -> str:
    """A method's docstring as Markdown, the table of its names, and its weights."""
    module = importlib.import_module(f'nf_zoo.models.{name}')
    found = [row for row in rows('', False) if importlib.import_module(entry_module(row.name)) is module]
    lines = [
        f'# {title}',
        '',
        markdown(module.__doc__ or ''),
        '',
        '## Names',
        '',
        '| name | parameters | multiply-adds | image size | weights |',
        '|---|---|---|---|---|',
    ]
    for row in found:
        tags = ', '.join(f'`{tag}`' + ('' if top1 is None else f' {top1:.2f} %') for tag, top1 in row.weights.items())
        lines.append(f'| `{row.name}` | {row.params:,} | {row.macs:,} | {row.input[-1]} | {tags} |')
    return '\n'.join(lines) + '\n'


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
        for page, name in DOCUMENTS.items():
            if target.partition('#')[0] == name:
                return f'{found["mark"]}[{label}]({up}{page})'
        if target.startswith('results/') and target.endswith('.png'):
            return f'{found["mark"]}[{label}]({up}{target})'
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
