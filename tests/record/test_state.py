import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from desat.record import process
from desat.record.process import identity
from desat.record.reader import Record
from desat.record.run import list_runs, open_run, state

RUNNING = """
import sys, time
from pathlib import Path
from desat.record.run import open_run
writer = open_run(Path(sys.argv[1]), script="train.py")
time.sleep(1)
print("open", flush=True)
time.sleep(60)
"""


def facts(**changed: Any) -> dict[str, Any]:
    return {"status": "running"} | identity() | changed


def killed_number() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted"])
def test_a_run_that_has_ended_is_as_its_record_says(status: str) -> None:
    assert state(facts(status=status, process=killed_number())) == status


def test_a_run_of_a_living_process_is_running(tmp_path: Path) -> None:
    writer = open_run(tmp_path / "run")
    writer.close()
    with Record(tmp_path / "run") as record:
        assert state(record.information) == "running"
    writer.note(status="finished")


def test_a_run_of_a_process_that_is_gone_was_killed() -> None:
    assert state(facts(process=killed_number())) == "killed"


def test_a_killed_training_is_listed_as_such_even_before_its_parent_has_asked(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", RUNNING, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        child.stdout.readline()
        assert [run.status for run in list_runs(tmp_path)] == ["running"]
        child.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (now := list_runs(tmp_path)[0].status) == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert now == "killed"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_process_that_took_the_number_is_not_the_training() -> None:
    boot, namespace, start = identity()["process_start"]
    assert state(facts(process_start=[boot, namespace, str(int(start) + 1)])) == "killed"


def test_a_record_from_before_the_machine_was_started_is_of_a_killed_training() -> None:
    _, *rest = identity()["process_start"]
    assert state(facts(process_start=["another boot", *rest])) == "killed"


def test_what_runs_elsewhere_is_not_judged() -> None:
    boot, _, start = identity()["process_start"]
    gone = killed_number()
    assert state(facts(host=platform.node() + "-2", process=gone)) == "running"
    assert state(facts(process=gone, process_start=[boot, "pid:[1]", start])) == "running"
    assert state({"status": "running", "process": gone}) == "running"


def test_without_proc_the_number_alone_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_PROC", tmp_path)
    assert "process_start" not in identity()
    assert state(facts()) == "running"
    assert state(facts(process=killed_number())) == "killed"


@pytest.mark.parametrize("number", [None, "12", -1, 0, 2**80, [1], 1.5])
def test_facts_that_are_no_process_are_not_judged(number: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_PROC", tmp_path)
    assert state(facts(process=number)) == "running"


@pytest.mark.parametrize("status", [None, ""])
def test_a_record_that_does_not_say_is_unknown(status: str | None) -> None:
    assert state({"status": status, "process": os.getpid()}) == "unknown"
