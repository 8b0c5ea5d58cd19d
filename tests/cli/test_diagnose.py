"""`desat diagnose` on records made by hand; on whole trainings see test_main_job.py."""

import json
import re
from pathlib import Path

import pytest

from desat.diagnose.health import WEIGHTS
from desat.record.rows import Row
from tests.records import deep_network, write_record
from tests.warm import desat

DOCUMENTED = Path(__file__).parent.parent.parent / "docs" / "json.md"


def document(directory: Path, rows: list[Row], *options: str) -> dict:
    write_record(directory / "run", rows).close()
    done = desat("diagnose", "--json", *options, "run", cwd=directory)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def test_the_document_has_the_keys_that_the_docs_name(tmp_path: Path) -> None:
    told = document(tmp_path, deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3))
    text = DOCUMENTED.read_text()
    assert list(told) == re.findall(r"^\| `(\w+)` \|", text.partition("## A finding")[0], re.MULTILINE)
    assert list(told["findings"][0]) == re.findall(r"^\| `(\w+)` \|", text.partition("## A finding")[2], re.MULTILINE)
    assert (told["schema"], len(told["summary"])) == (1, 3)


def test_the_docs_name_the_weights_of_health() -> None:
    told = dict(re.findall(r"(error|warning|note) (0\.\d+)", DOCUMENTED.read_text()))
    assert {severity: float(weight) for severity, weight in told.items()} == dict(WEIGHTS)


@pytest.mark.parametrize(("limit", "learns"), [("creeping=0.01", "learns, but slowly"), ("creeping=0.09", "not learn")])
def test_the_summary_goes_by_the_limits_of_the_user(tmp_path: Path, limit: str, learns: str) -> None:
    rows = deep_network(operation="ReLU", steps=range(0, 200, 10), loss=lambda step: 2.3 - 0.0006 * step)
    assert learns in document(tmp_path, rows, "--limit", limit)["summary"][0]


def test_the_terminal_is_told_the_same(tmp_path: Path) -> None:
    told = document(tmp_path, deep_network(operation="ReLU"))
    printed = desat("diagnose", "run", cwd=tmp_path).stdout
    assert " ".join(told["summary"]) in " ".join(printed.split())
