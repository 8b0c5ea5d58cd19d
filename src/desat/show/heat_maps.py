"""Layers by steps: each statistic of all sites over the run as a heat map."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.record.gains import backward_gains, forward_gains
from desat.record.reader import Grid, Record
from desat.show.plot import Figure, escaped, labels, styled, title

MOST_CELLS = 120_000
"""Cells of a heat map that stay smooth to move about in; of more samples several are pooled into one column."""

HEIGHT = 400
"""Pixels, where no page says otherwise."""

MOST_COLUMNS = 600
"""Columns that a screen can tell apart."""


@dataclass(frozen=True)
class HeatMap:
    """One statistic. kinds: of the sites that have it; unit: beside the colours; shown: a cell's value, for plotly."""

    name: str
    title: str
    caption: str
    kinds: tuple[str, ...]
    measure: Callable[[Record], Grid]
    unit: str
    shown: str
    colours: dict[str, Any]


def _saturated(record: Record) -> Grid:
    low, high = (record.grid("input", f"saturated_{end}", "nonlinearity") for end in ("low", "high"))
    return Grid(low.sites, low.steps, low.values + high.values)


def _silent_units(record: Record) -> Grid:
    """Share of the units of each nonlinearity that were saturated on every sample of a step."""
    series = [(site, *record.saturated_units(site)) for site in record.sites("nonlinearity")]
    series = [(site, steps, flags) for site, steps, flags in series if flags.size]
    steps = np.unique(np.concatenate([own for _, own, _ in series] or [np.empty(0, np.int64)]))
    values = np.full((len(series), len(steps)), np.nan)
    for row, (_, own, flags) in enumerate(series):
        values[row, np.searchsorted(steps, own)] = flags.mean(axis=1)
    return Grid(tuple(site for site, _, _ in series), steps, values)


def _logarithm(grid: Grid) -> Grid:
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log10(grid.values)
    return Grid(grid.sites, grid.steps, np.where(np.isfinite(logarithms), logarithms, np.nan))


def _update_ratio(record: Record) -> Grid:
    updates, sizes = record.grid("parameter", "update_rms"), record.grid("parameter", "rms")
    with np.errstate(divide="ignore", invalid="ignore"):
        return _logarithm(Grid(updates.sites, updates.steps, updates.values / sizes.values))


_LAYERS, _NONLINEAR, _PARAMETERS = ("module", "nonlinearity"), ("nonlinearity",), ("parameter",)
_SHARE = {"colorscale": "Cividis", "zmin": 0.0, "zmax": 1.0}
_POWER = {"colorscale": "Viridis"}
_DECIBELS = {"colorscale": "RdBu", "zmid": 0.0}

HEAT_MAPS = (
    HeatMap(
        "gradient", "Gradient",
        "Root mean square of the loss's gradient at each site's output, first layer on top. Rows of one colour are "
        "sound; a fade from bottom to top is a gradient that vanishes on its way back.",
        _LAYERS, lambda record: _logarithm(record.grid("gradient", "rms")),
        "log10 of the gradient", "10^%{z:.1f}", _POWER,
    ),
    HeatMap(
        "saturated", "Saturated share",
        "Share of the inputs at which the nonlinearity's slope is below 5 % of its maximum. Bright rows pass little "
        "gradient on. A rectifier is saturated on about half of its inputs when all is well.",
        _NONLINEAR, _saturated, "saturated share", "%{z:.1%}", _SHARE,
    ),
    HeatMap(
        "dead", "Dead and stuck units",
        "Share of the units that were saturated on every sample of a step. A unit is dead, or stuck, where that stays "
        "so over a whole run.",
        _NONLINEAR, _silent_units, "share of the units", "%{z:.1%}", _SHARE,
    ),
    HeatMap(
        "gain", "Gain",
        "Mean slope of each nonlinearity over its inputs: what of a gradient comes through. A sigmoid has at most "
        "0.25, a ReLU about 0.5.",
        _NONLINEAR, lambda record: record.grid("input", "gain", "nonlinearity"), "mean slope", "%{z:.3f}",
        {"colorscale": "Cividis", "zmin": 0.0},
    ),
    HeatMap(
        "updates", "Update ratio",
        "Size of the optimizer's change over the size of the parameter. About 10^-3 is usual; far less learns nothing, "
        "far more is noise.",
        _PARAMETERS, _update_ratio, "log10 of the ratio", "10^%{z:.1f}", _POWER,
    ),
    HeatMap(
        "output", "Output",
        "Root mean square of each site's output. Rows of one colour are sound; a fade from top to bottom is a signal "
        "that vanishes, the other way one that explodes.",
        _LAYERS, lambda record: _logarithm(record.grid("output", "rms")), "log10 of the output", "10^%{z:.1f}", _POWER,
    ),
    HeatMap(
        "forward", "Forward gain",
        "What each site does to the signal on its way forward, in decibels: -20 dB is a tenth.",
        _LAYERS, forward_gains, "dB", "%{z:+.1f} dB", _DECIBELS,
    ),
    HeatMap(
        "backward", "Backward gain",
        "What each site does to the gradient on its way back, in decibels: -20 dB is a tenth.",
        _LAYERS, backward_gains, "dB", "%{z:+.1f} dB", _DECIBELS,
    ),
)  # fmt: skip


def heat_map(record: Record, kind: HeatMap) -> Figure | None:
    """The figure; None where nothing of it was measured.

    `meta` has by row the sites' numbers, whole names and short ones, and of each column its first step. Ticks and
    hover texts are left to the page, where rows can be chosen.
    """
    grid = kind.measure(record)
    if not np.isfinite(grid.values).any():
        return None
    columns = min(MOST_COLUMNS, max(1, MOST_CELLS // len(grid.sites)))
    steps, values = pooled(grid.steps, grid.values, columns)
    bar = {"title": {"text": kind.unit, "side": "right"}, "thickness": 12}
    if kind.shown.endswith("%}"):
        bar["tickformat"] = ".0%"
    cells = {
        # Samples stand side by side as categories: a gap between sampled steps is no measurement to stretch.
        "type": "heatmap", "x": [str(step) for step in steps], "y": [str(site.id) for site in grid.sites], "z": values,
        "hoverongaps": False, "colorbar": bar,
        "hovertemplate": "%{text}<br>step %{x}<br>" + kind.shown + "<extra></extra>",
    }  # fmt: skip
    meta = {
        "sites": [site.id for site in grid.sites], "names": [escaped(site.name) for site in grid.sites],
        "labels": labels([(site.name, site.operation) for site in grid.sites]),
        "steps": steps, "pooled": -(-len(grid.steps) // columns),
    }  # fmt: skip
    x = {"title": title("sampled step"), "type": "category", "nticks": 12, "tickangle": 0}
    return styled([cells | kind.colours], HEIGHT, x, {"type": "category", "autorange": "reversed"}, meta=meta)


def pooled(
    steps: NDArray[np.int64], values: NDArray[np.float64], columns: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Samples pooled so that at most so many columns are left: each is the mean of equally many samples, the last of
    what remains, and is told by its first step.

    values: of shape (sites, samples), nan where it was not measured, which counts in no mean.
    """
    size = max(1, -(-len(steps) // columns))
    if size == 1:
        return steps, values
    starts = np.arange(0, len(steps), size)
    known = np.isfinite(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
    counts = np.add.reduceat(known.astype(np.int64), starts, axis=1)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return steps[starts], means
