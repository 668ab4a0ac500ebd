"""YAML as a recipe may have it: plain values, each key once, no aliases, not too large, not too deep."""

from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..files import refuse_special

LIMIT = 1_000_000  # bytes of a file; a recipe has some thousand


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would take the last of two equal keys without a word."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few aliases of aliases fill the memory
            raise yaml.composer.ComposerError(
                None, None, 'an alias (*NAME) is not allowed', self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                at = node.value[place][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f'the key {str(key)[:60]!r} is there twice', at)
        return super().construct_mapping(node, deep)


def parse(text: str, source: str) -> Any:
    """The value of a YAML text. Raises `UserError`, which names ``source`` and the line."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        place = f', line {mark.line + 1}' if mark else ''
        reason = getattr(error, 'problem', None) or 'unreadable'
        raise UserError(f'{source}{place}: not valid YAML ({" ".join(str(reason).split())[:200]})') from None
    except RecursionError:
        raise UserError(f'{source}: not valid YAML (nested too deeply)') from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # what PyYAML's constructors raise for values such as 2020-99-99 or !!bool x
        raise UserError(f'{source}: not valid YAML (a value that cannot be read)') from None


def read(path: Path) -> Any:
    """The value of a YAML file. Raises `UserError` for what is no readable file of text."""
    try:
        refuse_special(path)
        with open(path, 'rb') as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise UserError(f'{path} is no recipe: it has more than {LIMIT:,} bytes')
        return parse(data.decode('utf-8'), str(path))
    except OSError as error:
        raise UserError(f'cannot read the recipe {path}: {error.strerror}') from None
    except UserError:
        raise
    except ValueError:  # UnicodeDecodeError, or a zero byte in the path
        raise UserError(f'cannot read the recipe {path}: not a text file') from None
