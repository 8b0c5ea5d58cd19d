"""One site in detail: how its values spread over time, its units, its saturation, and what else was read off it."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from desat.record.histogram import magnitude_quantile
from desat.record.reader import Columns, Record
from desat.record.rows import Site
from desat.show.heat_maps import pooled
from desat.show.plot import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Figure, decades, escaped, styled, title

BANDS = ((0.05, 0.95), (0.25, 0.75))
"""Quantiles between which a band lies, the wide one first."""

QUANTITIES = {"input": BLUE, "output": GREEN, "gradient": VERMILION}
LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)

MOST_UNITS = 128
"""Rows of the map of units; of more units several stand side by side in one row."""

MOST_READINGS = 24
"""Readings drawn at a site, each in a plot of its own; a hostile record may have any number."""

HEIGHT, READING_HEIGHT = 250, 90
"""Pixels; of a plot, and of each reading."""

STEP = {"title": title("sampled step")}


class Detail(NamedTuple):
    """One figure of a site. name: for addresses."""

    name: str
    title: str
    caption: str
    figure: Figure


def site_figures(record: Record, site: Site, columns: int) -> Iterator[Detail]:
    """The figures of a site, those for which something was measured. columns: at most so many steps each."""
    if site.kind == "parameter":
        yield from _parameter(record.parameter(site), columns)
    for quantity, colour in QUANTITIES.items():
        steps, counts = record.histograms(site, quantity, columns)
        if counts.any():
            yield Detail(
                f"magnitudes-{quantity}", f"Size of the {quantity}",
                "Half of the values that are not zero lie in the dark band, nine of ten in the light one; the line is "
                "the median magnitude.",
                _bands(steps, counts, colour),
            )  # fmt: skip
    inputs = record.tensor(site, "input")
    if np.isfinite(inputs["gain"]).any():
        yield Detail(
            "saturation", "Saturation and gain",
            "Share of the inputs in the low and the high flat part of the curve, and the mean slope over all inputs.",
            _lines(inputs, {"saturated_low": "low end", "saturated_high": "high end", "gain": "gain"}, columns),
        )  # fmt: skip
    steps, flags = record.saturated_units(site, columns)
    if flags.size:
        yield Detail(
            "units", "Units",
            "A unit is marked at a step at which it was saturated on every sample. A row that is marked throughout is "
            "dead, or stuck.",
            _units(steps, flags),
        )  # fmt: skip
    readings = dict(sorted(record.readings(site).items())[:MOST_READINGS])
    readings = {name: series for name, series in readings.items() if np.isfinite(series["value"]).any()}
    if readings:
        yield Detail("readings", "What else was measured", "", _readings(readings, columns))


def _bands(steps: NDArray[np.int64], counts: NDArray[np.float64], colour: str) -> Figure:
    """Quantiles of the magnitudes over steps. counts: of shape (steps, BINS)."""
    steps, counts = steps[counts.any(axis=1)], counts[counts.any(axis=1)]
    data: list[dict[str, Any]] = []
    for low, high in BANDS:
        edges = [magnitude_quantile(counts, share) for share in (low, high)]
        for edge, fill in zip(edges, (None, "tonexty"), strict=True):
            data.append({
                "type": "scatter", "x": steps, "y": edge, "mode": "lines", "line": {"width": 0.5, "color": colour},
                "fill": fill, "fillcolor": f"{colour}33", "hoverinfo": "skip", "showlegend": False,
            })  # fmt: skip
    data.append({
        "type": "scatter", "x": steps, "y": magnitude_quantile(counts, 0.5),
        "mode": "lines" if len(steps) > 1 else "markers", "line": {"width": 2, "color": colour}, "name": "median",
        "hovertemplate": "step %{x}<br>median %{y:.3g}<extra></extra>",
    })  # fmt: skip
    shown = np.concatenate([trace["y"] for trace in data])
    return styled(data, HEIGHT, STEP, decades(shown) | {"title": title("magnitude")})


def _lines(columns: Columns, names: dict[str, str], most: int) -> Figure:
    """Some columns of a series in one plot. names: of the columns, with how they are called."""
    steps, rows = pooled(columns["step"].astype(np.int64), np.array([columns[name] for name in names]), most)
    data = [
        {
            "type": "scatter", "x": steps, "y": row, "name": name, "mode": "lines" if len(steps) > 1 else "markers",
            "line": {"color": colour, "width": 1.8}, "marker": {"color": colour},
            "hovertemplate": f"{name}<br>step %{{x}}<br>%{{y:.4g}}<extra></extra>",
        }
        for name, row, colour in zip(names.values(), rows, LINE_COLOURS, strict=False)
    ]  # fmt: skip
    return styled(data, HEIGHT, STEP, {}, showlegend=True)


def _parameter(columns: Columns, most: int) -> Iterator[Detail]:
    if not len(columns["step"]):
        return
    names = {"rms": "parameter", "gradient_rms": "gradient", "update_rms": "update"}
    sizes = _lines(columns, names, most)
    sizes["layout"]["yaxis"] |= decades(np.concatenate([columns[name] for name in names])) | {"title": title("rms")}
    yield Detail("sizes", "Parameter, gradient and update", "Root mean squares, before and in each step.", sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = columns["update_rms"] / columns["rms"]
    if np.isfinite(ratio).any():
        figure = _lines({"step": columns["step"], "ratio": ratio}, {"ratio": "update ratio"}, most)
        figure["layout"]["yaxis"] |= decades(ratio)
        figure["layout"]["showlegend"] = False
        yield Detail(
            "ratio", "Update ratio", "Size of the change over the size of the parameter; about 10^-3 is usual.", figure
        )


def _units(steps: NDArray[np.int64], flags: NDArray[np.bool_]) -> Figure:
    """flags: of shape (steps, units)."""
    number = flags.shape[1]
    size = math.ceil(number / MOST_UNITS)
    firsts, rows = pooled(np.arange(number), flags.astype(np.float64), MOST_UNITS)
    names = [f"{first}" if size == 1 else f"{first} to {min(first + size, number) - 1}" for first in firsts]
    data = {
        "type": "heatmap", "x": [str(step) for step in steps], "y": names, "z": rows.T, "colorscale": "Cividis",
        "zmin": 0.0, "zmax": 1.0, "showscale": size > 1,
        "colorbar": {"thickness": 12, "tickformat": ".0%"},
        "hovertemplate": "unit %{y}<br>step %{x}<br>saturated %{z:.0%}<extra></extra>",
    }  # fmt: skip
    x = STEP | {"type": "category", "nticks": 12, "tickangle": 0}
    y = {"title": title("unit"), "type": "category", "nticks": 10, "autorange": "reversed"}
    return styled([data], max(HEIGHT, 130 + 2 * len(names)), x, y)


def _readings(readings: dict[str, Columns], most: int) -> Figure:
    """Small plots one above the other, of one axis of steps."""
    data, layout, share = [], {}, 1.0 / len(readings)
    for index, (name, series) in enumerate(readings.items()):
        steps, (values,) = pooled(series["step"].astype(np.int64), series["value"][None], most)
        axis = "" if index == 0 else str(index + 1)
        data.append({
            "type": "scatter", "x": steps, "y": values, "yaxis": f"y{axis}", "name": escaped(name),
            "mode": "lines" if len(steps) > 1 else "markers", "line": {"color": GREY, "width": 1.6},
            "hovertemplate": f"{escaped(name)}<br>step %{{x}}<br>%{{y:.4g}}<extra></extra>",
        })  # fmt: skip
        top = 1.0 - index * share
        layout[f"yaxis{axis}"] = {
            "domain": [top - 0.7 * share, top], "automargin": True, "nticks": 3, "zeroline": False,
            "gridcolor": "rgba(138,143,152,0.2)", "title": {"text": ""},
        }  # fmt: skip
    notes = [
        {"text": escaped(name), "showarrow": False, "xref": "paper", "yref": "paper", "x": 0, "xanchor": "left",
         "y": 1.0 - index * share, "yanchor": "bottom", "font": {"size": 11}}
        for index, name in enumerate(readings)
    ]  # fmt: skip
    first = layout.pop("yaxis")
    x = STEP | {"anchor": "y" if len(readings) == 1 else f"y{len(readings)}"}
    return styled(data, 110 + READING_HEIGHT * len(readings), x, first, top=30, annotations=notes, **layout)
