"""The tables of results say what the bundled manifests say, and each recipe that they name is there."""

from results import ROOT, files, rows


def test_the_tables_are_up_to_date() -> None:
    for path, text in files().items():
        assert path.read_text(encoding='utf-8') == text, f'{path.name}: make results'


def test_every_recipe_is_there() -> None:
    for table in rows().values():
        for row in table:
            assert (ROOT / row['recipe']).is_file()
