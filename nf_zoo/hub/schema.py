"""The keys that the JSON files of a hub may have, and the values that each key may have.

Only these keys of a hub's config.json reach timm. None of them names a file to open.
"""

import re
import reprlib
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeAlias

from timm.models.nfnet import NfCfg

from ..errors import UserError, nearest

FORMAT = 1  # of manifest.json
FILE_LIMIT = 16 << 30  # bytes of weights
SMALL_LIMIT = 4 << 20  # bytes of any other file; a config with the 21,843 class names of ImageNet-21k has 1 MB

_TAG = re.compile(r'(?!.*\.\.)[A-Za-z0-9_-][A-Za-z0-9_.-]*')  # of names of files too
_SHA256 = re.compile(r'[0-9a-f]{64}')

Check: TypeAlias = Callable[[Any], bool]


def _whole(low: int, high: int) -> Check:
    return lambda v: type(v) is int and low <= v <= high


def _number(low: float, high: float) -> Check:
    return lambda v: type(v) in (int, float) and low <= v <= high


def _text(limit: int = 2000, pattern: re.Pattern[str] | None = None) -> Check:
    return lambda v: isinstance(v, str) and len(v) <= limit and (pattern is None or bool(pattern.fullmatch(v)))


def _among(*values: Any) -> Check:
    return lambda v: any(v is w or (type(v) is type(w) and v == w) for w in values)


def _list(check: Check, low: int, high: int) -> Check:
    return lambda v: isinstance(v, list) and low <= len(v) <= high and all(map(check, v))


def _dict(key: Check, value: Check, limit: int) -> Check:
    return lambda v: isinstance(v, dict) and len(v) <= limit and all(key(k) and value(x) for k, x in v.items())


def _either(*checks: Check) -> Check:
    return lambda v: any(check(v) for check in checks)


_null: Check = _among(None)
_name: Check = _text(96, re.compile(r'[A-Za-z0-9_.-]+'))
_classes: Check = _whole(0, 1_000_000)
_size: Check = _whole(1, 16384)
_image: Check = _list(_size, 3, 3)
_labels: Check = _either(_null, _list(_text(500), 0, 1_000_000))
_descriptions: Check = _either(_null, _dict(_text(500), _text(), 1_000_000))
_scalar: Check = _either(_among(None, True, False), _number(-4096, 4096), _text(64, re.compile(r'[A-Za-z0-9_.-]*')))

PRETRAINED_CFG_KEYS: dict[str, Check] = {
    'architecture': _name,
    'tag': _name,
    'custom_load': _among(False),
    'input_size': _image,
    'test_input_size': _either(_null, _image),
    'min_input_size': _either(_null, _image),
    'fixed_input_size': _among(True, False),
    'interpolation': _among('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos', 'random'),
    'crop_pct': _number(0.01, 2),
    'test_crop_pct': _either(_null, _number(0.01, 2)),
    'crop_mode': _among('center', 'squash', 'border'),
    'mean': _list(_number(-1e4, 1e4), 1, 64),
    'std': _list(_number(1e-6, 1e4), 1, 64),
    'num_classes': _classes,
    'label_names': _labels,
    'label_descriptions': _descriptions,
    'pool_size': _either(_null, _list(_size, 2, 2)),
    'test_pool_size': _either(_null, _list(_size, 2, 2)),
    'first_conv': _either(_null, _name),
    'classifier': _either(_null, _name),
    **dict.fromkeys(('license', 'description', 'origin_url', 'paper_name', 'notes'), _either(_null, _text())),
    'paper_ids': _either(_null, _text(), _list(_text(), 0, 64)),
}

# The keywords that shape a network: timm's, the methods' and those of timm's NF-ResNets. What names a file, a device or
# a wrapper (checkpoint_path, pretrained_cfg_overlay, features_only ...) never comes from a hub.
MODEL_ARGS: dict[str, Check] = dict.fromkeys(
    [
        *(f.name for f in fields(NfCfg)),
        *('num_classes', 'in_chans', 'global_pool', 'output_stride', 'drop_rate', 'drop_path_rate', 'attn_layer'),
        *('depths', 'width', 'norm', 'scale', 'residual_scaling', 'drop_conv_rate', 'init', 'gamma', 'weight_norm'),
    ],
    _either(_scalar, _list(_scalar, 0, 64), _dict(_name, _scalar, 64)),
) | {
    'num_classes': _classes,
    'in_chans': _whole(1, 4096),
    'global_pool': _either(_null, _text(16, re.compile('[a-z]*'))),
    'output_stride': _among(8, 16, 32),
    'depths': _list(_whole(1, 1000), 1, 8),
    **dict.fromkeys(('drop_rate', 'drop_path_rate', 'drop_conv_rate'), _either(_null, _number(0, 1))),
    'width': _number(0.01, 16),
    'gamma': _either(_null, _number(0.01, 100)),
    **dict.fromkeys(('scale', 'residual_scaling', 'weight_norm'), _among(True, False)),
}

CONFIG_KEYS: dict[str, Check] = {
    'architecture': _name,
    'num_classes': _classes,
    'num_features': _whole(1, 1_000_000),
    'global_pool': _name,
    'label_names': _labels,
    'label_descriptions': _descriptions,
    'model_args': lambda v: isinstance(v, dict),
    'pretrained_cfg': lambda v: isinstance(v, dict),
}

MANIFEST_KEYS: dict[str, Check] = {
    'format': _whole(1, FORMAT),
    'architecture': _name,
    'tag': _name,
    'sha256': _text(64, _SHA256),
    'bytes': _whole(8, FILE_LIMIT),
    'dataset': _text(500),
    'num_classes': _classes,
    'metrics': _dict(_name, _either(_null, _number(-1e12, 1e12)), 100),
    'license': _text(500),
    'files': _dict(_text(96, _TAG), _text(64, _SHA256), 100),
}

METRICS: dict[str, Check] = {
    **dict.fromkeys(('top1', 'top5', 'ece'), _number(0, 100)),  # percent
    'loss': _number(0, 1e12),
    'n': _whole(1, 10**12),  # images
}

PRIVACY: dict[str, Check] = {  # of training with differential privacy: the promise, and how it is kept
    'epsilon': _number(0, 1e6),
    'delta': _number(0, 1),
    'clip': _number(0, 1e12),  # the norm to which the gradient of each image is clipped
    'noise': _number(0, 1e12),  # its standard deviation, as a multiple of the clip
    'sample_rate': _number(0, 1),  # the chance of an image to be in a batch
    'steps': _whole(0, 10**12),
    'accountant': _text(64),
}


def _private(value: Any) -> bool:
    known = isinstance(value, dict) and {'epsilon', 'delta'} <= value.keys() <= PRIVACY.keys()
    return known and all(PRIVACY[key](item) for key, item in value.items())


# Older manifests, and those of weights without a training, don't have these keys.
MANIFEST_OPTIONS: dict[str, Check] = {
    'tolerance': _dict(_name, _number(0, 100), 100),
    'parameters': _whole(0, FILE_LIMIT),
    'dtype': _text(64),
    'published': _text(10, re.compile(r'(\d{4}-\d\d-\d\d)?')),
    **dict.fromkeys(('train_n', 'epochs', 'steps', 'processes'), _either(_null, _whole(0, 10**12))),
    'seed': _either(_null, _whole(0, 2**63 - 1)),
    **dict.fromkeys(('seconds', 'seconds_per_epoch'), _either(_null, _number(0, 1e12))),
    'hardware': _either(_null, _text(500)),
    'changes': _list(lambda v: isinstance(v, dict), 0, 1000),
    'note': _text(),
    'privacy': _private,
    'blocks': _dict(_text(200), _dict(_name, _either(_null, _number(-1e30, 1e30)), 16), 10_000),
    **dict.fromkeys(('recipe', 'model_args', 'versions'), lambda v: isinstance(v, dict)),
}


def validate(values: dict[str, Any], schema: dict[str, Check], where: str) -> None:
    """Raises UserError: a key that ``schema`` doesn't have, or a value that it doesn't allow."""
    for key, value in values.items():
        if key not in schema:
            raise UserError(f'{where}: the key {short(key)} is not allowed{nearest(key[:100], schema)}')
        if not schema[key](value):
            raise UserError(f'{where}: {key} = {short(value)} is not valid')


def short(value: Any) -> str:
    """``repr``, cut to a length that fits into a message."""
    return reprlib.repr(value)
