"""Signal propagation: how a network hands on its signal and its gradient, and how deep it could be and still train."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.link_budget import LinkBudget, measure_link_budget, share_of
from desat.record.gains import backward_gains, forward_gains
from desat.record.reader import Record

TRAINABLE_DEPTHS = 6.0
"""A network trains up to about six depth scales (Schoenholz et al. 2017, "Deep Information Propagation", section 5)."""


@dataclass(frozen=True)
class LayerGain:
    """Of one site, medians over the samples in dB; None where it is not known."""

    site: str
    operation: str
    forward_db: float | None
    backward_db: float | None


@dataclass(frozen=True)
class Propagation:
    """A network's layers in order of execution, and its depth.

    layers_with_weights: how many layers multiply by weights. trainable_depth: how many such layers the gradient
    survives at the gain per layer that was measured; infinite at a gain of one, None for fewer than three layers.
    """

    layers: tuple[LayerGain, ...]
    layers_with_weights: int
    trainable_depth: float | None

    @property
    def is_too_deep(self) -> bool:
        """Whether the network is deeper than its gain per layer bears."""
        return self.trainable_depth is not None and self.layers_with_weights > self.trainable_depth


def measure_propagation(record: Record) -> Propagation:
    """The gains of each site, from all samples, and the depth that can be trained."""
    forward, backward = forward_gains(record), backward_gains(record)
    gains_forward = {site.name: _median(row) for site, row in zip(forward.sites, forward.values, strict=True)}
    gains_backward = {site.name: _median(row) for site, row in zip(backward.sites, backward.values, strict=True)}
    layers = tuple(
        LayerGain(site.name, site.operation, gains_forward.get(site.name), gains_backward.get(site.name))
        for site in record.grid("output", "rms").sites
        if site.name in gains_forward or site.name in gains_backward
    )
    weights = sum(share_of(site) == "weight" for site in record.sites("module"))
    return Propagation(layers, weights, trainable_depth(measure_link_budget(record), weights))


def trainable_depth(budget: LinkBudget | None, layers: int) -> float | None:
    """How many layers the gradient survives: six times the depth scale xi = 1 / abs(ln(chi)).

    chi is the factor by which the mean square of the gradient changes from layer to layer: the total of the link
    budget, pooling and reshaping left out, over the layers that it spans (Schoenholz et al. 2017, section 4, with the
    measured chi in place of that of an infinitely wide network).
    """
    if budget is None or layers < 3:
        return None
    total = budget.total_db - budget.by_share["other"]
    logarithm = total / 10.0 * math.log(10.0) / (layers - 1)
    return TRAINABLE_DEPTHS / abs(logarithm) if logarithm else math.inf


def _median(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None
