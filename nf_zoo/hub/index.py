"""The package's own weights: the folder that holds them, and the index that pins every file by its hash."""

from functools import cache
from pathlib import Path
from typing import Any

from ..files import read_json, readable

_BUNDLED = Path(__file__).parent / 'bundled'
ORGANIZATION = 'nf-zoo'  # on the Hugging Face Hub; only what the index pins is ever taken from it

# The keys of an index entry that timm's PretrainedCfg has too.
CFG_KEYS = (
    'num_classes',
    'input_size',
    'mean',
    'std',
    'interpolation',
    'crop_pct',
    'crop_mode',
    'label_names',
    'label_descriptions',
    'license',
)


def bundled() -> Path:
    """The folder with the weights that the package brings."""
    return _BUNDLED


def index() -> dict[str, dict[str, Any]]:
    """What the package pins, by NAME.TAG and the best first: hashes of the files, and the cfg of timm's registry."""
    path = bundled() / 'index.json'
    with readable(path):
        stat = path.stat()
        return _index(path, stat.st_mtime_ns, stat.st_size)


@cache
def _index(path: Path, modified: int, size: int) -> dict[str, dict[str, Any]]:
    return read_json(path.read_bytes(), path)


def cfg_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The part of an index entry that timm's PretrainedCfg takes."""
    cfg = {key: entry[key] for key in CFG_KEYS if key in entry}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}
