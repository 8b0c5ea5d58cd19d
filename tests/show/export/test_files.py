"""CSV, Parquet and JSON, read back."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from desat.diagnose.engine import diagnose
from desat.errors import DesatError
from desat.record.histogram import BINS, LOWEST_EXPONENT
from desat.record.reader import Record
from desat.record.tables import COLUMNS, read_table
from desat.show.export.exporter import Order
from desat.show.export.formats import FORMATS
from desat.show.export.moments import Progress
from desat.show.export.tables import NAMES
from tests.records import deep_network, write_record
from tests.show.export.runs import SAMPLED, STARTED, counts, small_run


@pytest.fixture
def record(tmp_path: Path):
    with write_record(tmp_path / "run", small_run(), started=STARTED, sizes={"width": float("inf")}) as record:
        yield record


def export(name: str, record: Record, place: Path, **options) -> list[Progress]:
    told: list[Progress] = []
    assert FORMATS[name].export(record, Order(place, **options), told.append) == str(place)
    return told


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_each_table_with_all_digits(record: Record, tmp_path: Path) -> None:
    told = export("csv", record, tmp_path / "csv")
    assert told[-1] == Progress(len(NAMES), len(NAMES))
    assert {path.stem for path in (tmp_path / "csv").iterdir()} == set(NAMES)
    for name in COLUMNS:
        table, rows = read_table(record, name), rows_of(tmp_path / "csv" / f"{name}.csv")
        for column, values in table.items():
            kind = {"text": str, "whole": int, "number": float}[values.kind]
            assert [kind(row[column]) if row[column] else None for row in rows] == values.objects().tolist()
    tensors = rows_of(tmp_path / "csv" / "tensor.csv")
    assert tensors[0]["site"] == "net.3"
    assert "histogram" not in tensors[0]
    facts = {row["key"]: json.loads(row["value"]) for row in rows_of(tmp_path / "csv" / "run.csv")}
    assert facts["started"] == STARTED
    assert facts["sizes"] == {"width": None}


@pytest.mark.parametrize(("name", "cell"), [
    ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("a,\"b\"\nc\r", 'a,"b"\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}'),
    ("../../x", "../../x"),
])  # fmt: skip
def test_text_of_a_record_is_no_formula_no_line_and_no_path(name: str, cell: str, tmp_path: Path) -> None:
    with write_record(tmp_path / "run", small_run(site=name, metric=name)) as record:
        export("csv", record, tmp_path / "out" / "csv")
        export("parquet", record, tmp_path / "out" / "parquet")
        export("json", record, tmp_path / "out" / "export.json")
    assert {row["name"] for row in rows_of(tmp_path / "out" / "csv" / "metric.csv")} == {cell, "lost"}
    assert rows_of(tmp_path / "out" / "csv" / "tensor.csv")[0]["site"] == cell
    assert parquet.read_table(tmp_path / "out" / "parquet" / "site.parquet")["name"].to_pylist()[1] == name
    assert json.loads((tmp_path / "out" / "export.json").read_text())["sites"][1]["name"] == name
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"csv", "parquet", "export.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_parquet_has_each_table_with_types_and_histograms_as_lists(record: Record, tmp_path: Path) -> None:
    export("parquet", record, tmp_path / "parquet")
    for name in COLUMNS:
        found = parquet.read_table(tmp_path / "parquet" / f"{name}.parquet")
        for column, values in read_table(record, name).items():
            types = {"text": pyarrow.string(), "whole": pyarrow.int64(), "number": pyarrow.float64()}
            assert found.schema.field(column).type == types[values.kind]
            assert found[column].to_pylist() == values.objects().tolist()
    tensors = parquet.read_table(tmp_path / "parquet" / "tensor.parquet").to_pylist()
    histograms = {(row["quantity"], row["step"]): row["histogram"] for row in tensors}
    assert histograms["gradient", 0] is None
    assert histograms["input", SAMPLED[-1]] == counts().tolist()
    assert len(histograms["input", 0]) == BINS
    assert [row["saturated_units"] for row in tensors if row["quantity"] == "input"] == list(SAMPLED)


def test_findings_are_rows(tmp_path: Path) -> None:
    sick = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    with write_record(tmp_path / "run", sick) as record:
        export("parquet", record, tmp_path / "parquet")
        findings = diagnose(record).findings
    rows = parquet.read_table(tmp_path / "parquet" / "finding.parquet").to_pylist()
    assert [row["code"] for row in rows] == [finding.code for finding in findings]
    assert rows[0]["first_step"] == findings[0].first_step
    assert json.loads(rows[0]["sites"]) == list(findings[0].sites)
    assert json.loads(rows[0]["evidence"]).keys() == findings[0].evidence.keys()


def no_number(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_json_is_one_document_without_nan(record: Record, tmp_path: Path) -> None:
    export("json", record, tmp_path / "export.json")
    told = json.loads((tmp_path / "export.json").read_text(), parse_constant=no_number)
    assert (told["schema"], told["run"], told["information"]["started"]) == (1, "run", STARTED)
    assert told["sites"][1]["curve"] == {"shape": "bounded", "low": -4.357, "high": 4.357, "peak_gain": 0.25}
    assert told["steps"]["loss"] == [2.0, 1.0, None, 0.5, 0.4, 2 / 6]
    assert told["series"]["input_rms/net.3"] == {"step": [0, 3, 5], "value": [0.5, 3.5, 5.5]}
    assert told["series"]["output_maximum/net.3"]["value"] == [None, None, None]
    assert told["series"]["metric/accuracy"] == {"step": [-1, 3], "value": [0.1, 0.7]}
    assert "loss" not in told["series"]
    histogram = told["histograms"]["input_magnitudes/net.3"]
    assert histogram == {"step": [0, 3, 5], "exponent": [-2] * 3, "counts": [[3, 0, 5]] * 3}
    assert counts()[-2 - LOWEST_EXPONENT] == 3
    assert told["findings"]["verdict"] == diagnose(record).verdict


def test_json_goes_to_standard_output(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FORMATS["json"].export(record, Order(Path("-")), lambda progress: None) == ""
    export("json", record, tmp_path / "export.json")
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "export.json").read_text())


@pytest.mark.parametrize(("name", "file"), [("csv", "out/step.csv"), ("parquet", "out/run.parquet"), ("json", "out")])
def test_a_file_that_is_there_stays_unless_it_may_go(name: str, file: str, record: Record, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    with pytest.raises(DesatError, match=r"exists: .*--overwrite"):
        export(name, record, tmp_path / "out")
    assert (tmp_path / file).read_text() == "mine"
    export(name, record, tmp_path / "out", overwrite=True)
    assert (tmp_path / file).read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["csv", "parquet", "json"])
def test_a_place_that_cannot_be_made_is_one_line(name: str, record: Record, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DesatError, match="cannot write"):
        export(name, record, tmp_path / "file" / "below" / "out")


@pytest.mark.parametrize("name", ["csv", "parquet", "json"])
def test_a_record_in_which_nothing_was_measured_is_exported_too(name: str, tmp_path: Path) -> None:
    with write_record(tmp_path / "run", []) as empty:
        export(name, empty, tmp_path / "out")
    if name == "json":
        assert json.loads((tmp_path / "out").read_text())["findings"] is None
    else:
        assert len(list((tmp_path / "out").iterdir())) == len(NAMES)


def test_a_quantity_of_every_size_comes_back(tmp_path: Path) -> None:
    values = [1e-300, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, np.nextafter(1.0, 2.0)]
    rows = deep_network(layers=1, steps=range(len(values)), loss=lambda step: float(values[step]))
    with write_record(tmp_path / "run", rows) as record:
        export("csv", record, tmp_path / "csv")
    assert [float(row["loss"]) for row in rows_of(tmp_path / "csv" / "step.csv")] == values
