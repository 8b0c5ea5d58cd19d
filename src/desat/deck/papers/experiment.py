"""What an experiment of a paper is, and what is said of numbers that were measured with several seeds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from desat.cure.judgement import mean_and_interval
from desat.deck.slide import Figure, Reading, Settings, Statement

SEEDS = {True: 1, False: 3}
"""Trainings of each kind, fast or not: the seed of the deck and those after it."""

FEWEST_OF_AN_INTERVAL = 3
"""Of two values Student's interval is 12.7 times as wide as their standard error and tells nothing."""


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: one statement for each thing that the paper claims, and a picture."""

    statements: tuple[Statement, ...]
    figure: Figure


@dataclass(frozen=True)
class Paper:
    """An experiment. name: who and when, as in a text; measure: does it and says what came out."""

    name: str
    reading: Reading
    measure: Callable[[Settings], Outcome]


@dataclass(frozen=True)
class Estimate:
    """A number measured once a seed: its mean and Student's 95 % interval, None for fewer than three seeds."""

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None

    @property
    def is_positive(self) -> bool:
        """Whether it is above zero with every seed and, where there is an interval, so is all of that."""
        return min(self.values) > 0.0 and (self.interval is None or self.interval[0] > 0.0)

    def __format__(self, form: str) -> str:
        """The mean, and its interval in brackets where there is one."""
        if self.interval is None:
            return format(self.mean, form)
        low, high = self.interval
        return f"{self.mean:{form}} ({low:{form}} to {high:{form}})"


def estimate(values: Iterable[float]) -> Estimate:
    """Of one value a seed, at least one; they have to be finite."""
    array = np.array(tuple(values), dtype=np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected finite numbers, one a seed, got {array}")
    mean, interval = mean_and_interval(array)
    return Estimate(tuple(array.tolist()), mean, interval if len(array) >= FEWEST_OF_AN_INTERVAL else None)


def seeds(settings: Settings) -> range:
    """The seeds of an experiment."""
    return range(settings.seed, settings.seed + SEEDS[settings.fast])


def named(**estimates: Estimate) -> dict[str, float]:
    """Estimates as values of a statement: their means, the ends of their intervals, and what each seed gave."""
    values: dict[str, float] = {}
    for name, one in estimates.items():
        values[name] = one.mean
        if one.interval is not None:
            values[f"{name}_low"], values[f"{name}_high"] = one.interval
        values |= {f"{name}_{place}": value for place, value in enumerate(one.values)}
    return values


def smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """The mean over the last `window` steps at each step, over fewer at the beginning."""
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)
