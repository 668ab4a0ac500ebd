import pytest
from matplotlib.figure import Figure
from picture_folders import images  # noqa: F401 (a fixture)
from train_toys import render_nothing


@pytest.fixture
def rendered() -> None:
    """For a test whose point is a picture."""


@pytest.fixture(autouse=True)
def _not_rendered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if 'rendered' not in request.fixturenames:
        monkeypatch.setattr(Figure, 'savefig', render_nothing)
