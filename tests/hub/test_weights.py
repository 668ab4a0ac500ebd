"""Whatever lies in a hub: what is loaded is what was published, or one line says why not."""

import hashlib
import shutil
from pathlib import Path

import pytest
import timm
import torch
from hubs import NAME, TAG, load, make_hub, make_model, one_line, rewrite
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

import nf_zoo
from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.hub import places, weights
from nf_zoo.hub.index import cfg_of, index
from nf_zoo.hub.publishing import publish
from nf_zoo.hub.release import write_index


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return make_hub(tmp_path / 'hub')


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp('shared'))


# --- Loading ---


def test_what_was_published_is_loaded(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NF_ZOO_HUB', str(hub))
    found = weights.load(NAME, TAG)
    expected = make_model()
    assert all(torch.equal(found.state_dict[key], value) for key, value in expected.state_dict().items())
    assert found.pretrained_cfg['label_names'] == ('a', 'b', 'c') and found.pretrained_cfg['num_classes'] == 3
    x = torch.randn(2, 3, 32, 32)
    by_name = timm.create_model(f'{NAME}.{TAG}', pretrained=True).eval()
    by_folder = timm.create_model(f'local-dir:{hub}/{NAME}.{TAG}', pretrained=True).eval()
    assert torch.equal(by_name(x), expected(x)) and torch.equal(by_folder(x), expected(x))
    assert by_name.pretrained_cfg['mean'] == tuple(by_folder.pretrained_cfg['mean'])


@pytest.mark.parametrize('filename', ['model.safetensors', 'config.json', 'manifest.json', 'README.md'])
@given(where=st.floats(0, 1), other=st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(shared: Path, filename: str, where: float, other: int) -> None:
    folder = shared / f'{NAME}.{TAG}'
    original = (folder / filename).read_bytes()
    changed = bytearray(original)
    changed[int(where * (len(original) - 1))] ^= other
    expected = load(shared)
    try:
        (folder / filename).write_bytes(changed)
        try:
            found = load(shared)
        except (CheckFailed, UserError) as error:
            assert f'{NAME}.{TAG}' in str(error) and '\n' not in str(error)
        else:
            assert filename in ('manifest.json', 'README.md')
            assert (found.pretrained_cfg, found.model_args) == (expected.pretrained_cfg, expected.model_args)
            assert all(torch.equal(found.state_dict[key], t) for key, t in expected.state_dict.items())
    finally:
        (folder / filename).write_bytes(original)


def test_a_changed_byte_is_named_with_both_hashes(hub: Path) -> None:
    path = hub / f'{NAME}.{TAG}' / 'model.safetensors'
    before, data = path.read_bytes(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckFailed) as error:
        load(hub)
    message = one_line(error)
    assert all(part in message for part in (str(path), hashlib.sha256(before).hexdigest(), 'publish', 'sha256'))
    assert hashlib.sha256(data).hexdigest() in message


def test_nothing_is_built_before_the_hash_is_right(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub / f'{NAME}.{TAG}'
    data = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError('a tensor was built')

    for name in ('load', 'load_file', 'safe_open'):
        monkeypatch.setattr(f'safetensors.torch.{name}', refuse)
    monkeypatch.setattr('nf_zoo.files.load', refuse)
    monkeypatch.setenv('NF_ZOO_HUB', str(hub))
    for load_it in (
        lambda: load(hub),
        lambda: timm.create_model(f'{NAME}.{TAG}', pretrained=True),
        lambda: nf_zoo.fetch(f'{NAME}.{TAG}'),
        lambda: nf_zoo.verify(f'{NAME}.{TAG}'),
    ):
        with pytest.raises(CheckFailed, match=r'model\.safetensors'):
            load_it()


@pytest.mark.parametrize('filename', ['model.safetensors', 'config.json', 'manifest.json'])
def test_a_missing_truncated_or_odd_file(hub: Path, filename: str, tmp_path: Path) -> None:
    path = hub / f'{NAME}.{TAG}' / filename
    data = path.read_bytes()
    outside = tmp_path / 'outside'
    outside.write_bytes(data)
    for spoil in (
        lambda: None,
        lambda: path.write_bytes(b''),
        lambda: path.write_bytes(data[:-3]),
        lambda: path.write_bytes(data + b'x'),
        lambda: path.mkdir(),
        lambda: path.symlink_to(outside),
    ):
        path.unlink()
        spoil()
        with pytest.raises((CheckFailed, UserError)) as error:
            load(hub)
        assert filename in one_line(error)
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(data)
    assert load(hub)


def test_a_folder_outside_the_hub_is_refused(hub: Path, tmp_path: Path) -> None:
    (hub / f'{NAME}.{TAG}').rename(tmp_path / 'elsewhere')
    (hub / f'{NAME}.{TAG}').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match='link'):
        load(hub)


def test_a_hub_may_itself_be_a_link(hub: Path, tmp_path: Path) -> None:
    (tmp_path / 'link').symlink_to(hub)
    assert load(tmp_path / 'link')


def test_only_safetensors_is_opened(hub: Path) -> None:
    folder = hub / f'{NAME}.{TAG}'
    (folder / 'pytorch_model.bin').write_bytes(b'\x80\x04N.')
    assert load(hub)
    (folder / 'model.safetensors').unlink()
    with pytest.raises(UserError, match='model.safetensors'):
        load(hub)


# --- Pinned places ---


@pytest.fixture
def bundled(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub as if it were the package's own."""
    (hub / 'index.json').write_text('{}')
    monkeypatch.setattr('nf_zoo.hub.index._BUNDLED', hub)
    write_index()
    return hub


def test_the_index_says_what_timms_cfg_needs(bundled: Path) -> None:
    entry = index()[f'{NAME}.{TAG}']
    assert (entry['top1'], entry['n'], entry['dataset'], entry['bundled']) == (50.0, 4, 'toy', True)
    cfg = weights.load(NAME, TAG).pretrained_cfg
    assert cfg_of(entry) == {key: cfg[key] for key in cfg_of(entry)} and len(cfg_of(entry)) > 6


@pytest.mark.parametrize('filename', ['model.safetensors', 'config.json', 'manifest.json'])
def test_the_index_pins_every_file(bundled: Path, filename: str) -> None:
    """An attacker who rewrites a bundled folder, manifest and all, gains nothing."""
    folder = bundled / f'{NAME}.{TAG}'
    assert weights.load(NAME, TAG).folder.place == places.DirPlace(bundled, pinned=True)
    if filename == 'model.safetensors':
        rewrite(folder, filename, save(make_model(1).state_dict()))
    else:
        rewrite(folder, 'config.json', (folder / 'config.json').read_bytes().replace(b'"a"', b'"z"'))
    with pytest.raises(CheckFailed) as error:
        weights.load(NAME, TAG)
    one_line(error)


def test_an_unlisted_folder_in_the_package_is_not_seen(bundled: Path) -> None:
    shutil.copytree(bundled / f'{NAME}.{TAG}', bundled / f'{NAME}.other')
    assert weights.find(NAME, 'other') is None and weights.known().get(NAME, []) == [TAG]


def test_the_index_keeps_its_order_and_forgets_what_is_gone(bundled: Path, tmp_path: Path) -> None:
    publish(make_model(1), bundled, f'{NAME}.a_first_by_name')
    publish(make_model(2), tmp_path / 'elsewhere', f'{NAME}.far')
    write_index([(f'{NAME}.far', tmp_path / 'elsewhere')])
    assert weights.known().get(NAME, []) == [TAG, 'a_first_by_name', 'far']
    found = weights.find(NAME, 'far')
    assert found is not None and found.place == places.HfPlace('nf-zoo')
    shutil.rmtree(bundled / f'{NAME}.{TAG}')
    write_index()
    assert weights.known().get(NAME, []) == ['a_first_by_name', 'far']


def test_the_packages_own_weights_are_intact() -> None:
    for name_tag, entry in index().items():
        found = weights.find(*name_tag.split('.', 1))
        assert found is not None
        if entry['bundled']:
            assert weights.load(found.name, found.tag).folder.manifest['sha256'] == entry['sha256']
    assert nf_zoo.list_models()


def test_timm_knows_which_bare_names_have_weights() -> None:
    for name in nf_zoo.list_models():
        tags = [n for n in timm.list_pretrained(f'{name}.*') if n.partition('.')[0] == name]
        assert timm.is_model_pretrained(name) == bool(tags), name
        assert all(timm.is_model_pretrained(tag) for tag in tags)
    assert timm.is_model_pretrained('eunnet50') and not timm.is_model_pretrained('eunnet34')
    assert 'eunnet50' not in timm.list_models('eunnet*', pretrained=True)  # tags alone, as of timm's own models
    assert timm.get_pretrained_cfg('eunnet50').num_classes == 1000
