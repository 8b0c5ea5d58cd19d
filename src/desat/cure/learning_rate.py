"""The learning rate of a range test: a trial in which the rate rises tells the factor that the script's is off by."""

import math

from desat.cure.candidates import Candidate
from desat.cure.proof import Run
from desat.cure.range_test import suggested_rate
from desat.diagnose.finding import Diagnosis
from desat.errors import DesatError
from desat.record.reader import Record

CODES = frozenset(
    {
        "update-too-small",
        "update-too-large",
        "loss-oscillating",
        "loss-diverging",
        "loss-plateau",
        "sharp-curvature",
        "degenerate-optimizer",
    }
)
"""Findings that a wrong learning rate can be the cause of."""

NEAR = 2.0
"""Factor within which the script's rate is as good as that of the test, which knows it no better."""


def asks_for_range_test(diagnosis: Diagnosis) -> bool:
    """Whether an error may lie in the learning rate."""
    return any(finding.code in CODES and finding.severity == "error" for finding in diagnosis.findings)


def range_test(steps: int) -> Candidate:
    """The remedy of the trial that is the test, over so many steps. It is no candidate: its last rates are ruinous."""
    return (f"optimizer=range:{steps}",)


def rate_of(test: Run, baseline: Run) -> Candidate | None:
    """The script's rate times a factor, by what the test shows; None where it shows no better rate."""
    tested, own = (_rates(run) for run in (test, baseline))
    losses = [float(loss) for loss in test.outcome.losses]
    known = [
        (rate, loss) for rate, loss in zip(tested, losses, strict=False) if math.isfinite(rate) and not math.isnan(loss)
    ]
    first = next((rate for rate in own if math.isfinite(rate) and rate > 0), None)
    found = suggested_rate(*map(list, zip(*known, strict=True))) if known else None
    if first is None or found is None:
        return None
    factor = found / first
    return None if 1 / NEAR < factor < NEAR else (f"optimizer=rate:{factor:.2g}",)


def _rates(run: Run) -> list[float]:
    try:
        with Record(run.outcome.directory) as record:
            return [float(rate) for rate in record.steps()["learning_rate"]]
    except DesatError:
        return []
