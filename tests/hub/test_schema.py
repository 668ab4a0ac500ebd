"""A hub whose owner is hostile: the hashes agree, the contents do not."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hubs import NAME, TAG, load, make_hub, one_line, rewrite
from hypothesis import example, given
from hypothesis import strategies as st
from timm.models import PretrainedCfg

from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.files import not_finite, read_tensors
from nf_zoo.hub import places, schema, weights
from nf_zoo.hub.names import parse


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
        {'seconds': -5},
        {'train_n': 0.5},
        {'epochs': -1},
        {'seed': '1'},
        {'hardware': ['x']},
        {'published': 'yesterday'},
        {'license': None},
        {'tolerance': [5]},
        {'tolerance': {'top1': 1e9}},
        {'recipe': ['lr']},
        {'model_args': 'x'},
        {'published': 20261121},
        {'parameters': -1},
    ],
)
def test_hostile_manifest(hub: Path, change: dict[str, Any]) -> None:
    path = hub / f'{NAME}.{TAG}' / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((CheckFailed, UserError)) as error:
        load(hub)
    assert f'{NAME}.{TAG}' in one_line(error)


# --- At random ---


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp('shared'))


_words = st.sampled_from(
    ['..', '/', '\\', '\0', 'C:', '~', '.', '%2e%2e', 'hf://', '\n', ' ', 'ä', '-', TAG, NAME, 'outside', '/etc/passwd']
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(_words | st.text(max_size=5), max_size=6).map(''.join), st.none() | st.text(max_size=12) | _words)
def test_a_name_leads_to_nothing_but_a_folder_of_the_hub(shared: Path, name: str, tag: str | None) -> None:
    (shared.parent / f'outside-{shared.name}').mkdir(exist_ok=True)
    opened = []
    real = Path.open

    def spy(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path.resolve())
        return real(path, *args, **kwargs)

    Path.open = spy  # type: ignore[method-assign]
    try:
        load_any(name, tag, shared)
    except UserError as error:
        assert '\n' not in str(error) and len(str(error)) < 1000
    else:
        assert (name, tag) in ((NAME, TAG), (NAME, None), (f'{NAME}.{TAG}', None))
    finally:
        Path.open = real  # type: ignore[method-assign]
    assert all(path.is_relative_to((shared / f'{NAME}.{TAG}').resolve()) for path in opened)


def load_any(name: str, tag: str | None, root: Path) -> None:
    parsed, own = parse(name)
    weights.load(parsed, own if tag is None else tag, places.DirPlace(root))


_dtypes = st.sampled_from(['F32', 'F16', 'BF16', 'F64', 'I64', 'U8', 'BOOL', 'F8_E4M3', 'F4', 'C64', 'f32', 'O', ''])
_numbers = st.integers(-1, 40) | st.sampled_from([2**31, 2**32 + 1, 2**62, 2**63, 2**64 - 1, 2**64])
_tensor = st.fixed_dictionaries(
    {},
    optional={
        'dtype': _dtypes | _json,
        'shape': st.lists(_numbers, max_size=4) | _json,
        'data_offsets': st.tuples(_numbers, _numbers).map(list) | _json,
        'surprise': _json,
    },
)
_headers = st.dictionaries(st.sampled_from(['a', 'b', '__metadata__', '', '../x']), _tensor | _json, max_size=4) | _json


@given(
    _headers | st.binary(max_size=60),
    st.binary(max_size=64),
    st.none() | st.integers(0, 200) | st.sampled_from([2**31, 2**40, 2**63, 2**64 - 1, 100_000_001]),
)
def test_a_header_is_taken_as_it_stands_or_refused(shared: Path, header: Any, data: bytes, length: int | None) -> None:
    content = _safetensors(header, data)
    if length is not None:
        content = _header.pack(length) + content[8:]
    try:
        found = read_tensors(content, 'model.safetensors')
    except UserError as error:
        assert 'model.safetensors' in str(error) and '\n' not in str(error) and len(str(error)) < 1000
    else:
        assert sum(t.numel() * t.element_size() for t in found.values()) <= len(data)
        assert all(t.is_floating_point() or t.dtype == torch.int64 for t in found.values())
        not_finite(found)


_keys = [*schema.CONFIG_KEYS, *schema.PRETRAINED_CFG_KEYS, *schema.MODEL_ARGS, 'file', 'url', 'checkpoint_path', 'x y']


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(), ('pretrained_cfg',), ('model_args',)]),
            st.sampled_from(_keys) | st.text(max_size=10),
            _json | st.integers(0, 4).map(lambda n: [n] * 3) | st.sampled_from(['avg', 'sample', 'se', 'silu', 1e308]),
        ),
        min_size=1,
        max_size=3,
    )
)
@example([(('model_args',), 'attn_layer', [0, 0, 0])])
def test_a_config_makes_a_model_or_is_refused(shared: Path, changes: list[tuple[tuple[str, ...], str, Any]]) -> None:
    folder = shared / f'{NAME}.{TAG}'
    before = {name: (folder / name).read_bytes() for name in ('config.json', 'manifest.json')}
    config = json.loads(before['config.json'])
    for path, key, value in changes:
        place = config
        for step in path:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[key] = value
    try:
        rewrite(folder, 'config.json', json.dumps(config).encode())
        os.environ['NF_ZOO_HUB'] = str(shared)
        model = timm.create_model(f'{NAME}.{TAG}', pretrained=True)
    except (CheckFailed, UserError) as error:
        assert f'{NAME}.{TAG}' in str(error) and '\n' not in str(error) and len(str(error)) < 1000
    else:
        assert set(model.pretrained_cfg) <= {f.name for f in fields(PretrainedCfg)} and model.num_classes >= 0
        assert not any(model.pretrained_cfg.get(key) for key in ('file', 'url', 'hf_hub_id', 'state_dict', 'source'))
    finally:
        del os.environ['NF_ZOO_HUB']
        for name, data in before.items():
            (folder / name).write_bytes(data)
