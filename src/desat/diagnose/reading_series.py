"""Readings of one site as series that share their steps."""

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode
from desat.record.reader import Record
from desat.record.rows import Site

Series = dict[str, NDArray[np.float64]]
"""By the name of a reading its values; under `step` the sampled steps at which all of them were measured."""


def together(record: Record, site: Site, *names: str) -> Series | None:
    """The readings `names` of a site, shape (samples,) each, at the steps that all of them have; None without any."""
    readings = record.readings(site)
    if any(name not in readings for name in names):
        return None
    steps = readings[names[0]]["step"]
    for name in names[1:]:
        steps = np.intersect1d(steps, readings[name]["step"])
    series = {name: readings[name]["value"][np.isin(readings[name]["step"], steps)] for name in names}
    return {"step": steps, **series} if len(steps) else None


def typical(steps: NDArray[np.float64], values: NDArray[np.float64], episode: Episode) -> float | None:
    """The median of the finite values of an episode; None where there is none."""
    during = values[(steps >= episode.first_step) & (steps <= episode.last_step) & np.isfinite(values)]
    return float(np.median(during)) if len(during) else None
