"""loss-diverging: the loss rises, above where it began or far above what it had reached."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.layer_updates import layer_updates
from desat.diagnose.learning import FALLING, SIGNIFICANT
from desat.diagnose.loss_course import Course, measure_course
from desat.diagnose.onset import RATE_JUMP, RateJump, rate_jump
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import LARGE_UPDATE

LOST_AGAIN = Threshold(
    "lost again",
    0.5,
    "share",
    "of what the loss had fallen, the part it has risen again, above which the training has come undone",
    "desat: half way back",
)
MULTIPLIED = Threshold(
    "multiplied loss",
    3.0,
    "ratio",
    "loss over its start that tells of divergence in the first steps already",
    "desat: healthy perceptrons on digits overshoot by a factor of two in their first steps",
)
JUMP = Threshold(
    "jump",
    0.5,
    "share of the rise",
    "part of the rise that came at one step, by which it is a jump and no slope",
    "desat: half of it",
)
WINDOW = 5
"""Losses on each side of a step whose medians tell whether it jumped there."""


@dataclass(frozen=True)
class _Rise:
    """A rise of the loss from `low` to `high`. lost: what it is of the fall before, 1 and more above the start."""

    low: float
    high: float
    lost: float
    since: int
    jumped_at: int | None


def examine_diverging(case: Case) -> list[Finding]:
    """At most one finding; it has no site, for the loss has none."""
    course = measure_course(case.record)
    if course is None or case.learning.state == "non-finite":
        return []
    rise = _rise(case, course)
    if rise is None:
        return []
    update = _update(case, rise)
    evidence = {"loss_low": rise.low, "loss_end": rise.high, "lost_again": rise.lost}
    if update is not None:
        evidence["update_ratio"] = update
    last = int(course.steps[-1])
    at = int(np.searchsorted(course.steps, rise.since))
    episode = Episode(rise.since, last, len(course.losses) - at, len(course.losses) - at, at == 0, True, None)
    cause, remedies = _cause(
        rise, update, rate_jump(case.record, rise.since - 1, rise.since + len(course.losses) // len(course.medians))
    )
    return [
        Finding(
            code="loss-diverging",
            severity=_severity(case, rise),
            site=None,
            sites=(),
            source=None,
            first_step=rise.since,
            last_step=last,
            cause=cause,
            message=(
                f"The loss has risen from {rise.low:.4g} to {rise.high:.4g}, {episode.since}; "
                "it should fall, or stay where it is once the network is done."
            ),
            evidence=evidence,
            remedies=remedies,
            confidence=episode.confidence((rise.lost - LOST_AGAIN.value) / LOST_AGAIN.value),
        )
    ]


def _rise(case: Case, course: Course) -> _Rise | None:
    start, late, best = float(case.learning.start), course.late, course.best
    if case.learning.state == "diverging":
        low = start
    elif case.learning.state == "unknown":
        # With few losses only a rise by a factor counts; it must last, for many overshoot in the first steps.
        if not course.medians[-1] >= MULTIPLIED.value * max(course.losses[0], 0.0) or course.losses[0] <= 0.0:
            return None
        low = float(course.losses[0])
    else:
        low = best
    grown = late - low
    significant = grown >= SIGNIFICANT.value * np.sqrt(2.0) * course.error
    if not significant or grown < FALLING.value * max(abs(low), abs(late)):
        return None
    fallen = max(start - best, 0.0)
    lost = (late - best) / fallen if fallen > 0.0 else np.inf
    if lost < LOST_AGAIN.value or _never_fell(case, course, low):
        return None
    return _Rise(low, late, float(min(lost, 1e3)), course.stays_above(low + 0.25 * grown), _jump(course, grown))


def _never_fell(case: Case, course: Course, low: float) -> bool:
    """Whether the low point is a mere dip: chance makes the best of many blocks lie some standard errors low."""
    if case.learning.state in ("diverging", "unknown"):
        return False
    fallen = case.learning.start - low
    return fallen < FALLING.value * abs(case.learning.start) or fallen < 2.0 * SIGNIFICANT.value * course.error


def _jump(course: Course, grown: float) -> int | None:
    """The step at which the loss jumped by half of the rise, up to the end: what comes back is no part of it."""
    losses = course.losses
    places = np.arange(WINDOW, len(losses) - WINDOW)
    if not len(places):
        return None
    jumps = [np.median(losses[place : place + WINDOW]) - np.median(losses[place - WINDOW : place]) for place in places]
    best = int(np.argmax(jumps))
    return int(course.steps[places[best]]) if jumps[best] >= JUMP.value * grown else None


def _update(case: Case, rise: _Rise) -> float | None:
    """The largest update ratio of any layer from the sample before the rise on."""
    updates = layer_updates(case.record)
    if not updates.sites:
        return None
    first = max(int(np.searchsorted(updates.steps, rise.since, side="right")) - 2, 0)
    values = updates.values[:, first:]
    values = values[np.isfinite(values)]
    return float(values.max()) if len(values) else None


def _severity(case: Case, rise: _Rise) -> Severity:
    if case.learning.state == "diverging" or (case.learning.harm and rise.lost >= LOST_AGAIN.value):
        return "error"
    return "note" if case.learning.harm is False else "warning"


def _cause(rise: _Rise, update: float | None, rate: RateJump | None) -> tuple[str, tuple[str, ...]]:
    when = f"it jumped at step {rise.jumped_at}" if rise.jumped_at is not None else "it rises step by step"
    if rate is not None:
        return f"it rises since step {rise.since}: {rate.words}", (
            "optimizer=hold",
            "optimizer=rate:0.1",
            "optimizer=adam",
        )
    if update is not None and update >= LARGE_UPDATE.value:
        return (
            f"{when}: the learning rate is too large, a step changes the weights by {update:.0%} of their size, "
            "0.1% is usual",
            ("optimizer=rate:0.1", "optimizer=hold", "optimizer=adam", "clipping=1.0"),
        )
    if rise.jumped_at is not None:
        return (
            f"{when}, where no step was seen to be too large: look at the batch, at what the script changes there, "
            "or at a step between the samples",
            ("optimizer=hold", "optimizer=rate:0.1", "clipping=1.0", "optimizer=adam"),
        )
    return (
        f"{when}, and not because the steps are too large: look at the sign of the loss and at the labels",
        ("optimizer=adam", "clipping=1.0"),
    )


LOSS_DIVERGING = Rule(
    code="loss-diverging",
    examine=examine_diverging,
    thresholds=(LOST_AGAIN, MULTIPLIED, JUMP, FALLING, SIGNIFICANT, RATE_JUMP),
    meaning="The loss rises: the training makes the network worse, or has undone what it had learned.",
    measured=(
        "The median loss at the end against the start and against the best block of the run, in units of its own "
        "noise; with the update ratios, and where it rose, for the cause."
    ),
    helps=(
        "A smaller learning rate or clipping where the steps are large; otherwise the sign of the loss, the labels, "
        "and what the script changes at that step."
    ),
)
