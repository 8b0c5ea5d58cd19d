"""`desat runs` and `desat compare` on made-up records."""

import json
import math
from pathlib import Path

import pytest

from desat.record.run import list_runs
from tests.cli.test_run import desat
from tests.records import deep_network, write_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sick = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    write_record(tmp_path / "old", deep_network(), started="2026-01-01T00:00:00+00:00").close()
    write_record(tmp_path / "[bold]new", sick, started="2026-02-01T00:00:00+00:00").close()
    write_record(tmp_path / "lost", deep_network(loss=lambda step: math.nan), started="2025-01-01").close()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.sqlite").write_bytes(b"no database" * 100)
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_runs_are_listed_the_newest_first_and_broken_ones_last(folder: Path) -> None:
    found = list_runs(folder)
    assert [run.name for run in found] == ["[bold]new", "old", "lost", "broken"]
    assert (found[0].steps, found[0].loss, found[0].status) == (91, 2.3, "finished")
    assert found[3].problem is not None


def test_the_command_prints_a_line_a_run_or_json(folder: Path) -> None:
    done = desat("runs", folder, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "[bold]new" in done.stdout
    assert "2.3" in done.stdout
    told = json.loads(desat("runs", "--json", folder, cwd=folder).stdout)
    assert [run["loss"] is None for run in told] == [False, False, True, True]
    nowhere = desat("runs", "nowhere", cwd=folder)
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)


def test_two_runs_stand_side_by_side(folder: Path) -> None:
    done = desat("compare", "[bold]new", "old", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "[bold]new" in done.stdout
    assert "old" in done.stdout
    alone = desat("compare", "old", cwd=folder)
    assert (alone.returncode, alone.stderr) == (2, "desat: compare takes two to 5 runs, not 1\n")
