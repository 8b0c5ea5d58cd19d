"""The range test as a step of the search: when it is made, what it suggests, and where that stands."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from desat.cure.learning_rate import CODES, asks_for_range_test, range_test, rate_of
from desat.cure.proof import Run
from desat.cure.remedies.rate import RANGE_LOW, RANGE_WIDTH
from desat.cure.trial import Outcome, Plan
from desat.diagnose.engine import RULES
from desat.diagnose.finding import Diagnosis, Finding
from desat.record.rows import Step
from desat.watch.script import Script
from tests.records import write_record

STEPS = 40


def trial(folder: Path, rates: list[float], losses: list[float]) -> Run:
    rows = [Step(step, 0.1 * step, losses[step], rates[step], None) for step in range(STEPS)]
    write_record(folder / "record", rows).close()
    plan = Plan(Script("train.py", False), (), 0, STEPS, 10.0)
    outcome = Outcome(plan, folder / "record", folder / "output.txt", "stopped", 0, np.array(losses), 0.1)
    return Run(outcome, (), None)


RAMP = [RANGE_LOW * RANGE_WIDTH ** (step / (STEPS - 1)) for step in range(STEPS)]


def falling_until(best: float) -> list[float]:
    """The loss falls as long as the rate is below the best, and rises steeply beyond it."""
    return [
        2.3 - 0.3 * max(0.0, math.log10(min(rate, best)) + 5.0) + 8 * max(0.0, math.log10(rate / best)) for rate in RAMP
    ]


@pytest.mark.parametrize(("own", "best"), [(1.0, 1e-2), (1e-6, 1e-2), (0.5, 1e-3)])
def test_the_rate_of_the_test_is_told_as_a_factor_of_the_scripts(tmp_path: Path, own: float, best: float) -> None:
    test = trial(tmp_path / "test", RAMP, falling_until(best))
    baseline = trial(tmp_path / "baseline", [own] * STEPS, [2.3] * STEPS)
    found = rate_of(test, baseline)
    assert found is not None
    factor = float(found[0].removeprefix("optimizer=rate:"))
    assert 0.03 * best < factor * own < best  # a tenth of the best, which so few steps know within a factor of three


def test_a_rate_that_is_as_good_or_a_loss_that_never_falls_suggests_none(tmp_path: Path) -> None:
    good = trial(tmp_path / "own", [1e-3] * STEPS, [2.3] * STEPS)
    assert rate_of(trial(tmp_path / "near", RAMP, falling_until(1e-2)), good) is None
    assert rate_of(trial(tmp_path / "flat", RAMP, [2.3] * STEPS), good) is None
    assert rate_of(trial(tmp_path / "lost", RAMP, [math.nan] * STEPS), good) is None


def of(code: str, severity: Any) -> Diagnosis:
    finding = Finding(code, severity, None, (), None, 0, 1, "cause", "message")
    return Diagnosis("run", 100, 20, 0.0, (finding,))


def test_it_is_made_where_an_error_may_lie_in_the_rate() -> None:
    assert asks_for_range_test(of("update-too-small", "error"))
    assert not asks_for_range_test(of("update-too-small", "note"))
    assert not asks_for_range_test(of("dead-units", "error"))
    assert {rule.code for rule in RULES} >= CODES


def test_the_test_takes_the_steps_of_a_trial() -> None:
    assert range_test(40) == ("optimizer=range:40",)
