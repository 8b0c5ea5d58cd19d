"""Records that are broken, or made to do harm: what is read of them is an error in one line, and soon."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from desat.errors import DesatError
from desat.record import opening, reader
from desat.record.reader import Record
from desat.record.schema import MIGRATIONS
from tests.records import deep_network, write_record
from tests.warm import desat

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def changed(directory: Path, script: str) -> Path:
    """A sound record, then changed by SQL that desat never writes."""
    record = write_record(directory / "run", deep_network(layers=2))
    record.close()
    connection = sqlite3.connect(record.path, isolation_level=None)
    connection.executescript(f"PRAGMA writable_schema = ON; {script}")
    connection.close()
    return record.path


def read_all(record: Record) -> None:
    for method in (record.steps, record.metrics, record.sites):
        method()
    assert record.information
    record.last_steps(3)
    for quantity in ("input", "output", "gradient"):
        record.last_sample(quantity)
        record.grid(quantity, "rms")
    for site in record.sites():
        record.tensor(site, "input")
        record.parameter(site)
        record.histograms(site, "input")
        record.dtypes(site, "input")
        record.readings(site)
        record.saturated_units(site)


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE tensor SET rms = 'many'",
        "UPDATE tensor SET rms = x'00'",
        "UPDATE tensor SET histogram = 'text'",
        "UPDATE tensor SET saturated_units = 'text'",
        "UPDATE tensor SET units = 1000000000000",
        "UPDATE tensor SET units = -64",
        "UPDATE tensor SET dtype = x'ff'",
        "UPDATE parameter SET rms = 'many'",
        "UPDATE step SET loss = 'low'",
        "UPDATE step SET time = x'00'",
        "UPDATE site SET name = x'ff'",
        "UPDATE site SET position = 'first'",
        "UPDATE site SET curve = x'00'",
        "UPDATE run SET value = '{'",
        "UPDATE run SET value = x'00'",
        "INSERT INTO run VALUES ('deep', replace(hex(zeroblob(100000)), '00', '['))",
        "INSERT INTO metric VALUES (x'ff', 0, 1.0, 0.0)",
        "INSERT INTO metric VALUES ('a', 0, 'high', 0.0)",
        "INSERT INTO reading VALUES (0, x'ff', 0, 1.0)",
        f"INSERT INTO run VALUES ('large', hex(zeroblob({opening.LARGEST_VALUE})))",
    ],
)
def test_what_desat_does_not_write_is_an_error_in_one_line(tmp_path: Path, script: str) -> None:
    with Record(changed(tmp_path, script)) as record, pytest.raises(DesatError, match=r"run\.sqlite") as error:
        read_all(record)
    assert "\n" not in str(error.value)


def test_what_desat_writes_is_read(tmp_path: Path) -> None:
    with Record(changed(tmp_path, "")) as record:
        read_all(record)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"DROP TABLE step; CREATE VIEW step AS {ENDLESS} SELECT i AS step FROM n", "no table step"),
        ("DROP TABLE tensor", "no table tensor"),
        ("DROP TABLE reading; CREATE VIRTUAL TABLE reading USING fts5(site, name, step, value)", "no table reading"),
        ("ALTER TABLE step ADD COLUMN more", "other columns"),
        ("ALTER TABLE site RENAME COLUMN name TO title", "other columns"),
        ("ALTER TABLE metric ADD COLUMN more AS (value * 2)", "other columns"),
    ],
)
def test_tables_are_those_of_a_run(tmp_path: Path, script: str, message: str) -> None:
    path = changed(tmp_path, script)
    with pytest.raises(DesatError, match=message):
        Record(path)


def test_an_older_record_with_a_view_for_a_table_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, f"DROP TABLE step; CREATE VIEW step AS {ENDLESS} SELECT i AS step FROM n")
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 1}")
    connection.close()
    with pytest.raises(DesatError, match=r"run\.sqlite"):
        Record(path)


def test_reading_ends_with_the_time_that_is_given(tmp_path: Path) -> None:
    path = changed(tmp_path, "")
    with Record(path, seconds=0.2) as record:
        began = time.monotonic()
        with pytest.raises(DesatError, match="interrupted"):
            record.query(f"{ENDLESS} SELECT max(i) FROM n")
        assert time.monotonic() - began < 5
        with pytest.raises(DesatError, match="interrupted"):
            record.query(f"{ENDLESS} SELECT max(i) FROM n LIMIT 100")


def test_nothing_is_written_and_no_other_file_is_opened(tmp_path: Path) -> None:
    path = changed(tmp_path, "")
    with Record(path) as record:
        for query in ("DELETE FROM step", f"ATTACH '{tmp_path / 'other'}' AS other", "CREATE TEMP TABLE t (a)"):
            with pytest.raises(DesatError):
                record.query(query)
    assert not (tmp_path / "other").exists()


def test_a_grid_that_no_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGEST_GRID", 30)
    with Record(changed(tmp_path, "")) as record:
        assert record.grid("input", "rms").values.shape == (2, 10)
        with pytest.raises(DesatError, match="4 sites at 10 steps"):
            record.grid("output", "rms")


@pytest.mark.parametrize("command", ["diagnose", "report"])
def test_commands_say_it_in_one_line(tmp_path: Path, command: str) -> None:
    path = changed(tmp_path, "UPDATE tensor SET rms = 'many'")
    done = desat(command, path.parent, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "holds something else than `desat run` writes" in done.stderr


@pytest.mark.parametrize("seed", range(6))
def test_damaged_files_are_read_or_refused(tmp_path: Path, seed: int, damage: Callable[[Path, int], None]) -> None:
    path = changed(tmp_path, "")
    damage(path, seed)
    problem = ""
    try:
        with Record(path, seconds=5.0) as record:
            read_all(record)
    except DesatError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.fixture
def damage() -> Callable[[Path, int], None]:
    def overwrite(path: Path, seed: int) -> None:
        generator = np.random.default_rng(seed)
        content = bytearray(path.read_bytes())
        for place in generator.integers(100, len(content), 60):
            content[place] = generator.integers(256)
        path.write_bytes(content)

    return overwrite
