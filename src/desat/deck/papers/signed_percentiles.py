"""Percentiles of a sigmoid's inputs, with their sign, from two histograms of a record.

A record keeps histograms of magnitudes, by powers of two, which lack the sign. Those of a sigmoid's output have it: the
output is below a half where the input is negative, and its bins are intervals of the input. Both histograms together
are the margins of a table, input by magnitude and by output, whose most even filling iterative proportional fitting
finds (Deming and Stephan 1940). Within a cell of the table inputs are taken to spread evenly.
"""

import numpy as np
from numpy.typing import NDArray

from desat.record.histogram import BINS, LOWEST_EXPONENT
from desat.record.reader import Record
from desat.record.rows import Site

Array = NDArray[np.float64]

ROUNDS = 60
"""Of the fitting; it has converged to 1e-3 of a mass long before."""

_EXPONENTS = LOWEST_EXPONENT + np.arange(BINS + 1)
_MAGNITUDES = np.concatenate([[0.0], np.exp2(_EXPONENTS[1:])])
"""Edges of the bins of the input's magnitude."""

_FROM_OUTPUTS = np.append(-np.log(np.expm1(np.log(2.0) * -_EXPONENTS[_EXPONENTS < 0])), _MAGNITUDES[-1])
_FROM_OUTPUTS[0] = -_MAGNITUDES[-1]
"""Edges of the input that belong to the bins of the output: logit of 2**-47 up to 2**-1, which is 0, and its end."""


def signed_percentiles(record: Record, site: Site, shares: tuple[float, ...]) -> tuple[NDArray[np.int64], Array]:
    """Steps, and the inputs of a sigmoid below which these shares of them lie: shape (steps, shares).

    site: an nn.Sigmoid. The inputs of all units are pooled. Error: a part of a cell, whose ends are a power of two and
    a logit of one, so below 0.6 for inputs around 1.
    """
    steps, magnitudes = record.histograms(site, "input")
    _, outputs = record.histograms(site, "output")
    rows = [_percentiles(*pair, shares) for pair in zip(magnitudes, outputs, strict=True)]
    return steps, np.array(rows).reshape(len(rows), len(shares))


def _percentiles(magnitudes: Array, outputs: Array, shares: tuple[float, ...]) -> Array:
    edges = np.unique(np.concatenate([-_MAGNITUDES, _MAGNITUDES, _FROM_OUTPUTS]))
    middles, masses = (edges[1:] + edges[:-1]) / 2.0, np.diff(edges)
    by_magnitude = np.searchsorted(_MAGNITUDES, np.abs(middles)) - 1
    by_output = np.searchsorted(_FROM_OUTPUTS, middles) - 1
    margins = ((by_magnitude, magnitudes), (by_output, _joined(outputs)))
    for _ in range(ROUNDS):
        for cells, counts in margins:
            whole = np.bincount(cells, masses, minlength=len(counts))
            wanted = counts / max(counts.sum(), 1.0)
            masses = masses * np.divide(wanted, whole, out=np.zeros_like(whole), where=whole > 0.0)[cells]
    reached = np.concatenate([[0.0], np.cumsum(masses)])
    reached, first = np.unique(reached, return_index=True)
    # Of several edges at one share the last counts from below: nothing lies between them.
    last = np.append(first[1:] - 1, len(edges) - 1)
    return np.interp(np.multiply(shares, reached[-1]), reached, np.where(reached > 0.0, edges[first], edges[last]))


def _joined(outputs: Array) -> Array:
    """The bins up to [1/2, 1), to which an output that was rounded to 1 belongs too."""
    kept = outputs[: len(_FROM_OUTPUTS) - 1].copy()
    kept[-1] += outputs[len(kept) :].sum()
    return kept
