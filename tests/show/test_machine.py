import json
from dataclasses import replace
from pathlib import Path

import junitparser
import pytest

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.rules import RULES
from desat.show.machine import document, junit, sarif
from desat.show.summary import summarize
from tests.records import deep_network, write_record

FINDING = Finding(
    "dead-units",
    "error",
    "net.3",
    ("net.3",),
    "train.py:37",
    0,
    90,
    "killed by an update",
    "38 units are off.",
    {},
    (),
    0.9,
)


def diagnosis(*findings: Finding) -> Diagnosis:
    return Diagnosis("run <1>", 100, 20, 0.01, findings)


def test_the_document_ends_with_health_layers_and_summary(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)) as record:
        found = diagnose(record)
        told = document(record, found)
        assert told["summary"] == list(summarize(record, found))
    assert list(told) == [*found.to_json(), "health", "layers", "summary"]
    assert 0.0 < told["health"] < 0.2
    assert list(told["layers"]) == [f"net.{number}" for number in range(24)]
    assert told["layers"]["net.23"] < 0.2
    json.dumps(told, allow_nan=False)


def test_the_document_of_a_healthy_run(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", deep_network(operation="ReLU", layers=2)) as record:
        told = document(record, diagnose(record))
    assert (told["health"], told["layers"]) == (1.0, {"net.0": 1.0, "net.1": 1.0, "net.2": 1.0, "net.3": 1.0})


def test_sarif_names_rule_level_file_and_line() -> None:
    log = sarif(diagnosis(FINDING), RULES)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {rule.code for rule in RULES}
    (result,) = run["results"]
    assert (result["ruleId"], result["level"]) == ("dead-units", "error")
    (location,) = result["locations"]
    assert location["physicalLocation"] == {"artifactLocation": {"uri": "train.py"}, "region": {"startLine": 37}}
    assert location["logicalLocations"][0]["fullyQualifiedName"] == "net.3"
    json.dumps(log, allow_nan=False)


@pytest.mark.parametrize(("site", "source"), [(None, None), ("net.3", None), (None, "train.py:?")])
def test_sarif_of_a_finding_without_a_place(site: str | None, source: str | None) -> None:
    (result,) = sarif(diagnosis(replace(FINDING, site=site, source=source)), RULES)["runs"][0]["results"]
    assert "region" not in json.dumps(result)
    assert ("locations" in result) == (site is not None or source is not None)


@pytest.mark.parametrize(
    ("severity", "fail_on", "failures"), [("error", "error", 1), ("warning", "error", 0), ("warning", "warning", 1)]
)
def test_junit_fails_where_the_exit_code_does(severity, fail_on, failures: int) -> None:
    text = junit(diagnosis(replace(FINDING, severity=severity)), RULES, fail_on)
    (suite,) = junitparser.JUnitXml.fromstring(text.encode())
    assert isinstance(suite, junitparser.TestSuite)
    assert (suite.tests, suite.failures) == (len(RULES), failures)
    assert suite.name == "desat run <1>"
