import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from desat.errors import DesatError
from desat.record.histogram import BINS, pack_histogram, unpack_histograms
from desat.record.reader import Record
from desat.record.rows import Reading, Site, Step
from desat.record.tables import COLUMNS, SITE_COLUMNS, read_histograms, read_table
from tests.records import statistics, write_record
from tests.show.export.runs import SAMPLED, STEPS, counts, small_run

LONG = 100_000
SECOND = 1.0
"""Seconds of processor time that a frame of LONG rows may take; it takes 0.7 on a slow core."""


@pytest.fixture
def record(tmp_path: Path):
    with write_record(tmp_path / "run", small_run()) as record:
        yield record


def expected(record: Record, table: str) -> list[dict[str, object]]:
    """The rows of a table, one by one, as SQLite has them, with the sites looked up."""
    sites = {row[0]: row for row in record.query("SELECT id, name, operation, kind FROM site")}
    found = []
    names = COLUMNS[table]
    order = {"site": "position", "step": "step", "metric": "name, step"}.get(table, "site, 2, step")
    for values in record.query(f"SELECT {', '.join(names)} FROM {table} ORDER BY {order}"):
        row = dict(zip(names, values, strict=True))
        if "site" in row:
            site = sites[row.pop("site")]
            row = dict(zip(SITE_COLUMNS, site[1:], strict=True)) | row
        if "saturated_units" in row and row["saturated_units"] is not None:
            row["saturated_units"] = int.from_bytes(row["saturated_units"]).bit_count()
        found.append(row)
    return found


@pytest.mark.parametrize("table", COLUMNS)
def test_polars_frames_hold_the_rows_of_each_table(table: str, record: Record) -> None:
    frame = record.frame(table, "polars")
    assert isinstance(frame, polars.DataFrame)
    assert frame.to_dicts() == expected(record, table)
    assert frame.height > 0


@pytest.mark.parametrize("table", COLUMNS)
def test_pandas_frames_hold_the_same(table: str, record: Record) -> None:
    frame = record.frame(table)
    assert isinstance(frame, pandas.DataFrame)
    rows = [{name: None if pandas.isna(value) else value for name, value in row.items()}
            for row in frame.to_dict("records")]  # fmt: skip
    assert rows == expected(record, table)


def test_integers_stay_integers_also_where_some_are_missing(record: Record) -> None:
    pandas_frame, polars_frame = record.frame("tensor"), record.frame("tensor", "polars")
    assert pandas_frame["step"].dtype == "int64"
    assert pandas_frame["units"].dtype == "Int64"
    assert pandas_frame["rms"].dtype == "float64"
    assert pandas_frame["units"].isna().sum() == 2 * len(SAMPLED)
    kinds = {"step": polars.Int64, "units": polars.Int64, "rms": polars.Float64, "site": polars.String}
    assert {name: polars_frame.schema[name] for name in kinds} == kinds
    assert polars_frame["rms"].null_count() == len(SAMPLED)
    assert record.frame("step")["loss"].isna().sum() == 1
    assert len(record.frame("step")) == STEPS


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_empty_tables_have_their_columns(library: str, tmp_path: Path) -> None:
    with write_record(tmp_path / "run", []) as empty:
        for table, names in COLUMNS.items():
            frame = empty.frame(table, library)
            assert len(frame) == 0
            assert set(names) <= set(frame.columns)
        assert empty.frame("tensor", "pandas")["step"].dtype == "int64"


def test_mistakes_are_one_line_that_says_what_there_is(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DesatError, match="no table 'tensors' in a record: expected one of site, step, tensor"):
        record.frame("tensors")
    with pytest.raises(DesatError, match="no frames of 'numpy': expected one of pandas, polars"):
        record.frame("step", "numpy")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(DesatError, match="polars is not installed: `pip install polars`"):
        record.frame("step", "polars")
    with pytest.raises(DesatError, match="cannot be read"):
        record.query("SELECT nothing FROM nowhere")
    with pytest.raises(DesatError, match="cannot be read"):
        record.query("DELETE FROM step")


def test_what_cannot_be_in_a_column_is_one_line(tmp_path: Path) -> None:
    write_record(tmp_path / "run", small_run()).close()
    connection = sqlite3.connect(tmp_path / "run" / "run.sqlite")
    with connection:
        connection.execute("UPDATE tensor SET rms = 'much'")
    connection.close()
    with Record(tmp_path / "run") as record, pytest.raises(DesatError, match="column rms of tensor"):
        record.frame("tensor")


def test_rows_of_a_site_that_is_not_there_have_no_name(tmp_path: Path) -> None:
    sites = [Site(3, "b", "module", "Linear", None, 0, None), Site(7, "d", "module", "Linear", None, 0, None)]
    readings = [Reading(number, "rank", 0, 1.0) for number in (1, 3, 5, 7, 9)]
    with write_record(tmp_path / "run", [*sites, *readings]) as record:
        assert record.frame("reading", "polars")["site"].to_list() == [None, "b", None, "d", None]


def test_a_long_table_comes_in_less_than_a_second_of_processor_time(tmp_path: Path) -> None:
    sites = [Site(number, f"net.{number}", "nonlinearity", "Tanh", None, number, None) for number in range(50)]
    packed = pack_histogram(counts())
    rows = [
        statistics(site.id, quantity, step, rms=float(step), histogram=packed, units=64, saturated_units=b"\x01" * 8)
        for site in sites for quantity in ("input", "output") for step in range(LONG // 100)
    ]  # fmt: skip
    with write_record(tmp_path / "run", [*sites, *rows, Step(0, 0.0, 1.0, 0.1, 0.1)]) as record:
        for library in ("pandas", "polars"):
            record.frame("step", library)
            seconds = []
            for _ in range(3):
                began = time.process_time()
                frame = record.frame("tensor", library)
                seconds.append(time.process_time() - began)
            assert len(frame) == LONG
            assert min(seconds) < SECOND, library
            assert frame["saturated_units"].sum() == 8 * LONG
        found, known = read_histograms(record)
        assert known.all()
        assert np.array_equal(found[-1], counts())


def unpack_histogram(packed: bytes | None) -> np.ndarray:
    """One of them, by itself."""
    counts = np.zeros(BINS)
    if packed:
        part = np.frombuffer(packed[1:], "<u2")
        counts[packed[0] : packed[0] + len(part)] = part[: BINS - packed[0]]
    return counts


@given(st.lists(st.none() | st.binary(max_size=150).filter(lambda octets: len(octets) % 2 == 1 or not octets)))
def test_histograms_unpacked_together_are_those_unpacked_one_by_one(packed: list[bytes | None]) -> None:
    one_by_one = [
        unpack_histogram(one) if one is None or not one or one[0] < BINS else np.zeros(BINS) for one in packed
    ]
    assert np.array_equal(unpack_histograms(packed), np.array(one_by_one).reshape(len(packed), BINS))


def test_half_of_a_count_is_left_out() -> None:
    assert unpack_histograms([b"\x00\x01\x00\x07"])[0, :2].tolist() == [1.0, 0.0]


def test_what_has_no_bits_has_no_number_of_units(tmp_path: Path) -> None:
    rows = [statistics(0, "input", step, saturated_units=bits) for step, bits in enumerate([b"", None, b"\xff\x80"])]
    with write_record(tmp_path / "run", rows) as record:
        column = read_table(record, "tensor")["saturated_units"]
    assert column.objects().tolist() == [0, None, 9]
