"""The names of classes in words."""

import re
from collections.abc import Sequence

from timm.data import ImageNetInfo

_WORDNET_ID = re.compile(r'n\d{8}')


def label_descriptions(names: Sequence[str]) -> dict[str, str]:
    """Words for classes that are named by WordNet's numbers, such as {'n03417042': 'garbage truck'}.

    ImageNet and its subsets name their folders so. Each class gets the first of the words that WordNet has for it. If
    two classes have the same first word, each gets all its words. Empty if timm does not know one of the names.
    """
    if not names or not all(_WORDNET_ID.fullmatch(str(name)) for name in names):
        return {}
    info = ImageNetInfo()
    try:
        words = {name: info.label_name_to_description(name) for name in names}
    except KeyError:
        return {}
    first = {name: text.partition(',')[0] for name, text in words.items()}
    return first if len(set(first.values())) == len(first) else words
