import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from desat.errors import DesatError
from desat.record.reader import Record
from desat.record.rows import Metric, ParameterStatistics, Reading, Site, Step, TensorStatistics
from desat.record.run import annotate, new_directory
from desat.record.schema import APPLICATION_ID, FILE_NAME, MIGRATIONS, VERSION
from desat.record.writer import QUEUE_SIZE, RecordWriter
from tests.records import deep_network, statistics, write_record


def test_the_tables_have_the_columns_of_the_rows(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", [])
    connection = sqlite3.connect(record.path)
    rows = {
        "site": Site,
        "step": Step,
        "tensor": TensorStatistics,
        "parameter": ParameterStatistics,
        "reading": Reading,
        "metric": Metric,
    }
    for table, row in rows.items():
        columns = tuple(name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})"))
        assert columns == row._fields
    connection.close()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", deep_network(layers=2, steps=[0, 5]), answer=42)
    assert record.name == "run"
    assert record.information["answer"] == 42
    assert [site.name for site in record.sites("nonlinearity")] == ["net.1", "net.3"]
    assert record.steps()["step"].tolist() == [0, 1, 2, 3, 4, 5]
    assert record.steps(sampled=True)["step"].tolist() == [0, 5]
    assert record.steps(sampled=False)["step"].tolist() == [1, 2, 3, 4]
    assert record.tensor(record.sites("nonlinearity")[0], "input")["units"].tolist() == [64, 64]
    grid = record.grid("gradient", "rms", "nonlinearity")
    assert grid.values.shape == (2, 2)
    assert record.grid("parameter", "update_rms").values.shape == (2, 2)


def test_metrics_are_read_by_name_the_first_named_first_and_of_one_step_the_last_value(tmp_path: Path) -> None:
    rows = [
        Metric("loss", 3, 0.5, 1.0),
        Metric("accuracy", 3, 0.1, 1.1),
        Metric("accuracy", 9, float("nan"), 2.0),
        Metric("accuracy", 3, 0.2, 1.2),
        Metric("accuracy", -1, float("inf"), 0.1),
    ]
    metrics = write_record(tmp_path / "run", rows).metrics()
    assert list(metrics) == ["accuracy", "loss"]
    assert metrics["accuracy"]["step"].tolist() == [-1, 3, 9]
    np.testing.assert_equal(metrics["accuracy"]["value"], [np.inf, 0.2, np.nan])
    assert metrics["accuracy"]["time"].tolist() == [0.1, 1.2, 2.0]
    assert metrics["loss"]["value"].tolist() == [0.5]


def test_a_record_without_metrics_has_none(tmp_path: Path) -> None:
    assert write_record(tmp_path / "run", deep_network(layers=1)).metrics() == {}


def test_missing_numbers_are_nan_and_infinite_ones_stay(tmp_path: Path) -> None:
    site = Site(0, "a", "module", "Linear", None, 0, None)
    rows = [site, statistics(0, "output", 1, rms=None, maximum=float("inf"), mean=float("nan"))]
    series = write_record(tmp_path / "run", rows).tensor(site, "output")
    assert np.isnan(series["rms"][0])
    assert np.isnan(series["mean"][0])
    assert series["maximum"][0] == np.inf


def test_an_unknown_statistic_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DesatError, match="no statistic 'median'"):
        write_record(tmp_path / "run", []).grid("output", "median")


def test_the_reader_works_while_the_writer_writes(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "run")
    writer.note(status="running")
    deadline = time.monotonic() + 5
    with Record(tmp_path / "run") as record:
        for step in range(5):
            writer.put(lambda step=step: [Step(step, float(step), 1.0, 0.1, None)])
            while len(record.steps()["step"]) <= step:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    writer.close()


def test_a_finished_record_is_one_file(tmp_path: Path) -> None:
    write_record(tmp_path / "run", deep_network(layers=1)).close()
    assert os.listdir(tmp_path / "run") == [FILE_NAME]


def test_a_full_queue_drops_and_counts_instead_of_waiting(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "run")
    blocked = True

    def slow() -> list[Step]:
        while blocked:
            time.sleep(0.01)
        return []

    writer.put(slow)
    time.sleep(1.0)
    began = time.monotonic()
    accepted = [writer.put(list) for _ in range(2 * QUEUE_SIZE)]
    assert time.monotonic() - began < 0.5
    assert accepted.count(False) == writer.dropped == QUEUE_SIZE
    blocked = False
    writer.close()


def test_a_killed_writer_loses_at_most_its_last_second(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from desat.record.rows import Step
from desat.record.writer import RecordWriter
writer = RecordWriter(Path("run"))
step = 0
while True:
    now = time.time()
    writer.put(lambda step=step, now=now: [Step(step, now, 1.0, 0.1, None)])
    step += 1
    time.sleep(0.005)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    time.sleep(4)
    killed = time.time()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Record(tmp_path / "run") as record:
        steps = record.steps()
    assert killed - steps["time"][-1] <= 1.0
    assert steps["step"].tolist() == list(range(len(steps["step"])))


def test_a_disk_that_fails_ends_the_record_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = RecordWriter(tmp_path / "run")

    def full() -> list[Step]:
        raise sqlite3.OperationalError("database or disk is full")

    writer.put(full)
    writer.close()
    assert writer.failure == "database or disk is full"
    assert not writer.put(list)
    assert len([line for line in caplog.messages if "disk is full" in line and "training goes on" in line]) == 1


def test_a_run_is_not_overwritten_without_asking(tmp_path: Path) -> None:
    write_record(tmp_path / "run", deep_network(layers=1)).close()
    with pytest.raises(DesatError, match="--overwrite"):
        RecordWriter(tmp_path / "run")
    RecordWriter(tmp_path / "run", overwrite=True).close()
    assert Record(tmp_path / "run").sites() == ()


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DesatError, match=r"cannot write the record to .*; choose a writable folder"):
        RecordWriter(tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "not a run file"), (b"plainly not a database" * 100, "not a database")]
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(DesatError, match=message):
        Record(tmp_path)


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("CREATE TABLE site (id)")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    with pytest.raises(DesatError, match="not a run file of desat"):
        Record(tmp_path)


def test_a_record_of_a_newer_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", []).path
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(DesatError, match=f"version {VERSION + 1}.*upgrade"):
        Record(path)


def test_a_record_of_an_older_version_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        f"{MIGRATIONS[0]} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"
        "INSERT INTO site VALUES (0, 'a', 'module', 'Linear', NULL, 0, NULL);"
        "INSERT INTO tensor (site, quantity, step, calls, elements, rms) VALUES (0, 'output', 3, 1, 8, 0.5);"
    )
    connection.close()
    before = path.read_bytes()
    with Record(path) as record:
        (site,) = record.sites()
        assert record.tensor(site, "output")["rms"].tolist() == [0.5]
        assert not record.histograms(site, "output")[1].any()
        assert record.readings(site) == {}
        assert record.metrics() == {}
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", range(1, VERSION))
def test_a_record_of_any_older_version_is_read_from_a_place_that_cannot_be_written(
    version: int, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(
        f"{''.join(MIGRATIONS[:version])} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"
        "INSERT INTO step VALUES (0, 0.5, 2.25, 0.1, NULL);"
    )
    connection.close()
    before = path.read_bytes()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        with Record(tmp_path) as record:
            assert record.steps()["loss"].tolist() == [2.25]
            assert record.metrics() == {}
        assert (os.listdir(tmp_path), path.read_bytes()) == ([FILE_NAME], before)
    finally:
        tmp_path.chmod(0o755)


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", deep_network()).path
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4096)
    path.write_bytes(content)
    with pytest.raises(DesatError, match="cannot be read"):
        Record(path).grid("gradient", "rms")


@pytest.mark.parametrize("missing", ["nowhere", "."])
def test_a_run_that_does_not_exist_is_said_with_what_makes_one(tmp_path: Path, missing: str) -> None:
    with pytest.raises(DesatError, match="desat run"):
        Record(tmp_path / missing)


def test_new_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = new_directory("train")
    first.mkdir(parents=True)
    assert new_directory("train") != first


def test_facts_are_added_to_a_finished_record(tmp_path: Path) -> None:
    record = write_record(tmp_path / "run", [])
    annotate(record.path.parent, metrics={"accuracy": 0.97})
    assert record.information["metrics"] == {"accuracy": 0.97}
    assert record.information["status"] == "finished"


def test_some_of_the_steps_are_read_evenly_spread(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", deep_network(layers=1, steps=range(0, 100, 10), dead_units=3)) as record:
        (site,) = record.sites("nonlinearity")
        for most, expected in ((None, range(0, 100, 10)), (10, range(0, 100, 10)), (9, range(0, 100, 20)), (1, [0])):
            steps, flags = record.saturated_units(site, most)
            assert steps.tolist() == list(expected)
            assert flags.sum(axis=1).tolist() == [3] * len(steps)
            steps, counts = record.histograms(site, "input", most)
            assert steps.tolist() == list(expected)
            assert len(counts) == len(steps)


def test_a_record_whose_opening_is_interrupted_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(connection: sqlite3.Connection) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("desat.record.writer.migrate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RecordWriter(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []
