import json
from dataclasses import replace

import junitparser
import pytest

from desat.diagnose.finding import Diagnosis, Finding
from desat.diagnose.rules import RULES
from desat.show.machine import junit, sarif

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
