"""Names of models, organizations and files. Each rule here makes a name safe as one part of a path."""

import re

from ..errors import UserError
from .schema import short

WEIGHTS, CONFIG, MANIFEST, CARD, CURVES = (
    'model.safetensors',
    'config.json',
    'manifest.json',
    'README.md',
    'curves.png',
)

NAME = re.compile(r'[A-Za-z0-9_-]+')
TAG = re.compile(r'(?!.*\.\.)[A-Za-z0-9_-][A-Za-z0-9_.-]*')
ORG = re.compile(r'(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]*')
REVISION = re.compile(r'(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]*')


def parse(name_tag: str) -> tuple[str, str | None]:
    """Split NAME or NAME.TAG.

    Returns:
        The name, and the tag or None.

    Raises:
        UserError: a character that no name or tag has, or more than 96 characters.
    """
    name, dot, tag = name_tag.partition('.') if isinstance(name_tag, str) else ('', '', '')
    if not NAME.fullmatch(name) or (dot and not TAG.fullmatch(tag)) or len(name_tag) > 96:
        raise UserError(f'{short(name_tag)} is not a model name; use NAME or NAME.TAG of letters, digits, _ and -')
    return name, tag if dot else None


def is_name_tag(text: str) -> bool:
    """Whether ``text`` is NAME.TAG."""
    name, _, tag = text.partition('.')
    return bool(NAME.fullmatch(name) and TAG.fullmatch(tag)) and len(text) <= 96
