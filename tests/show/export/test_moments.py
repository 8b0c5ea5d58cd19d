import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from desat.record import news
from desat.record import writer as writing
from desat.record.histogram import LOWEST_EXPONENT
from desat.record.reader import Record
from desat.record.rows import Metric, Reading, Site, Step
from desat.record.writer import RecordWriter
from desat.show.export.moments import Moment, Stream, bucket_limits
from tests.records import deep_network, statistics, write_record
from tests.show.export.runs import BEGAN, SAMPLED, STARTED, STEPS, counts, small_run


def moments(record: Record, stream: Stream | None = None) -> list[Moment]:
    return [moment for _, found in (stream or Stream()).read(record) for moment in found]


def test_moments_hold_what_the_record_holds_by_tag_in_the_order_of_steps(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", small_run(), started=STARTED) as record:
        found = moments(record)
    assert [moment.step for moment in found] == [-1, 0, 1, 2, 3, 3, 4, 5]
    assert [round(moment.time - BEGAN, 3) for moment in found] == [0.05, 0.0, 0.5, 1.0, 1.5, 1.75, 2.0, 2.5]
    told_before, first, second, third, sampled, metric = found[:6]
    assert told_before.values == {"metric/accuracy": 0.1}
    assert metric.values == {"metric/accuracy": 0.7}
    assert second.values == {"loss": 1.0, "learning_rate": 0.1}
    assert third.values == {"learning_rate": 0.1}
    expected = {
        "loss": 0.5, "learning_rate": 0.1, "watching": 0.002, "input_rms/net.3": 3.5, "saturated/net.3": 0.375,
        "saturated_low/net.3": 0.25, "saturated_high/net.3": 0.125, "gain/net.3": 0.2, "output_maximum/net.3": np.inf,
        "output_nonfinite/net.3": 1.0, "gradient_rms/net.3": 4e-3, "parameter_rms/net.0.weight": 0.5,
        "gradient_rms/net.0.weight": 1e-2, "update_rms/net.0.weight": 3e-3, "update_ratio/net.0.weight": 6e-3,
        "momentum/1/SGD": 0.9,
    }  # fmt: skip
    assert {tag: value for tag, value in sampled.values.items() if tag in expected} == pytest.approx(expected)
    assert not {"output_rms/net.3", "missing/SGD", "metric/lost"} & sampled.values.keys()
    assert first.histograms.keys() == {"input_magnitudes/net.3"}
    assert np.array_equal(first.histograms["input_magnitudes/net.3"], counts())


def test_the_limits_of_buckets_are_the_powers_of_two_above_what_they_count() -> None:
    limits = bucket_limits()
    assert limits[0] == 2.0 ** (LOWEST_EXPONENT + 1)
    assert limits[-LOWEST_EXPONENT] == 2.0
    assert np.all(limits[1:] == 2 * limits[:-1])


def test_a_run_read_in_many_pieces_is_the_run_read_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*deep_network(steps=range(0, 60, 5)), *(Metric("f1", step, step / 60, 0.01 * step) for step in range(56))]
    with write_record(tmp_path / "run", rows) as record:
        whole = moments(record)
        assert len(list(Stream().read(record))) == 1
        monkeypatch.setattr(news, "MOST_SAMPLES", 2)
        monkeypatch.setattr(news, "MOST_STEPS", 7)
        pieces = list(Stream().read(record))
        assert [progress.done for progress, _ in pieces] == list(range(1, len(pieces) + 1))
        assert {progress.planned for progress, _ in pieces} == {len(pieces)}
        assert len(pieces) > 7
        told = [(moment.step, moment.time, moment.values) for _, found in pieces for moment in found]
    assert sorted(told, key=lambda moment: moment[:2]) == sorted(
        [(moment.step, moment.time, moment.values) for moment in whole], key=lambda moment: moment[:2]
    )


def test_a_live_record_is_told_of_once_also_where_metrics_come_after_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "COMMIT_INTERVAL", 0.02)
    writer, stream = RecordWriter(tmp_path / "run"), Stream()

    def written(*rows) -> list[dict[str, float]]:
        """What is new when these rows are there."""
        writer.put(lambda: rows)
        last = rows[-1]
        with Record(tmp_path / "run") as record:
            table = "metric" if isinstance(last, Metric) else "step"
            while not record.query(f"SELECT 1 FROM {table} WHERE step = ? AND time = ?", (last.step, last.time)):
                time.sleep(0.01)
            return [moment.values for moment in moments(record, stream)]

    assert written(Metric("f1", -1, 0.5, 0.0)) == [{"metric/f1": 0.5}]
    assert written(Step(0, 0.1, 1.0, None, None)) == [{"loss": 1.0}]
    site = Site(0, "fc", "module", "Linear", None, 0, None)
    second = written(site, statistics(0, "output", 1), Reading(0, "rank", 1, 3.0), Step(1, 0.2, 0.5, None, 0.1))
    assert [values["output_rms/fc"] for values in second] == [1.0]
    assert [values["rank/fc"] for values in second] == [3.0]
    assert written(Metric("f1", 1, 0.6, 0.25)) == [{"metric/f1": 0.6}]
    assert written(Metric("f1", 2, 0.7, 0.3), Metric("auc", 1, 0.8, 0.31)) == [{"metric/auc": 0.8}]
    assert written(Step(2, 0.3, 0.25, None, None)) == [{"loss": 0.25}, {"metric/f1": 0.7}]
    writer.close()
    with Record(tmp_path / "run") as record:
        assert moments(record, stream) == []


def test_a_record_without_steps_has_no_moments(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", []) as record:
        assert moments(record) == []


def test_text_in_columns_of_numbers_and_control_characters_in_names_are_left_out(tmp_path: Path) -> None:
    write_record(tmp_path / "run", small_run(site="a\x1b[2J\nb", metric="../../x\n"), started="yesterday").close()

    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as connection:
        connection.execute("UPDATE tensor SET rms = 'much', histogram = 'none'")
        connection.execute("UPDATE step SET time = 'later', loss = x'00' WHERE step = 1")
    connection.close()
    with Record(tmp_path / "run") as record:
        found = moments(record)
    tags = {tag for moment in found for tag in moment.values}
    assert all(tag.isprintable() for tag in tags)
    assert "metric/../../x\N{REPLACEMENT CHARACTER}" in tags
    assert not any(tag.startswith("input_rms") for tag in tags)
    assert [moment.time for moment in found if moment.step == 1] == [0.0]
    assert len({moment.step for moment in found}) == STEPS + 1
    assert not any(moment.histograms for moment in found if moment.step in SAMPLED)
