"""What curves of a loss share: points that a screen can show, their mean, and an axis on which they can be read."""

import math

import numpy as np
from numpy.typing import NDArray

from desat.show.plot import Axis

MOST_POINTS = 4000
"""Points of a curve; a longer series is thinned evenly, which no screen shows."""

SMOOTHED_SHARE = 0.05
"""Share of a curve's points over which it is averaged."""

LOG_SPREAD = 100.0
"""Largest over smallest loss from which on the axis is logarithmic: below a hundredth of it nothing can be read."""

MARGIN = 0.05
"""Share of the axis that is left free at either end."""

MOST_DECADES = 8
"""Decades of a logarithmic axis of which each has a tick."""


def thinned(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values without those that are nan, at most MOST_POINTS of them."""
    known = ~np.isnan(values)
    steps, values = steps[known], values[known]
    stride = max(1, -(-len(steps) // MOST_POINTS))
    return steps[::stride], values[::stride]


def smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The centred mean over a share of the points, of the finite ones among them; nan stays nan.

    At the ends the window is cut, so that no point is made up.
    """
    if not len(losses):
        return losses
    window = np.ones(1 + 2 * (int(SMOOTHED_SHARE * len(losses)) // 2))
    known = np.isfinite(losses)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.convolve(np.where(known, losses, 0.0), window, "same")
        means = sums / np.maximum(np.convolve(known, window, "same"), 1.0)
    return np.where(known & np.isfinite(means), means, np.nan)


def loss_axis(low: float, high: float) -> Axis:
    """The axis that spans what lies between; logarithmic where it spans more than LOG_SPREAD."""
    if low > 0.0 and high / LOG_SPREAD > low:
        bottom, top = math.log10(low), math.log10(high)
        margin = MARGIN * (top - bottom)
        ticks = {"dtick": max(1, round((top - bottom) / MOST_DECADES)), "exponentformat": "power"}
        return {"type": "log", "range": [bottom - margin, top + margin], **ticks}
    margin = MARGIN * (high / 2 - low / 2) * 2 or MARGIN * abs(high) or 1.0
    return {"range": [low - margin, high + margin]}
