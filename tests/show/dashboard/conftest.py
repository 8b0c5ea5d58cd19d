from pathlib import Path

import pytest

from tests.show.dashboard.asking import make_runs


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, sound and broken."""
    folder = tmp_path_factory.mktemp("dashboard")
    (folder / "runs").mkdir()
    make_runs(folder / "runs", folder)
    return folder / "runs"
