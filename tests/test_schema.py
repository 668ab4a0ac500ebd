"""A hub whose owner is hostile: the hashes agree, the contents do not."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hubs import NAME, TAG, load, make_hub, one_line, rewrite

from nf_zoo.errors import CheckFailed, UserError


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return make_hub(tmp_path / 'hub')


_header = struct.Struct('<Q')


def _safetensors(header: Any, data: bytes = b'') -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return _header.pack(len(text)) + text + data


@pytest.mark.parametrize(
    'data',
    [
        _header.pack(2**63) + b'{}',
        _header.pack(100_000_000) + b'{}',
        _safetensors(b'[' * 100_000),
        _safetensors(b'{"a":' * 10_000),
        _safetensors({'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 4]}}, bytes(8)),
        _safetensors({k: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]} for k in 'ab'}, bytes(8)),
        _safetensors({'a': {'dtype': 'X32', 'shape': [2], 'data_offsets': [0, 8]}}, bytes(8)),
        _safetensors({'a': {'dtype': 'F32', 'shape': [2**40, 2**40], 'data_offsets': [0, 8]}}, bytes(8)),
        _safetensors({'a': {'dtype': 'F32', 'shape': [-2], 'data_offsets': [8, 0]}}, bytes(8)),
        _safetensors({'a': {'dtype': 'BOOL', 'shape': [8], 'data_offsets': [0, 8]}}, bytes(8)),
        _safetensors({'a': {'dtype': 'C64', 'shape': [1], 'data_offsets': [0, 8]}}, bytes(8)),
        _safetensors({}),
        b'\x80\x04\x95' + bytes(100),
        bytes(8),
    ],
)
def test_hostile_safetensors(hub: Path, data: bytes) -> None:
    rewrite(hub / f'{NAME}.{TAG}', 'model.safetensors', data)
    with pytest.raises(UserError) as error:
        load(hub)
    assert 'model.safetensors' in one_line(error)


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = to

    return change


@pytest.mark.parametrize(
    'change',
    [
        _set('architecture', to='resnet50'),
        _set('architecture', to=['x']),
        _set('pretrained_cfg', to=None),
        _set('pretrained_cfg', to=[]),
        _set('pretrained_cfg', to={}),
        _set('model_args', to='x'),
        _set('model_args', 'checkpoint_path', to='/tmp/x.pth'),
        _set('model_args', 'pretrained_cfg_overlay', to={'file': '/tmp/x.pth'}),
        _set('model_args', 'pretrained', to=True),
        _set('model_args', 'features_only', to=True),
        _set('model_args', 'num_classes', to=1e9),
        _set('model_args', 'depths', to=[[[1]]]),
        _set('model_args', 'in_chans', to=10**9),
        _set('pretrained_cfg', 'file', to='/tmp/x.pth'),
        _set('pretrained_cfg', 'url', to='file:///tmp/x.pth'),
        _set('pretrained_cfg', 'hf_hub_id', to='a/b'),
        _set('pretrained_cfg', 'state_dict', to={}),
        _set('pretrained_cfg', 'source', to='local-dir'),
        _set('pretrained_cfg', 'custom_load', to='hf'),
        _set('pretrained_cfg', 'custom_load', to=True),
        _set('pretrained_cfg', 'input_size', to=[3, 32]),
        _set('pretrained_cfg', 'input_size', to=[3, 0, 32]),
        _set('pretrained_cfg', 'input_size', to=[3, 32.0, 32]),
        _set('pretrained_cfg', 'input_size', to='32'),
        _set('pretrained_cfg', 'mean', to=[0.5, 0.5]),
        _set('pretrained_cfg', 'std', to=[0.0, 1, 1]),
        _set('pretrained_cfg', 'mean', to=[True, 1, 1]),
        _set('pretrained_cfg', 'interpolation', to='__class__'),
        _set('pretrained_cfg', 'crop_pct', to=-1),
        _set('pretrained_cfg', 'first_conv', to='a b'),
        _set('pretrained_cfg', 'classifier', to=3),
        _set('pretrained_cfg', '__class__', to=3),
        _set('num_classes', to=10**12),
        _set('num_classes', to=True),
        _set('label_names', to=['a']),
        _set('label_names', to={'0': 'a'}),
        _set('surprise', to=1),
    ],
)
def test_hostile_config(hub: Path, change: Callable[[dict[str, Any]], None]) -> None:
    folder = hub / f'{NAME}.{TAG}'
    config = json.loads((folder / 'config.json').read_text())
    change(config)
    rewrite(folder, 'config.json', json.dumps(config).encode())
    with pytest.raises(UserError) as error:
        load(hub)
    assert 'config.json' in one_line(error)


@pytest.mark.parametrize(
    'data',
    [b'', b'[]', b'null', b'{', b'[' * 200_000, b'{"a":' * 100_000, b'{"a": NaN}', b'{"a": 1, "a": 2}', b'\xff\xfe{}']
    + [b'{"a": %s}' % (b'9' * 10_000), b' ' * (5 << 20)],
    ids=range(11),
)
@pytest.mark.parametrize('filename', ['config.json', 'manifest.json'])
def test_hostile_json(hub: Path, filename: str, data: bytes) -> None:
    if filename == 'config.json':
        rewrite(hub / f'{NAME}.{TAG}', filename, data)
    else:
        (hub / f'{NAME}.{TAG}' / filename).write_bytes(data)
    with pytest.raises(UserError) as error:
        load(hub)
    assert filename in one_line(error)


@pytest.mark.parametrize(
    'change',
    [
        {'format': 99},
        {'format': '1'},
        {'architecture': 'resnet50'},
        {'tag': 'cifar10'},
        {'sha256': '0' * 64},
        {'sha256': 'x'},
        {'bytes': -1},
        {'bytes': 10**15},
        {'files': {}},
        {'files': {'../../x': '0' * 64}},
        {'files': {'model.safetensors': 1}},
        {'metrics': {'top1': 'x'}},
        {'license': None},
    ],
)
def test_hostile_manifest(hub: Path, change: dict[str, Any]) -> None:
    path = hub / f'{NAME}.{TAG}' / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((CheckFailed, UserError)) as error:
        load(hub)
    assert f'{NAME}.{TAG}' in one_line(error)
