"""Names that become paths, and the places that are searched."""

from pathlib import Path
from typing import Any

import pytest
import timm
from hubs import NAME, TAG, make_hub, make_model, one_line, without_weights
from hypothesis import given
from hypothesis import strategies as st

from nf_zoo.errors import UserError
from nf_zoo.hub import places, weights
from nf_zoo.hub.index import index
from nf_zoo.hub.names import parse
from nf_zoo.hub.publishing import publish


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return make_hub(tmp_path / 'hub')


@pytest.mark.parametrize(
    'name',
    ['', '.', '..', '../x', 'a/b', '/etc', 'a.', 'a..b', 'a.b..c', 'a.b/c', '.a', 'a\0', 'a b', 'ä', 'a.é', 'a\n']
    + ['x' * 97, 'a.b\\c', '~', 'C:x', 'a.-/..', 'hf://a', None, 3],
)  # fmt: skip
def test_hostile_names_are_refused(name: Any, hub: Path) -> None:
    with pytest.raises(UserError) as error:
        parse(name)
    one_line(error)
    with pytest.raises(UserError):
        weights.load(name, None, places.DirPlace(hub))


@given(st.text(max_size=30))
def test_a_parsed_name_is_one_path_component(text: str) -> None:
    try:
        name, tag = parse(text)
    except UserError:
        return
    assert text == (name if tag is None else f'{name}.{tag}')
    assert Path('hub', text).parts == ('hub', text) and text not in ('.', '..')


def test_search_path_reads_several_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NF_ZOO_HUB', '/one:hf://org@v1.0::rel/two:hf://nf-zoo')
    one, org, two, own, bundled, last = places.search_path()
    assert [str(p) for p in (one, org, two, own)] == ['/one', 'hf://org@v1.0', 'rel/two', 'hf://nf-zoo']
    assert isinstance(org, places.HfPlace) and (org.org, org.revision) == ('org', 'v1.0')
    assert [p.pinned for p in (one, org, two, own, bundled, last)] == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    'hub', ['https://x', 'hf://', 'hf://a/b', 'hf://../a', 'hf://a@../b', 'hf://a@', 's3://b', '', 'a\0']
)
def test_what_is_no_place_is_refused(hub: str) -> None:
    with pytest.raises(UserError) as error:
        places.parse_place(hub)
    one_line(error)


def test_a_wrong_environment_does_not_break_the_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('NF_ZOO_HUB', f'https://x:{tmp_path / "missing"}')
    assert NAME not in weights.known() or TAG not in weights.known().get(NAME, [])
    with pytest.raises(UserError, match='https'):
        weights.find(NAME, TAG)


def test_the_organization_is_pinned_however_it_is_written() -> None:
    for org in ('nf-zoo', 'NF-Zoo'):
        place = places.HfPlace(org)
        assert place.pinned and not place.has('eunnet20_cifar.no_such_tag')
    assert not places.HfPlace('nf-zoo2').pinned


def test_first_entry_wins_and_all_tags_are_known(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = tmp_path / 'second'
    publish(make_model(1), second, f'{NAME}.{TAG}')
    publish(make_model(2), second, f'{NAME}.other')
    for order in ((hub, second), (second, hub)):
        monkeypatch.setenv('NF_ZOO_HUB', ':'.join(map(str, order)))
        found = weights.find(NAME, TAG)
        assert found is not None and str(found.place) == str(order[0])
    assert set(weights.known().get(NAME, [])) >= {'other', TAG} and weights.known().get(NAME, [])[0] == 'other'
    assert weights.load(NAME, 'other').folder.tag == 'other'
    monkeypatch.setenv('NF_ZOO_HUB', f'{hub}:{second}')
    assert weights.known().get(NAME, [])[0] == TAG


def test_a_hub_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path / 'mistyped'))
    assert weights.find(NAME, TAG) is None and 'mistyped, which is not a directory' in caplog.text


def test_a_missing_name_touches_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('network')

    monkeypatch.setattr('huggingface_hub.hf_hub_download', refuse)
    assert weights.find(NAME, 'no_such_tag') is None
    with pytest.raises(UserError) as error:
        weights.load('eunet20_cifar')
    one_line(error)


def test_the_nearest_name_is_given(hub: Path) -> None:
    with pytest.raises(UserError, match=f"did you mean '{NAME}.{TAG}'"):
        weights.load(NAME, 'toi', places.DirPlace(hub))


def test_a_bare_name_never_means_a_hub(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a tag of its own, nor the package's own tag in a hub, nor the only tag that there is."""
    publish(make_model(3), hub, f'{NAME}.cifar10')
    only = without_weights()
    other = timm.create_model(only, depths=(1, 1, 1))
    publish(other, hub, f'{only}.first')
    publish(other, hub, f'{only}.second')
    monkeypatch.setenv('NF_ZOO_HUB', str(hub))
    assert weights.load(NAME).folder.manifest['sha256'] == index()[f'{NAME}.cifar10']['sha256']
    assert timm.create_model(NAME, pretrained=True).num_classes == 10
    assert timm.create_model(f'{NAME}.cifar10', pretrained=True).num_classes == 3  # named: the first on the search path
    assert weights.find(only) is None
    for load in (lambda: weights.load(only), lambda: timm.create_model(only, pretrained=True)):
        with pytest.raises(UserError, match=f'{only}.first, {only}.second') as error:
            load()
        one_line(error)
    assert timm.create_model(f'{only}.second', pretrained=True).pretrained_cfg['tag'] == 'second'
    with pytest.raises(UserError, match=f'{only}.first, {only}.second'):  # in one hub, too
        weights.load(only, None, places.DirPlace(hub))


def test_a_hub_that_cannot_be_listed_is_not_an_empty_one(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nf_zoo.cli.main import main

    loop = hub / f'{NAME}.loop'
    loop.symlink_to(loop)
    (hub / f'{NAME}.gone').symlink_to(tmp_path / 'nowhere')
    (hub / 'my weights').mkdir()
    (hub / 'my weights' / 'manifest.json').write_text('{}')
    (hub / 'README.md').write_text('no weights')
    (hub / '.hidden').mkdir()
    wanted = ['my weights', f'{NAME}.gone', f'{NAME}.loop', f'{NAME}.{TAG}']
    assert sorted(places.DirPlace(hub).names()) == sorted(wanted)
    for argv in (['hub', 'index', str(hub)], ['verify', '--all', '--hub', str(hub)]):
        assert main(argv) == 1
        out = capsys.readouterr().out
        assert all(out.count(name.partition('.')[2] or name) >= 1 for name in wanted), out
        assert len(out.splitlines()) == 5
    with pytest.raises(UserError) as error:
        places.DirPlace(loop).names()
    one_line(error)
    monkeypatch.setenv('NF_ZOO_HUB', str(loop))
    for argv in (
        ['hub', 'index', str(loop)],
        ['verify', '--all', '--hub', str(loop)],
        ['verify', '--all', '--hub', str(tmp_path / 'nowhere')],
        ['verify', '--all'],
        ['verify', f'{NAME}.{TAG}'],
    ):
        assert main(argv) == 2, argv
        shown = capsys.readouterr()
        assert shown.out == '' and len(shown.err.splitlines()) == 1
