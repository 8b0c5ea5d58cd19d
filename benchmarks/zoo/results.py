"""Results of the zoo, one JSON line a case, and what is true of a fault by how the networks behaved."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from benchmarks.zoo.cases import Case
from benchmarks.zoo.parts import DATA_SETS, LEARNED_SCORE

RESULTS = "results.jsonl"

HARM_POINTS = 0.03
"""A fault is harmful where its twin's validation accuracy (or explained variance) is higher by at least this share."""
HARM_ERRORS = 3.0
"""And by at least so many standard errors of the difference."""

Harm = Literal["harmful", "harmless", "unknown"]


@dataclass(frozen=True)
class Result:
    """What became of a case.

    description: Case.describe(). exit_code: the script's own; negative for a signal. seconds: wall time.
    validation: what the script printed at its end; None where it did not get there. run: the record's folder, relative
    to the results. script: digest of its text; measured_by: digest of desat's code that makes records; commit: of the
    checkout.
    """

    name: str
    description: Mapping[str, Any]
    exit_code: int
    seconds: float
    cpu_seconds: float
    validation: float | None
    timed_out: bool
    run: str
    script: str
    measured_by: str
    commit: str

    @property
    def is_finite(self) -> bool:
        return self.validation is not None and math.isfinite(self.validation)


def write_result(path: Path, result: Result) -> None:
    """Append a result; of several with one name the last holds."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def read_results(path: Path) -> dict[str, Result]:
    """The results by name; none where the file is not there. A line that a killed run left half written is skipped."""
    results = {}
    known = {field.name for field in fields(Result)}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[values["name"]] = Result(**{key: value for key, value in values.items() if key in known})
    return results


def learns(result: Result) -> bool:
    """Whether a network has learned its data: clearly better than guessing; see DataSet.learned and LEARNED_SCORE."""
    if result.validation is None or not result.is_finite:
        return False
    return result.validation >= _limit(result)


def harm_of(result: Result, twin: Result, siblings: Iterable[Result] = ()) -> Harm:
    """Whether a fault did harm: its twin reaches a clearly better validation result; unknown where the twin fails."""
    if not learns(twin):
        return "unknown"
    return "harmful" if harmful(result, twin, siblings) else "harmless"


def harmful(result: Result, twin: Result, siblings: Iterable[Result] = ()) -> bool:
    """Whether the twin is better by HARM_POINTS and by HARM_ERRORS standard errors of the difference.

    siblings: results of the twin with other seeds, for the spread over seeds. The standard error joins the binomial
    errors of the two accuracies and that spread, which counts for both runs. A script that fails, or whose result is
    not finite, is harmed.
    """
    assert twin.validation is not None
    if result.validation is None or not result.is_finite:
        return True
    difference = twin.validation - result.validation
    return difference >= HARM_POINTS and difference >= HARM_ERRORS * standard_error(result, twin, siblings)


def standard_error(result: Result, twin: Result, siblings: Iterable[Result] = ()) -> float:
    """Of the difference between two validation results."""
    assert result.validation is not None
    assert twin.validation is not None
    variance = 0.0
    if not _is_score(twin):
        samples = DATA_SETS[twin.description["data"]].validation
        variance = sum(share * (1.0 - share) / samples for share in (result.validation, twin.validation))
    over_seeds = [other.validation for other in (twin, *siblings) if other.validation is not None]
    if len(over_seeds) > 1:
        # Binomial noise is in the spread as well: the larger of the two is the error.
        variance = max(variance, 2.0 * statistics.variance(over_seeds))
    return math.sqrt(variance)


def siblings_of(twin: Result, results: Mapping[str, Result]) -> list[Result]:
    """The results of the same healthy script with other seeds."""
    keys = ("architecture", "data", "variant")
    wanted = [twin.description[key] for key in keys]
    return [
        other
        for other in results.values()
        if other.name != twin.name
        and other.description["code"] is None
        and [other.description[key] for key in keys] == wanted
    ]


def is_at(site: str, patterns: Iterable[str]) -> bool:
    """Whether a finding's site is one of those a case expects. No pattern: the whole network, so any site is.

    A functional site, `train.py:37 torch.relu after layers.2`, lies where the module path after its last word does.
    """
    patterns = list(patterns)
    path = site.rsplit(" after ", 1)[-1].split(" ", 1)[0]
    return not patterns or any(fnmatch(path, pattern) for pattern in patterns)


def is_stale(result: Result, script: str, measured_by: str) -> bool:
    """Whether a result is of another script, or of another desat, than there is now."""
    return (result.script, result.measured_by) != (script, measured_by)


def _is_score(result: Result) -> bool:
    return result.description["architecture"].startswith("autoencoder")


def _limit(result: Result) -> float:
    return LEARNED_SCORE if _is_score(result) else DATA_SETS[result.description["data"]].learned


def by_code(cases: Iterable[Case]) -> dict[str, int]:
    """Faulty cases of each code."""
    counts: dict[str, int] = {}
    for case in cases:
        if case.code:
            counts[case.code] = counts.get(case.code, 0) + 1
    return counts
