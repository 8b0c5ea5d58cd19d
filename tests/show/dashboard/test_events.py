"""What reaches a page while a run trains, and how often."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from desat.record.process import identity
from desat.record.reader import Record
from desat.record.rows import Step
from desat.record.writer import RecordWriter
from desat.show.dashboard import diagnoses as diagnosing
from desat.show.dashboard import events
from desat.show.dashboard.diagnoses import Diagnoses
from desat.show.dashboard.folder import Folder
from desat.show.dashboard.workers import Pace, Workers
from tests.records import deep_network, write_record


def heard(stream: AsyncIterator[bytes], until: Callable[[list[tuple[str, Any]]], bool]) -> list[tuple[str, Any]]:
    """What a stream tells until it is enough, or ends. Fails after 20 seconds."""

    async def listen() -> list[tuple[str, Any]]:
        told: list[tuple[str, Any]] = []
        async for text in stream:
            if text.startswith(b"event: "):
                kind, _, data = text.decode().removeprefix("event: ").partition("\ndata: ")
                told.append((kind, json.loads(data)))
            if until(told):
                break
        return told

    return asyncio.run(asyncio.wait_for(listen(), 20))


def of_run(folder: Folder, name: str = "run") -> AsyncIterator[bytes]:
    return events.of_run(name, folder, Diagnoses(), events.Paces(), Workers())


def test_a_finished_run_is_told_once(tmp_path: Path) -> None:
    write_record(tmp_path / "run", deep_network(layers=1)).close()
    told = heard(of_run(Folder(tmp_path)), lambda told: len(told) == 2)
    assert [kind for kind, _ in told] == ["look", "refresh"]
    assert told[0][1]["step"] == 90
    assert (told[0][1]["state"], told[0][1]["newest"]) == ("finished", "run")


def test_a_step_is_told_within_two_seconds_of_being_in_the_record(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "run")
    writer.note(status="running", **identity())
    committed: dict[int, float] = {}
    ended = threading.Event()

    def train() -> None:
        with Record(tmp_path / "run") as record:
            for step in range(4):
                writer.put(lambda step=step: [Step(step, float(step), 2.0, 0.1, None)])
                while len(record.last_steps(9)["step"]) <= step:
                    time.sleep(0.01)
                committed[step] = time.monotonic()
                ended.wait(1.2)

    training = threading.Thread(target=train)
    training.start()
    seen: dict[tuple[str, int], float] = {}

    def enough(told: list[tuple[str, Any]]) -> bool:
        if told:
            seen.setdefault((told[-1][0], told[-1][1]["step"]), time.monotonic())
        return ("refresh", 3) in seen

    heard(of_run(Folder(tmp_path)), enough)
    ended.set()
    training.join()
    writer.close()
    delays = [moment - committed[step] for (_, step), moment in seen.items() if step in committed]
    assert {step for _, step in seen} >= {1, 2, 3}
    assert max(delays) < 2.0


def test_a_run_that_goes_is_told_and_the_stream_ends(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", deep_network(layers=1)).path

    def enough(told: list[tuple[str, Any]]) -> bool:
        path.unlink(missing_ok=True)
        return False

    told = heard(of_run(Folder(tmp_path)), enough)
    assert told[-1][0] == "gone"


def test_a_broken_run_is_told_and_the_stream_goes_on(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.sqlite").write_bytes(b"no database" * 100)
    told = heard(of_run(Folder(tmp_path)), lambda told: len(told) == 2)
    assert "not a database" in told[0][1]["problem"]


def test_a_folder_is_told_when_a_run_comes(tmp_path: Path) -> None:
    folder = Folder(tmp_path)

    def describe() -> dict[str, Any]:
        return {"runs": [look.name for look in folder.looks()], "live": False}

    def enough(told: list[tuple[str, Any]]) -> bool:
        if len(told) == 1:
            write_record(tmp_path / "run", deep_network(layers=1)).close()
        return len(told) == 2

    told = heard(events.of_folder(describe, lambda: None, Pace(0.1), Workers()), enough)
    assert [data["runs"] for _, data in told] == [[], ["run"]]


@pytest.mark.parametrize(("live", "heard_of"), [(True, [0]), (False, [0, 1])])
def test_the_pace_of_a_folder_holds_while_a_run_trains(
    live: bool, heard_of: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ALIVE", 2.0)
    looks = 0

    def describe() -> dict[str, Any]:
        nonlocal looks
        looks += 1
        return {"runs": min(looks - 1, 1), "live": live}

    pace = Pace(0.1)
    pace.spend(60)
    told = heard(events.of_folder(describe, lambda: None, pace, Workers()), lambda told: looks > 2 or len(told) == 2)
    assert [data["runs"] for _, data in told] == heard_of


def test_what_is_shown_anew_takes_its_share_of_a_core_at_most() -> None:
    assert events.SHARE + events.LOSS_SHARE + events.LIST_SHARE <= 0.1
    now = 0.0
    pace = Pace(0.1, lambda: now)
    assert pace.is_ready()
    pace.spend(0.5)
    now = 4.9
    assert not pace.is_ready()
    now = 5.1
    assert pace.is_ready()
    pace.spend(0.1)
    pace.spend(0.1)
    now = 7.0
    assert not pace.is_ready()
    now = 7.2
    assert pace.is_ready()


def test_the_time_of_the_thread_is_what_counts() -> None:
    pace = Pace(0.1)
    with pace.measured():
        time.sleep(0.3)
    time.sleep(0.2)
    assert pace.is_ready()
    with pace.measured():
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass
    assert not pace.is_ready()


def test_a_diagnosis_is_kept_until_there_is_another_sample_and_the_last_one_has_paid_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = write_record(tmp_path / "run", deep_network(layers=2))
    look = Folder(tmp_path).look("run")
    diagnoses = Diagnoses()
    assert diagnoses.verdict(look) is None
    first = diagnoses.of(record, look)
    assert diagnoses.of(record, look) is first
    assert diagnoses.verdict(look) == "healthy"
    live = look.__class__(**(vars(look) | {"state": "running", "sampled": 95}))
    monkeypatch.setattr(diagnosing, "SHARE", 1e-9)
    assert diagnoses.of(record, live) is first
    assert not diagnoses.is_due(live)
    monkeypatch.setattr(diagnosing, "SHARE", 1e9)
    assert diagnoses.is_due(live)
    assert diagnoses.of(record, live) is not first
    monkeypatch.setattr(diagnosing, "SHARE", 1e-9)
    ended = look.__class__(**(vars(look) | {"state": "killed", "sampled": 96}))
    assert diagnoses.is_due(ended)
    assert diagnoses.verdict(ended) is None


def test_a_failure_in_a_worker_reaches_who_asked_and_the_worker_goes_on() -> None:
    async def ask() -> int:
        workers = Workers(1)
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)
        return await workers.run(lambda: 7)

    assert asyncio.run(ask()) == 7
