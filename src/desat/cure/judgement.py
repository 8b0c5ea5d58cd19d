"""Judging a remedy: paired differences over seeds, their mean, and a confidence interval of it. NumPy only.

A pair is a trial without the remedy and one with it, of the same seed: so both see the same batches, and what differs
between seeds cancels out. A positive effect is a good one, in the unit of what is measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Measure = Literal["loss", "metric"]

CONFIDENCE = 0.95
"""Of the interval: customary."""

WINDOW = 0.25
"""Share of the steps that both trials have done, the last ones, over which the loss is averaged."""

LOST_STEPS = 3
"""Steps without a loss, at the end of a trial that had one, which tell of a loss that became nan (as in diagnose)."""

SMALLEST_EFFECT: dict[Measure, float] = {"loss": 0.02, "metric": 0.01}
"""Share of the value without the remedy; below it an effect is not worth a change of the code, however sure it is."""

SMALLEST_EFFECT_OF_ONE: dict[Measure, float] = {"loss": 0.1, "metric": 0.05}
"""The same, of one pair alone: with a single seed no interval tells an effect from chance."""


@dataclass(frozen=True)
class Pair:
    """Losses by step (nan where there was none), and the metric's values as they were reported, without and with."""

    losses: tuple[NDArray[np.float64], NDArray[np.float64]]
    metrics: tuple[Sequence[float], Sequence[float]] = ((), ())


@dataclass(frozen=True)
class Judgement:
    """effect: mean over the seeds, positive is better. without, value: the measure's means without and with the remedy.

    interval: of the effect, None where there is one seed or it has no bounds. reason: why it was not accepted, empty if
    it was.
    """

    measure: Measure
    effect: float
    without: float
    value: float
    interval: tuple[float, float] | None
    reason: str

    @property
    def accepted(self) -> bool:
        return not self.reason


def judge(
    pairs: Sequence[Pair],
    *,
    minimize_metric: bool = False,
    comparable: bool = True,
    new_errors: Sequence[str] = (),
) -> Judgement:
    """Judge a remedy by pairs of trials, one a seed: on the user's metric where every trial has one, else on the loss.

    comparable: whether the loss means the same with the remedy; if not, it counts for nothing. new_errors: codes of
    errors that were found with the remedy and not without.
    """
    measure: Measure = "metric" if all(first and second for first, second in (p.metrics for p in pairs)) else "loss"
    if measure == "metric":
        values = [metric_at_equal_times(*pair.metrics) for pair in pairs]
        better = -1.0 if minimize_metric else 1.0
        saved = lost = False
    else:
        values = [loss_at_equal_steps(*pair.losses) for pair in pairs]
        better = -1.0
        saved = all(has_diverged(first) and not has_diverged(second) for first, second in (p.losses for p in pairs))
        lost = any(has_diverged(second) and not has_diverged(first) for first, second in (p.losses for p in pairs))
    without, value = (float(np.mean(column)) for column in zip(*values, strict=True))
    differences = np.array([better * _difference(second, first) for first, second in values])
    effect, interval = mean_and_interval(differences)
    if measure == "loss" and not comparable:
        reason = "not comparable: it changes what the loss means, and no metric was reported within these steps"
    elif new_errors:
        reason = f"a new error: {', '.join(new_errors)}"
    elif lost:
        reason = "the loss diverged with it"
    elif saved:
        reason = ""
    else:
        reason = _too_small(measure, effect, interval, abs(without))
    return Judgement(measure, effect, without, value, interval, reason)


def loss_at_equal_steps(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Two trials' losses: each the mean over the last quarter of the steps that both have done.

    A trial that diverged counts with the largest finite loss it had, and as infinite if it had none.
    """
    shared = min(len(first), len(second))
    return _late_loss(first, shared), _late_loss(second, shared)


def late_loss(losses: NDArray[np.float64]) -> float:
    """The mean over the last quarter of all its steps; infinite if it has diverged."""
    return math.inf if has_diverged(losses) else _late_loss(losses, len(losses))


def has_diverged(losses: NDArray[np.float64]) -> bool:
    """Whether a trial's loss ended as no finite number: infinite in its last quarter, gone at its end, or never
    there.
    """
    if not np.isfinite(losses).any():
        return True
    tail = losses[-LOST_STEPS:]
    return bool(np.isinf(losses[-_window(len(losses)) :]).any() or (len(tail) == LOST_STEPS and np.isnan(tail).all()))


def metric_at_equal_times(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Two trials' metrics, at the last time that both have reported one."""
    shared = min(len(first), len(second))
    return float(first[shared - 1]), float(second[shared - 1])


def mean_and_interval(differences: NDArray[np.float64]) -> tuple[float, tuple[float, float] | None]:
    """The mean of paired differences, and Student's interval of it (Student 1908); None for one, or infinite ones.

    The interval is mean -+ t s / root(n), where s is the standard deviation with n - 1 degrees of freedom.
    """
    mean = float(np.mean(differences))
    number = len(differences)
    if number < 2 or not np.isfinite(differences).all():
        return mean, None
    half = t_quantile(0.5 + CONFIDENCE / 2, number - 1) * float(np.std(differences, ddof=1)) / math.sqrt(number)
    return mean, (mean - half, mean + half)


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution for a probability of one half or more, found by bisection."""
    if not 0.5 <= probability < 1.0:
        raise ValueError(f"the probability lies between 0.5 and 1; it was {probability}")
    low, high = 0.0, 1.0
    while t_distribution(high, degrees) < probability:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def t_distribution(t: float, degrees: int) -> float:
    """The probability of at most t, for a whole number of degrees of freedom, from 1.

    A finite sum: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom count from 1; they were {degrees}")
    angle = math.atan2(abs(t), math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + math.copysign(inside / 2, t)


def _too_small(measure: Measure, effect: float, interval: tuple[float, float] | None, scale: float) -> str:
    """Why an effect is none; empty if it is one."""
    if math.isnan(effect):
        return f"no {measure} was recorded"
    if effect <= 0:
        return "no better without it" if effect == 0 else "worse with it"
    if interval is not None and interval[0] <= 0:
        return "not sure: the interval includes no effect"
    smallest = (SMALLEST_EFFECT_OF_ONE if interval is None else SMALLEST_EFFECT)[measure]
    if effect < smallest * scale:
        return f"too small: less than {smallest:.0%} of the {measure} without it"
    return ""


def _difference(second: float, first: float) -> float:
    """Not a number where both are infinite, and no difference can be told."""
    return second - first if math.isfinite(first) or math.isfinite(second) else math.nan


def _late_loss(losses: NDArray[np.float64], shared: int) -> float:
    finite = losses[np.isfinite(losses)]
    if not len(finite):
        return math.inf
    if has_diverged(losses):
        return float(finite.max())
    late = losses[:shared][-_window(shared) :]
    late = late[np.isfinite(late)]
    return float(late.mean()) if len(late) else float(finite.max())


def _window(steps: int) -> int:
    return max(1, math.ceil(WINDOW * steps))
