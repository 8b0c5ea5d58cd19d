"""Findings for machines: the JSON document, SARIF 2.1.0 for code scanning, JUnit for test reports."""

from typing import Any

from desat import __version__
from desat.diagnose.finding import Diagnosis, Finding, Severity
from desat.diagnose.health import health, health_of_layers, layers_of
from desat.diagnose.rule import Rule
from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.summary import summarize
from desat.show.words import plain

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "note": "note"}


def document(record: Record, diagnosis: Diagnosis) -> dict[str, Any]:
    """The JSON document, schema 1: `Diagnosis.to_json`, then the health of run and layers, and the summary."""
    return diagnosis.to_json() | {
        "health": health(diagnosis),
        "layers": health_of_layers(diagnosis, layers_of(record)),
        "summary": list(summarize(record, diagnosis)),
    }


def sarif(diagnosis: Diagnosis, rules: tuple[Rule, ...]) -> dict[str, Any]:
    """A SARIF 2.1.0 log (OASIS 2020): one result for each finding, at the user's file and line where it is known."""
    driver = {
        "name": "desat",
        "version": __version__,
        "rules": [
            {
                "id": rule.code,
                "shortDescription": {"text": rule.meaning},
                "fullDescription": {"text": rule.measured},
                "help": {"text": rule.helps},
            }
            for rule in rules
        ],
    }
    results = [_result(finding) for finding in diagnosis.findings]
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def junit(diagnosis: Diagnosis, rules: tuple[Rule, ...], fail_on: Severity) -> str:
    """JUnit XML with one test case for each rule, which fails at a finding of the severity `fail_on` or graver.

    Raises DesatError where the package that writes it is not installed.
    """
    try:
        import junitparser
    except ImportError:
        raise DesatError("JUnit is written by junitparser: install it with `pip install 'desat[ci]'`") from None
    suite = junitparser.TestSuite(f"desat {plain(diagnosis.run)}")
    for rule in rules:
        case = junitparser.TestCase(rule.code, classname="desat")
        for finding in diagnosis.findings:
            if finding.code == rule.code:
                told = f"{plain(finding.message)} {plain(finding.cause)}"
                grave = Diagnosis("", 0, 0, 0.0, (finding,)).reaches(fail_on)
                if grave:
                    case.result = [junitparser.Failure(told, finding.severity)]
                else:
                    case.system_out = told
        suite.add_testcase(case)
    report = junitparser.JUnitXml()
    report.add_testsuite(suite)
    return report.tostring().decode()


def _result(finding: Finding) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "level": LEVELS[finding.severity],
        "message": {"text": f"{finding.message} {finding.cause}"},
        "properties": {"confidence": finding.confidence, "sites": list(finding.sites)},
    }
    location: dict[str, Any] = {}
    if finding.site is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.site, "kind": "module"}]
    if finding.source is not None:
        file, _, line = finding.source.rpartition(":")
        region = {"startLine": int(line)} if line.isdigit() and int(line) > 0 else {}
        location["physicalLocation"] = {"artifactLocation": {"uri": file.replace("\\", "/")}, "region": region}
        if not region:
            del location["physicalLocation"]["region"]
    if location:
        result["locations"] = [location]
    return result
