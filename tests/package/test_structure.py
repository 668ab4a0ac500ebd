"""The package's structure: imports run one way, files are short, public names are documented."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nf_zoo

PACKAGE = Path(nf_zoo.__file__).parent
SOURCES = sorted(PACKAGE.rglob('*.py'))

# Top to ground. A part imports what comes after it and nothing else. Parts of one row may import one another downwards.
LEVELS = [
    ('__main__',),
    ('demo',),
    ('cli',),
    ('bench',),
    ('export',),
    ('analysis', 'conversion'),
    ('inference',),
    ('__init__',),
    ('models',),
    ('folding',),
    ('net',),
    ('hub',),
    ('train',),
    ('layers',),
    ('block_scalars', 'saved_memory'),
    ('files',),
    ('errors',),
    ('text', '_interrupt'),
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
# What `import nf_zoo` gives: its root imports upwards only when a public name is first used.
ROOT = '__init__'
# A method's page stands alone. NF-RegNet has NF-ResNet's constants and initialisation, in both forms.
PAGES = {('nf_regnet', 'nf_resnet'), ('dm_nf_regnet', 'dm_nf_resnet')}
LINES = 400


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in SOURCES}


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, also within functions and for types, by name from its root."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or '').split('.')]
            base = [part for part in base if part]
        elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'nf_zoo':
            base = node.module.split('.')[1:]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split('.')
                if first == 'nf_zoo':
                    yield '.'.join(rest) or ROOT
            continue
        else:
            continue
        for alias in node.names:
            for candidate in ('.'.join([*base, alias.name]), '.'.join(base)):
                if candidate in MODULES:
                    yield candidate
                    break
            else:
                yield '.'.join(base) or ROOT


def part(module: str) -> str:
    return module.split('.')[0]


ARROWS = sorted({(name, target) for name, path in MODULES.items() for target in imported(path)})


def test_imports_run_one_way() -> None:
    assert {part(name) for name in MODULES} <= set(LEVEL), 'a new part of the package: give it its place in LEVELS'
    up = set()
    for name, target in ARROWS:
        here, there = part(name), part(target)
        if here != there and LEVEL[there] <= LEVEL[here] and {here, there} != {ROOT}:
            up.add((name, target))
    assert up == set(), 'these imports run upwards'


def test_there_is_no_circle() -> None:
    targets = {name: sorted({b for a, b in ARROWS if a == name} - {name}) for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, 'circle of imports: ' + ' > '.join((*path[path.index(name) :], name))
        if name not in done:
            for target in targets.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_no_file_is_long() -> None:
    long = {name for name, path in MODULES.items() if len(path.read_text(encoding='utf-8').splitlines()) > LINES}
    assert long == set(), f'more than {LINES} lines: look for the seam'


def test_pages_stand_alone() -> None:
    pages = {(a.split('.')[1], b.split('.')[1]) for a, b in ARROWS if part(a) == part(b) == 'models' and '.' in b}
    assert pages == PAGES


def public(value: Any) -> Iterator[tuple[str, Any]]:
    """Functions and classes that a module or class defines itself, without those that begin with an underscore."""
    home = value.__name__ if inspect.ismodule(value) else value.__module__
    for name, member in vars(value).items():
        member = getattr(member, '__func__', member)
        member = member.fget if isinstance(member, property) else member
        kind = inspect.isfunction(member) or inspect.isclass(member)
        if kind and not name.startswith('_') and member.__module__ == home:
            yield name, getattr(value, name)


def undocumented(module: str) -> Iterator[str]:
    loaded = importlib.import_module(f'nf_zoo.{module}' if module != ROOT else 'nf_zoo')
    for name, value in public(loaded):
        members = public(value) if inspect.isclass(value) else ()
        for full, member in ((name, value), *((f'{name}.{n}', m) for n, m in members)):
            text = inspect.getdoc(member) or ''
            if not text or text.startswith(f'{full}('):  # what a dataclass writes by itself
                yield f'{module}.{full}'


def test_every_public_name_has_a_docstring() -> None:
    missing = {name for module in MODULES if module != '__main__' for name in undocumented(module)}
    assert missing == set()


def test_public_functions_stay_when_every_module_is_imported() -> None:
    """Importing a module puts it in the place of what its package calls by the same name."""
    for module in MODULES:
        if module not in (ROOT, '__main__'):
            importlib.import_module(f'nf_zoo.{module}')
    functions = {name for name in nf_zoo.__all__ if not inspect.ismodule(getattr(nf_zoo, name))}
    assert all(callable(getattr(nf_zoo, name)) for name in functions)
    assert not functions & {name for module in MODULES for name in module.split('.')}
