"""Gains: how much each site strengthens or weakens what passes through it, forward and backward, in decibels.

The forward gain of a nonlinearity is rms(output) / rms(input); of any other module, whose input is not recorded, it is
rms(output) / rms(output of the site before it in the order of execution), or / rms(input batch) for the first one. The
backward gain of every site is rms(gradient at the output of the site before it) / rms(gradient at its own output): in a
chain, rms(gradient of its input) / rms(gradient of its output). Gains are 20 log10 of these ratios.

In a chain the gains telescope: those from one site to another add up to the whole change between them, as in
desat.diagnose.link_budget. Where a network branches, the site before in the order of execution need not be the one that
feeds a module: the gain of a projection skip, say, is then against the end of the branch that ran before it. The sum
over all sites still holds, but a single gain of such a site, and of the one after it, says little. What is computed
between two modules without being a site, such as `x + y` or a reshaping, is booked to the one that comes after. Sites
that run several times in a step have one gain, of the rms over all calls.
"""

import numpy as np
from numpy.typing import NDArray

from desat.record.reader import Grid, Record
from desat.record.rows import Site

RMS_FLOOR = 2.0**-149
"""The rms that a tensor of zeros counts as, so that decibels stay finite: float32's smallest number, -897 dB."""

LOSS_SUFFIX = "Loss"
"""Ends the names of the loss modules, which make one number of a batch: they have no gain."""

_CHAIN = ("module", "nonlinearity")
_INPUT = "input"


def forward_gains(record: Record) -> Grid:
    """Gain in dB from input to output of each module and nonlinearity at each sampled step; see above.

    nan where it is not known: not measured, nothing before it, or values that were not finite.
    """
    outputs, inputs = _levels(record, "output"), _levels(record, "input")
    kept = _one_input_batch(outputs.sites)
    levels = outputs.values[kept]
    gains = _difference(levels, _before(levels))
    sites = tuple(site for site, is_kept in zip(outputs.sites, kept, strict=True) if is_kept)
    own = {site.id: level for site, level in zip(inputs.sites, _at_steps(inputs, outputs.steps), strict=True)}
    for place, site in enumerate(sites):
        if site.kind == "nonlinearity":
            gains[place] = _difference(levels[place], own.get(site.id, np.full(levels.shape[1], np.nan)))
    return _chain(Grid(sites, outputs.steps, gains))


def backward_gains(record: Record) -> Grid:
    """Gain in dB of the gradient from the output of each module and nonlinearity to that before it; see above.

    nan where it is not known: not measured, nothing before it, a gradient that was not finite, or none at all behind
    the last site that the loss depends on.
    """
    gradients = _chain(_levels(record, "gradient"))
    levels = gradients.values.copy()
    floor = 20.0 * np.log10(RMS_FLOOR)
    reached = np.logical_or.accumulate((levels > floor)[::-1], axis=0)[::-1]
    levels[~reached] = np.nan
    return Grid(gradients.sites, gradients.steps, _difference(_before(levels), levels))


def _levels(record: Record, quantity: str) -> Grid:
    """The rms in dB; nan where it was not measured, infinite where a value was not finite."""
    rms, nonfinite = record.grid(quantity, "rms"), record.grid(quantity, "nonfinite")
    levels = 20.0 * np.log10(np.maximum(np.where(nonfinite.values > 0.0, np.inf, rms.values), RMS_FLOOR))
    kept = [_is_kept(site) for site in rms.sites]
    return Grid(tuple(site for site in rms.sites if _is_kept(site)), rms.steps, levels[kept])


def _is_kept(site: Site) -> bool:
    return site.kind == _INPUT or (site.kind in _CHAIN and not site.operation.endswith(LOSS_SUFFIX))


def _one_input_batch(sites: tuple[Site, ...]) -> NDArray[np.bool_]:
    """All sites but further inputs of a network of several: the first stands for the batch."""
    kinds = [site.kind for site in sites]
    return np.array(
        [kind != _INPUT or before != _INPUT for kind, before in zip(kinds, ["", *kinds], strict=False)], bool
    )


def _before(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each site and step the level of the nearest site before it that was measured at that step."""
    rows = np.arange(1, len(levels) + 1)[:, None]
    last = np.maximum.accumulate(np.where(np.isnan(levels), 0, rows), axis=0)
    padded = np.vstack([np.full((1, levels.shape[1]), np.nan), levels])
    before = np.vstack([np.zeros((1, levels.shape[1]), last.dtype), last[:-1]])
    return np.take_along_axis(padded, before[: len(levels)], axis=0)


def _difference(after: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(after) & np.isfinite(before)
    return np.subtract(after, before, out=np.full(after.shape, np.nan), where=known)


def _at_steps(grid: Grid, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """The values of a grid at other steps, nan where it has none."""
    values = np.full((len(grid.sites), len(steps)), np.nan)
    _, mine, theirs = np.intersect1d(grid.steps, steps, assume_unique=True, return_indices=True)
    values[:, theirs] = grid.values[:, mine]
    return values


def _chain(grid: Grid) -> Grid:
    """Without the input batch."""
    kept = [site.kind in _CHAIN for site in grid.sites]
    return Grid(
        tuple(site for site in grid.sites if site.kind in _CHAIN), grid.steps, grid.values[np.array(kept, bool)]
    )
