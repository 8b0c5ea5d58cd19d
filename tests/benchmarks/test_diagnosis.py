"""The evaluation of the diagnosis on results and records that are made by hand."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.baselines import BASELINES
from benchmarks.diagnosis import Judged, judge, page
from benchmarks.zoo.cases import Case, all_cases, case_named
from benchmarks.zoo.results import RESULTS, Result, write_result

from desat.diagnose.finding import Diagnosis, Finding, Severity
from tests.records import deep_network, write_record

ROOT = Path(__file__).parents[2]
HEALTHY = "mlp-deep_blobs_plain_s0"
LOW_LIMIT = "the limit of the clipping, 0.001, is too low: the gradient's norm is 2"
SMALL_WEIGHTS = "the weights are too small to carry it (weight: 90% of what is lost)"
SQUASHED = "the slope of the nonlinearities shrinks it (nonlinearity: 90% of what is lost)"


def case_of(key: str) -> Case:
    """The gravest case of a fault in the part that rules are tuned on."""
    return [case for case in all_cases() if case.fault and case.fault.key == key and case.split == "tune"][-1]


def result_of(name: str, validation: float = 0.95, run: str = "") -> Result:
    return Result(name, case_named(name).describe(), 0, 1.0, 1.0, validation, False, run or f"runs/{name}", "", "", "")


def finding(code: str, cause: str, severity: Severity = "error", site: str | None = None) -> Finding:
    return Finding(code, severity, site, (), None, 0, 10, cause, "")


def judged(key: str, *findings: Finding, truth: str = "harmful", **baselines: set[str]) -> Judged:
    result = result_of(HEALTHY if truth == "healthy" else case_of(key).name)
    said = {name: set[str]() for name in BASELINES} | baselines
    return Judged(result, truth, Diagnosis("run", 10, 10, 0.0, findings), said)


def row(text: str, first: str) -> dict[str, str]:
    """The first row of a page's tables that begins with a cell, by the heading of its table."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    top = next(number for number in range(at, 0, -1) if lines[number].startswith("| ---")) - 1
    heading, cells = ([cell.strip() for cell in lines[number].split("|")[1:-1]] for number in (top, at))
    return dict(zip(heading, cells, strict=True))


def entries(text: str, title: str) -> list[str]:
    """The entries of a list of the first section."""
    after = text.split(f"\n{title} (")[1].split("\n\n")
    return after[1].splitlines() if after[0].endswith(":") else []


# One run


@pytest.mark.parametrize(
    ("findings", "right"),
    [
        ([], None),
        ([finding("non-finite", LOW_LIMIT)], None),
        ([finding("clipping-dominates", LOW_LIMIT, "warning")], None),
        ([finding("clipping-dominates", LOW_LIMIT)], True),
        ([finding("clipping-dominates", "clipping by value cuts 90% of the entries")], False),
        ([finding("update-too-small", "the learning rate is too small: 0.01, about 1")], False),
        ([finding("update-too-small", "the learning rate is too small: 0.01, about 1"),
          finding("clipping-dominates", LOW_LIMIT)], True),
    ],
)  # fmt: skip
def test_the_cause_is_right_if_any_of_the_rightly_named_errors_has_it(
    findings: list[Finding], right: bool | None
) -> None:
    assert judged("clipping-dominates.max-norm", *findings).cause_is_right is right


def test_without_a_diagnosis_nothing_is_named() -> None:
    one = replace(judged("clipping-dominates.max-norm"), diagnosis=None)
    assert one.cause_is_right is None
    assert one.site_is_right is None


# The page


def test_causes_are_counted_over_the_harmful_faults_that_are_named() -> None:
    key = "vanishing-gradient.small-weights"
    text = page(
        [
            judged(key, finding("vanishing-gradient", SMALL_WEIGHTS)),
            judged(key, finding("vanishing-gradient", SQUASHED)),
            judged(key, finding("vanishing-gradient", SQUASHED)),
            judged(key),
            judged(key, finding("vanishing-gradient", SMALL_WEIGHTS), truth="harmless"),
        ]
    )
    assert row(text, "desat")["named"] == "75%"
    assert row(text, "desat")["cause right"] == "33%"
    assert row(text, "runs")["cause right"] == "3"
    assert row(text, next(iter(BASELINES)))["cause right"] == "–"
    assert row(text, "vanishing-gradient")["cause right"] == "33%"


def test_what_went_wrong_is_listed_by_name() -> None:
    key, name = "vanishing-gradient.small-weights", case_of("vanishing-gradient.small-weights").name
    sites = ", ".join(case_of(key).sites)
    text = page(
        [
            judged(key, finding("vanishing-gradient", SQUASHED, site="output")),
            judged("clipping-dominates.max-norm", finding("clipping-dominates", LOW_LIMIT)),
            judged("clipping-dominates.max-norm", finding("non-finite", ""), truth="harmless"),
            judged("", finding("dead-units", ""), truth="healthy"),
        ]
    )
    harmless = case_of("clipping-dominates.max-norm").name
    assert entries(text, "Harmful faults without an error") == []
    assert entries(text, "Named, but with another cause") == [f"- {name}: vanishing-gradient: {SQUASHED}"]
    assert entries(text, "Named, but at another site") == [f"- {name}: output, and not {sites}"]
    assert entries(text, "Harmless faults with an error") == [f"- {harmless}: non-finite"]
    assert entries(text, "Healthy runs with an error") == [f"- {HEALTHY}: dead-units"]


def test_a_tool_is_judged_by_the_cases_that_it_was_run_on() -> None:
    key, right, wrong = "clipping-dominates.max-norm", {"update-too-small"}, {"dead-units"}
    text = page(
        [
            judged(key, delve=right), judged(key, delve=wrong), judged(key), judged("", truth="healthy", delve=wrong),
            judged(key, truth="harmless"),
        ]
    )  # fmt: skip
    told = row(text, "delve")
    assert told["found"] == "100% of 2"
    assert told["named"] == "50% of 2"
    assert told["error on a healthy run"] == "100%"
    assert told["error on a harmless fault"] == "–"
    assert row(text, "clipping-dominates")["delve"] == "50% of 2"
    assert list(row(text, "clipping-dominates"))[-3:] == [*BASELINES, "delve"]


# Many records


def write_zoo(folder: Path, names: Iterable[str], record: bool = True) -> None:
    if record:
        with write_record(folder / "runs" / "one", deep_network()):
            pass
    for name in names:
        write_result(folder / RESULTS, result_of(name, run="runs/one"))


def test_several_processes_judge_as_one_does(tmp_path: Path) -> None:
    case = case_of("clipping-dominates.max-norm")
    names = [case.name, case.twin, HEALTHY, "cnn-residual_mnist_plain_s0"]
    write_zoo(tmp_path, names)
    line = {"name": HEALTHY, "tool": "delve", "codes": ["dead-units"]}
    (tmp_path / "contenders.jsonl").write_text(json.dumps(line) + "\n")
    one, two = (judge(tmp_path, jobs) for jobs in (1, 2))
    assert one == two
    assert [each.result.name for each in one] == names
    assert [each.truth for each in one] == ["harmless", "healthy", "healthy", "healthy"]
    assert all(each.diagnosis is not None for each in one)
    assert [each.baselines.get("delve") for each in one] == [None, None, {"dead-units"}, None]


def test_a_fault_whose_twin_was_not_run_is_left_out_and_a_lost_record_says_nothing(tmp_path: Path) -> None:
    write_zoo(tmp_path, [case_of("clipping-dominates.max-norm").name, HEALTHY], record=False)
    (one,) = judge(tmp_path)
    assert one.result.name == HEALTHY
    assert one.diagnosis is None
    assert one.errors == set()


def test_an_interrupt_ends_all_processes_without_a_word_of_theirs(tmp_path: Path) -> None:
    write_zoo(tmp_path, [case.name for case in all_cases() if case.fault is None])
    command = [sys.executable, "-m", "benchmarks.diagnosis", "--folder", tmp_path, "--output", tmp_path / "page.md"]
    process = subprocess.Popen(
        [*command, "--jobs", "2"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _wait_for_children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        # This waits for all that hold its pipes, and so for the processes that read records.
        _, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors.decode() == "interrupted: nothing was written\n"
    assert not (tmp_path / "page.md").exists()


def _wait_for_children(pid: int) -> None:
    """Until two processes read records, beside the one that keeps count of what they share."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip(f"no {children}")
    end = time.monotonic() + 60
    while len(children.read_text().split()) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
