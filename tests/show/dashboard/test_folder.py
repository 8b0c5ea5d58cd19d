"""The runs of a folder at a glance: what is seen of them, and what is not opened."""

import os
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from desat.errors import DesatError
from desat.record.process import identity
from desat.record.rows import Step
from desat.record.writer import RecordWriter
from desat.show.dashboard import folder as module
from desat.show.dashboard.folder import Folder, Look, NotThereError
from tests.records import deep_network, write_record


def by_name(folder: Folder) -> dict[str, Look]:
    return {look.name: look for look in folder.looks()}


def test_runs_are_seen_the_newest_first_and_broken_ones_last(runs: Path) -> None:
    names = [look.name for look in Folder(runs).looks()]
    assert names[:6] == ["sound", "sick", "nan", "one-step", "nothing", "only-nan"]
    assert set(names[-6:]) == {"endless", "json", "broken", "empty", "outside", "outside-file"}
    assert Folder(runs).newest() == "sound"


def test_what_is_seen_of_a_run(runs: Path) -> None:
    look = by_name(Folder(runs))["sick"]
    assert (look.script, look.state, look.step, look.sampled, look.loss) == ("digits.py", "finished", 90, 90, 2.3)
    assert look.spark == (2.3,) * module.SPARK_POINTS


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("endless", "no table step"),
        ("json", "holds something else"),
        ("broken", "not a database"),
        ("empty", "not a run file"),
        ("outside", "leads out of the folder"),
        ("outside-file", "leads out of the folder"),
    ],
)
def test_a_broken_run_is_told_in_its_row(runs: Path, name: str, problem: str) -> None:
    found = by_name(Folder(runs))[name].problem
    assert found is not None
    assert problem in found
    assert str(runs) not in found
    assert "\n" not in found


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "sound/../sick", "/etc", "run.sqlite", "kept", "sound\0"])
def test_a_name_is_one_of_the_listing_or_there_is_no_such_run(runs: Path, name: str) -> None:
    folder = Folder(runs)
    for method in (folder.look, folder.record, folder.directory):
        with pytest.raises(NotThereError):
            method(name)


def test_a_link_out_of_the_folder_is_never_opened(runs: Path) -> None:
    for name in ("outside", "outside-file"):
        with pytest.raises(DesatError, match="leads out"):
            Folder(runs).record(name)


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal"])
def test_a_link_beside_the_file_is_not_followed(tmp_path: Path, ending: str) -> None:
    path = write_record(tmp_path / "runs" / "run", deep_network(layers=1)).path
    (tmp_path / "other").write_bytes(b"secret")
    path.with_name(path.name + ending).symlink_to(tmp_path / "other")
    assert "leads out" in (Folder(tmp_path / "runs").looks()[0].problem or "")


def test_a_link_inside_the_folder_is_a_run(tmp_path: Path) -> None:
    write_record(tmp_path / "run", deep_network(layers=1)).close()
    (tmp_path / "again").symlink_to(tmp_path / "run")
    assert [look.problem for look in Folder(tmp_path).looks()] == [None, None]


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.sqlite")
    (tmp_path / "folder" / "run.sqlite").mkdir(parents=True)
    began = time.monotonic()
    assert ["no plain file" in (look.problem or "") for look in Folder(tmp_path).looks()] == [True, True]
    assert time.monotonic() - began < 5


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    write_record(tmp_path / os.fsdecode(b"odd\xff"), []).close()
    assert "no address" in (Folder(tmp_path).looks()[0].problem or "")


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RecordWriter(tmp_path / "run")
    writer.note(status="running", **identity())
    writer.put(lambda: [Step(0, 0.0, 1.0, 0.1, None)])
    folder = Folder(tmp_path)

    def seen(step: int) -> None:
        deadline = time.monotonic() + 10
        while folder.look("run").step != step:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    seen(0)
    time.sleep(1.0)  # a last commit of what was noted
    folder.look("run")
    read = []
    monkeypatch.setattr(module, "Record", lambda *given: read.append(given))
    assert folder.look("run").step == 0
    assert read == []
    monkeypatch.undo()
    writer.put(lambda: [Step(1, 0.0, 0.5, 0.1, None)])
    seen(1)
    assert folder.look("run").is_live
    writer.close()


def test_a_run_whose_process_has_gone_is_killed_though_its_file_stays(tmp_path: Path) -> None:
    gone = identity() | {"process": 2**22 - 1, "host": socket.gethostname()}
    write_record(tmp_path / "run", deep_network(layers=1), **(gone | {"status": "running"})).close()
    assert Folder(tmp_path).looks()[0].state == "killed"


def test_too_many_sites_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SITES", 5)
    write_record(tmp_path / "run", deep_network(layers=2)).close()
    assert "6 sites" in (Folder(tmp_path).looks()[0].problem or "")


def test_a_run_that_has_gone_is_no_longer_seen(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", deep_network(layers=1)).path
    folder = Folder(tmp_path)
    assert folder.look("run").step == 90
    path.unlink()
    with pytest.raises(NotThereError):
        folder.look("run")


def test_a_file_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", deep_network(layers=1)).path
    folder = Folder(tmp_path)
    assert folder.look("run").loss == pytest.approx(2.3 * 0.97**90)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE step SET loss = 7.0 WHERE step = 90")
    connection.commit()
    connection.close()
    assert folder.look("run").loss == 7.0
