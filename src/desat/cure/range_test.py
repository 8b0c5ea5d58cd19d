"""The range test: a learning rate read off a run in which the rate rises exponentially.

Source: Smith 2017, Cyclical learning rates for training neural networks, section 3.3.
"""

import math
from collections.abc import Sequence

SMOOTHING = 0.8
"""Weight of what came before in the running mean of the loss: about the last five steps, a factor of two in the rate
on a ramp of 100 steps over six orders of magnitude."""

DIVERGED = 4.0
"""The ramp is read up to where the smoothed loss is so many times its lowest value so far, as in fastai's test; a loss
below zero knows no such place."""

LEAST_FALL = 0.01
"""Share of its first value by which the smoothed loss has to fall; one that falls less has learned nothing."""

SAFETY = 0.1
"""The suggestion's share of the rate at which the smoothed loss is lowest.

At the lowest point the loss is about to rise: the rate there is already too high for a long run. A tenth of it is in
the stretch where the loss falls. Rejected: the rate of steepest descent, which is a difference of noisy losses and
differs by orders of magnitude from one seed to the next where a ramp has few steps.
"""


def suggested_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """A learning rate from the rates of a ramp and the losses at them, in the order of the steps; rates above 0.

    The loss at a step is that before its update. None where no rate lowered the loss. Raises ValueError if there are
    not as many losses as rates.
    """
    if len(rates) != len(losses):
        raise ValueError(f"{len(rates)} rates and {len(losses)} losses: expected one loss for each rate")
    smoothed = smoothed_losses(losses)
    if not smoothed:
        return None
    first, lowest = smoothed[0], 0
    for place, loss in enumerate(smoothed):
        if loss < smoothed[lowest]:
            lowest = place
        if 0 < DIVERGED * smoothed[lowest] < loss:
            break
    if first - smoothed[lowest] < LEAST_FALL * abs(first):
        return None
    return rates[lowest] * SAFETY


def smoothed_losses(losses: Sequence[float]) -> list[float]:
    """The running mean of losses, each with its weight in full from the first on; it ends before one not finite."""
    mean, weight = 0.0, 0.0
    smoothed: list[float] = []
    for loss in losses:
        if not math.isfinite(loss):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append(mean / weight)
    return smoothed
