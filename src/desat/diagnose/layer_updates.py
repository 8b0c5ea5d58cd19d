"""How large each layer's steps are beside its weights, sample by sample, and how far they lead in all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.record.reader import Record
from desat.record.rows import Site

BORN_SMALL = 0.02
"""A weight that the first step makes from next to nothing, and not larger than this, was meant to start at zero.

Adam's first step is the learning rate itself, usually at most 1e-2; weights that are drawn for their fan-in are larger,
or the step is too large by any measure.
"""
BORN_RATIO = 0.9
"""Update ratio of the first step at which a weight had been next to nothing before."""


@dataclass(frozen=True)
class LayerUpdates:
    """Update ratios, rms(update)/rms(weight after it), by layer and sampled step; nan where not measured.

    sites: of each layer the parameter that stands for it, in order of execution. values: shape (layers, samples).
    steps: shape (samples,).
    """

    sites: tuple[Site, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def paths(self, number: int) -> NDArray[np.float64]:
        """How far each layer has come: its ratios summed over the `number` steps of the run, shape (layers,).

        Between samples the ratio is interpolated. A path of 1 is as long as the weights are large; straight it is at
        best as far, so that layers with a short path are where they began.
        """
        every = np.arange(number)
        lengths = []
        for ratios in self.values:
            known = np.isfinite(ratios)
            lengths.append(np.interp(every, self.steps[known], ratios[known]).sum() if known.any() else np.nan)
        return np.array(lengths)


def layer_updates(record: Record) -> LayerUpdates:
    """Of each layer's trained weights the fastest counts at each sampled step.

    Left out are parameters called `bias`, and those that started at zero (see BORN_SMALL): at first their ratio means
    nothing.
    """
    update, size = record.grid("parameter", "update_rms"), record.grid("parameter", "rms")
    trained = np.isfinite(record.grid("parameter", "gradient_rms").values) & np.isfinite(update.values)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(trained & (size.values > 0.0), update.values / size.values, np.nan)
    rows: dict[int, list[int]] = {}
    for index, site in enumerate(update.sites):
        known = np.flatnonzero(np.isfinite(ratios[index]))
        is_bias = site.is_bias
        if len(known) and not is_bias and not _born_small(ratios[index, known[0]], size.values[index, known[0]]):
            rows.setdefault(site.position, []).append(index)
    sites, values = [], np.full((len(rows), len(update.steps)), np.nan)
    for place, position in enumerate(sorted(rows)):
        layer = ratios[rows[position]]
        values[place] = np.where(np.isfinite(layer), layer, -np.inf).max(axis=0)
        sites.append(update.sites[rows[position][int(np.argmax(np.nanmax(layer, axis=1)))]])
    return LayerUpdates(tuple(sites), update.steps, np.where(np.isfinite(values), values, np.nan))


def learning_rate(record: Record) -> tuple[float, float] | None:
    """The first and the last learning rate of the run; None where it is not known."""
    rates = record.steps()["learning_rate"]
    known = rates[np.isfinite(rates) & (rates > 0.0)]
    return (float(known[0]), float(known[-1])) if len(known) else None


def learning_rate_at(record: Record, step: int) -> float | None:
    """The learning rate at a step, else the last one known before it or the first one; None where none is known."""
    columns = record.steps()
    known = np.flatnonzero(np.isfinite(columns["learning_rate"]) & (columns["learning_rate"] > 0.0))
    if not len(known):
        return None
    place = int(np.searchsorted(columns["step"][known], step, side="right")) - 1
    return float(columns["learning_rate"][known[max(place, 0)]])


def _born_small(ratio: float, size: float) -> bool:
    return bool(ratio >= BORN_RATIO and size < BORN_SMALL)
