"""The engine: all rules over one record, consequences folded under their cause, the gravest first."""

import numpy as np

from desat.diagnose.finding import Diagnosis
from desat.diagnose.folding import fold, order
from desat.diagnose.learning import judge_learning
from desat.diagnose.rule import Case
from desat.diagnose.rules import RULES
from desat.diagnose.settings import Settings
from desat.diagnose.threshold import limited
from desat.errors import DesatError
from desat.record.reader import Record

NO_SETTINGS = Settings()


def diagnose(record: Record, settings: Settings = NO_SETTINGS) -> Diagnosis:
    """What a record says. Few samples lower the confidence of findings; they are no fault.

    Raises DesatError for a record in which nothing was measured.
    """
    if not record.sites():
        raise DesatError(
            f"nothing was measured in run {record.name}: the script never called a torch.nn.Module; "
            "desat needs one that is called in at least one training step"
        )
    with limited(settings.limits):
        case = Case(record, judge_learning(record))
        findings = fold([finding for rule in RULES for finding in rule.examine(case)])
    steps = record.steps()
    return Diagnosis(
        run=record.name,
        steps=len(steps["step"]),
        sampled_steps=int((~np.isnan(steps["watching"])).sum()),
        overhead=_overhead(record),
        findings=order(
            [finding for finding in findings if not settings.silences(finding)], codes=[rule.code for rule in RULES]
        ),
    )


def _overhead(record: Record) -> float:
    try:
        overhead = float(record.information.get("overhead", 0.0))
    except (TypeError, ValueError):
        return 0.0
    return overhead if np.isfinite(overhead) else 0.0
