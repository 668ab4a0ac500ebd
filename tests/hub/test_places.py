"""Names that become paths, and the places that are searched."""

from pathlib import Path
from typing import Any

import pytest
from hubs import NAME, TAG, make_hub, make_model, one_line
from hypothesis import given
from hypothesis import strategies as st

from nf_zoo.errors import UserError
from nf_zoo.hub import places, weights
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
        weights.parse(name)
    one_line(error)
    with pytest.raises(UserError):
        weights.load(name, None, places.DirPlace(hub))


@given(st.text(max_size=30))
def test_a_parsed_name_is_one_path_component(text: str) -> None:
    try:
        name, tag = weights.parse(text)
    except UserError:
        return
    assert text == (name if tag is None else f'{name}.{tag}')
    assert Path('hub', text).parts == ('hub', text) and text not in ('.', '..')


def test_search_path_reads_several_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NF_ZOO_HUB', '/one:hf://org@v1.0::rel/two:hf://nf-zoo')
    one, org, two, own, bundled, last = weights.search_path()
    assert [str(p) for p in (one, org, two, own)] == ['/one', 'hf://org@v1.0', 'rel/two', 'hf://nf-zoo']
    assert isinstance(org, weights.HfPlace) and (org.org, org.revision) == ('org', 'v1.0')
    assert [p.pinned for p in (one, org, two, own, bundled, last)] == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    'hub', ['https://x', 'hf://', 'hf://a/b', 'hf://../a', 'hf://a@../b', 'hf://a@', 's3://b', '', 'a\0']
)
def test_what_is_no_place_is_refused(hub: str) -> None:
    with pytest.raises(UserError) as error:
        places.place(hub)
    one_line(error)


def test_a_wrong_environment_does_not_break_the_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('NF_ZOO_HUB', f'https://x:{tmp_path / "missing"}')
    assert NAME not in weights.known() or TAG not in weights.tags(NAME)
    with pytest.raises(UserError, match='https'):
        weights.find(NAME, TAG)


def test_the_organization_is_pinned_however_it_is_written() -> None:
    for org in ('nf-zoo', 'NF-Zoo'):
        place = weights.HfPlace(org)
        assert place.pinned and not place.has('eunnet20_cifar.no_such_tag')
    assert not weights.HfPlace('nf-zoo2').pinned


def test_first_entry_wins_and_all_tags_are_known(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = tmp_path / 'second'
    publish(make_model(1), second, f'{NAME}.{TAG}')
    publish(make_model(2), second, f'{NAME}.other')
    for order in ((hub, second), (second, hub)):
        monkeypatch.setenv('NF_ZOO_HUB', ':'.join(map(str, order)))
        found = weights.find(NAME, TAG)
        assert found is not None and str(found.place) == str(order[0])
    assert set(weights.tags(NAME)) >= {'other', TAG} and weights.tags(NAME)[0] == 'other'
    assert weights.load(NAME, 'other').tag == 'other'
    monkeypatch.setenv('NF_ZOO_HUB', f'{hub}:{second}')
    assert weights.tags(NAME)[0] == TAG and weights.load(NAME).tag == TAG


def test_a_hub_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv('NF_ZOO_HUB', str(tmp_path / 'mistyped'))
    assert weights.find(NAME, TAG) is None and 'mistyped, which is no directory' in caplog.text


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
