"""loss-oscillating: the loss swings up and down, far beyond the noise of its batches, instead of falling."""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.finding import Finding, Severity
from desat.diagnose.layer_updates import layer_updates
from desat.diagnose.learning import FALLING, SIGNIFICANT
from desat.diagnose.loss_course import Course, measure_course
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold

SWING = Threshold(
    "swing",
    0.1,
    "share of the loss",
    "rise of the loss from one turning point to the next that is a swing",
    "desat; AUTOTRAINER (Zhang et al., ICSE 2021) takes 0.03 of accuracy, for a loss there is no such absolute",
)
SWINGING = Threshold(
    "swinging share",
    0.2,
    "share of blocks",
    "upward swings over blocks of steps above which the loss oscillates",
    "AUTOTRAINER (same place): swings in 20 % of the epochs",
)
ZIGZAG = Threshold(
    "zigzag",
    -0.5,
    "correlation",
    "of successive losses, trend removed, below which the loss jumps to and fro from step to step",
    "gradient descent above 2 / sharpness flips its sign each step (Cohen et al. 2021, section 2); noise has 0",
)
STAYS_ABOVE = Threshold(
    "stays above",
    0.25,
    "share of the loss",
    "by which the loss stays above its best block, so that the swings do harm",
    "desat: five standard errors of a block's median besides",
)
FAST = 1e-2
"""Update ratio, ten times the customary, from which on the learning rate is suspected."""
NEGLIGIBLE = 0.01
"""Share of the first loss that is too small to swing: what is left of a loss that has been learned."""
ENOUGH_BLOCKS = 10
TREND = 10
"""Losses whose running median is the trend under a zigzag: an even number, so that it lies between high and low."""


@dataclass(frozen=True)
class _Oscillation:
    """kind: `swings` over blocks or `zigzag` from step to step. height: median height over the loss's level."""

    kind: str
    share: float
    height: float
    correlation: float
    first_step: int


def examine_oscillating(case: Case) -> list[Finding]:
    """At most one finding; it has no site, for the loss has none."""
    course = measure_course(case.record)
    if course is None or len(course.medians) < ENOUGH_BLOCKS or case.learning.state == "non-finite":
        return []
    fine = measure_course(case.record, len(course.losses)) or course
    found = _swings(course) or _swings(fine) or _zigzag(course)
    if found is None:
        return []
    values = layer_updates(case.record).values
    update = float(np.nanmax(np.nanmedian(values, axis=1))) if np.isfinite(values).any() else None
    evidence = {
        "swinging_share": found.share, "swing_height": found.height, "correlation": found.correlation,
        "loss_best": course.best, "loss_end": course.late,
    }  # fmt: skip
    if update is not None:
        evidence["update_ratio"] = update
    how = "from step to step" if found.kind == "zigzag" else "over blocks of steps"
    return [
        Finding(
            code="loss-oscillating",
            severity=_severity(case, course, found),
            site=None,
            sites=(),
            source=None,
            first_step=found.first_step,
            last_step=int(course.steps[-1]),
            cause=_cause(update),
            message=(
                f"The loss swings up and down {how}, by {found.height:.0%} of its size, far beyond the noise of its "
                f"batches; it had reached {course.best:.4g} and is at {course.late:.4g}. It should fall steadily."
            ),
            evidence=evidence,
            remedies=("optimizer=rate:0.1", "optimizer=adam", "clipping=1.0", "normalization=layer"),
            confidence=_confidence(found, len(course.medians)),
        )
    ]


def _swings(course: Course) -> _Oscillation | None:
    """Upward swings of the block medians, each beyond the noise and beyond a share of the level it starts from."""
    least = max(np.sqrt(2.0) * SIGNIFICANT.value * course.error, NEGLIGIBLE * abs(float(course.medians[0])))
    turns = turning_points(course.medians, least, SWING.value)
    rises = [(low, high) for low, high in itertools.pairwise(turns) if course.medians[high] > course.medians[low]]
    share = len(rises) / len(course.medians)
    if share < SWINGING.value / 2.0 or len(rises) < 3:
        return None
    heights = [course.medians[high] - course.medians[low] for low, high in rises]
    level = abs(float(np.median(course.medians)))
    # A swing takes at least two blocks, one up and one down, and both belong to it.
    return _Oscillation(
        "swings",
        2.0 * share,
        float(np.median(heights)) / level if level > 0.0 else np.inf,
        _correlation(course.losses),
        int(course.begins[rises[0][0]]),
    )


def turning_points(series: NDArray[np.float64], least: float, share: float) -> list[int]:
    """Indices of the alternating lows and highs between which the series moves by `least` and by `share` of its level.

    The level is the larger magnitude of the two. The first and the last point count as turning points.
    """
    turns, extreme, direction = [0], 0, 0
    for index in range(1, len(series)):
        if direction * (series[index] - series[extreme]) >= 0.0 and direction:
            extreme = index
            continue
        move = series[index] - series[extreme]
        if abs(move) >= max(least, share * max(abs(series[index]), abs(series[extreme]))) and move != 0.0:
            if direction:
                turns.append(extreme)
            direction, extreme = (1 if move > 0.0 else -1), index
    return [*turns, extreme] if extreme != turns[-1] else turns


def _zigzag(course: Course) -> _Oscillation | None:
    correlation = _correlation(course.losses)
    residue = _residue(course.losses)
    level = abs(float(np.median(course.losses)))
    height = 2.0 * float(np.median(np.abs(residue))) / level if level > 0.0 else 0.0
    if correlation > ZIGZAG.value or height < SWING.value:
        return None
    return _Oscillation("zigzag", 1.0, height, correlation, int(course.steps[0]))


def _residue(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    windows = np.lib.stride_tricks.sliding_window_view(losses, TREND)
    return losses[TREND // 2 : len(losses) - TREND // 2 + 1] - np.median(windows, axis=1)


def _correlation(losses: NDArray[np.float64]) -> float:
    """Of successive residues, by their signs alone: losses have outliers."""
    signs = np.sign(_residue(losses))
    return float(np.mean(signs[1:] * signs[:-1])) if len(signs) > 1 else 0.0


def _severity(case: Case, course: Course, found: _Oscillation) -> Severity:
    """An error with harm: the loss no longer falls, or stays above what it had reached already."""
    if case.learning.harm or (found.kind == "swings" and _only_swings(course, found)):
        return "error"
    above = course.late - course.best
    stays = above >= STAYS_ABOVE.value * abs(course.best) and above >= 5.0 * course.error
    if case.learning.harm is None and stays and case.learning.state in ("settled", "slow"):
        return "error"
    return "warning" if case.learning.harm is None else "note"


def _only_swings(course: Course, found: _Oscillation) -> bool:
    """Whether the loss does nothing but swing: a comparison of its ends then depends on where in a swing it ends."""
    second, last = (part.mean() for part in np.array_split(course.medians, 4)[1::2])
    large = np.abs(np.median(course.medians)) >= 0.1 * np.abs(course.medians).max()
    return bool(found.share >= 2.0 * SWINGING.value and large and last >= (1.0 - FALLING.value) * second)


def _cause(update: float | None) -> str:
    if update is not None and update >= FAST:
        return (
            f"the learning rate is too large: a step changes the weights by {update:.0%} of their size, 0.1% is usual"
        )
    return "not large steps: look at the order of the data (is it shuffled?) and at the size of the batches"


def _confidence(found: _Oscillation, blocks: int) -> float:
    """Laplace's rule of succession over the blocks, less the nearer the share is to its threshold."""
    margin = float(np.clip((found.share - SWINGING.value) / SWINGING.value, 0.0, 1.0))
    return (blocks + 1.0) / (blocks + 2.0) * (0.5 + 0.5 * margin)


LOSS_OSCILLATING = Rule(
    code="loss-oscillating",
    examine=examine_oscillating,
    thresholds=(SWING, SWINGING, ZIGZAG, STAYS_ABOVE, FALLING, SIGNIFICANT),
    meaning="The loss swings up and down instead of falling: each step overshoots the valley it steps into.",
    measured=(
        "Upward swings of the loss's medians over blocks of steps, beyond the batch noise and beyond a tenth of the "
        "loss; or, from step to step, how successive losses are correlated. An error only where the loss no longer "
        "falls or stays above what it had reached."
    ),
    helps="A smaller learning rate, a schedule that lowers it, larger or shuffled batches.",
)
