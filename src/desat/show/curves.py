"""The loss curves of a search for a cure, as a figure made from its document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.show.loss_curve import loss_axis, smoothed
from desat.show.plot import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Figure, escaped, short, styled, title

MOST_TRIALS = 8
"""Trials that are drawn beside the baseline, the best first; of more lines none can be followed."""

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Okabe and Ito's, by rank; their yellow and black cannot be seen on every ground."""

DASHES = {True: ("solid", "dash"), False: ("dot", "dashdot")}
"""By whether a trial was accepted: its line, and that of one which has the same colour again."""

ENDS = {"pruned": ("circle-open", "stopped here: others did better"), "timed out": ("square-open", "out of time here"),
        "failed": ("x-thin-open", "it failed here")}  # fmt: skip
"""By how a trial ended early: the mark at the end of its curve, and what it says."""

HEIGHT = 380
LEGEND_ROW = 20
"""Pixels."""


@dataclass(frozen=True)
class Curve:
    """steps: of shape (points,). losses: of shape (seeds, points), nan where there was no finite one."""

    steps: NDArray[np.float64]
    losses: NDArray[np.float64]
    lengths: NDArray[np.int64]
    """Points up to which each seed came."""

    def smoothed(self) -> NDArray[np.float64]:
        """Losses of each seed that came as far as any, averaged: of the same shape, with fewer rows."""
        whole = self.losses[self.lengths == len(self.steps)]
        return np.array([smoothed(row) for row in whole]).reshape(whole.shape)


def curve_of(runs: Sequence[dict[str, Any]]) -> Curve:
    """The runs of one candidate side by side, on the steps that any of them has; those without a step left out."""
    runs = [run for run in runs if run["steps"]]
    steps = np.unique(np.concatenate([np.asarray(run["steps"], np.float64) for run in runs] or [np.empty(0)]))
    losses = np.full((len(runs), len(steps)), np.nan)
    lengths = np.zeros(len(runs), np.int64)
    for index, run in enumerate(runs):
        places = np.searchsorted(steps, np.asarray(run["steps"], np.float64))
        losses[index, places] = np.array(run["losses"], np.float64)
        lengths[index] = places[-1] + 1
    return Curve(steps, losses, lengths)


def trials_drawn(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The best trials that have a finite loss to draw."""
    known = [trial for trial in document["trials"] if np.isfinite(_curve(document, trial["apply"]).losses).any()]
    return known[:MOST_TRIALS]


def curves_figure(document: dict[str, Any]) -> Figure | None:
    """Baseline and best trials: smoothed loss over steps, raw losses faint behind; None where there is none.

    Of several seeds the mean is drawn, of those that came as far as any, and a band from the lowest to the highest.
    document: as desat.record.kept_cure.read_kept returns it.
    """
    trials, drawn, data = trials_drawn(document), [], []
    for rank, trial in enumerate(trials):
        curve = _curve(document, trial["apply"])
        lap, place = divmod(rank, len(COLOURS))
        line = {"color": COLOURS[place], "dash": DASHES[trial["accepted"]][lap], "width": 2.0}
        data += _traces(curve, trial["apply"], line, rank + 2, end=trial["ending"])
        drawn.append(curve)
    baseline = _curve(document, [])  # drawn last, and so on top: most that does not help lies upon it
    data += _traces(baseline, ["baseline"], {"color": GREY, "dash": "solid", "width": 3.0}, 1)
    drawn.append(baseline)
    means = np.concatenate([rows[np.isfinite(rows)] for rows in (curve.smoothed() for curve in drawn)])
    if not len(means):
        return None
    return styled(
        data, HEIGHT + LEGEND_ROW * (1 + sum(len(trial["apply"]) for trial in trials)), {"title": title("step")},
        {"title": title("loss")} | loss_axis(float(means.min()), float(means.max())), showlegend=True,
        legend={"orientation": "h", "y": -0.15, "yanchor": "top"}, margin={"l": 10, "r": 10, "t": 10, "b": 10},
    )  # fmt: skip


def _curve(document: dict[str, Any], apply: Sequence[str]) -> Curve:
    return curve_of(next((one["runs"] for one in document["curves"] if one["apply"] == apply), []))


def _traces(
    curve: Curve, names: Sequence[str], line: dict[str, Any], rank: int, *, end: str = ""
) -> list[dict[str, Any]]:
    """One candidate: band, raw losses, mean, and the mark at its end, in one group of the legend."""
    colour = line["color"]
    rows = curve.smoothed()
    whole = np.isfinite(rows).all(axis=0) & (len(rows) > 0)
    mean = np.full(len(curve.steps), np.nan)
    mean[whole] = (rows[:, whole] / max(len(rows), 1)).sum(axis=0)
    group = {"type": "scatter", "legendgroup": str(rank), "showlegend": False}
    traces = []
    if len(rows) > 1 and whole.any():
        steps, low, high = curve.steps[whole], rows[:, whole].min(axis=0), rows[:, whole].max(axis=0)
        traces.append(group | {
            "x": np.concatenate([steps, steps[::-1]]), "y": np.concatenate([high, low[::-1]]), "fill": "toself",
            "mode": "lines", "fillcolor": colour, "opacity": 0.15, "line": {"width": 0}, "hoverinfo": "skip",
        })  # fmt: skip
    for row in curve.losses:
        traces.append(group | {
            "x": curve.steps, "y": row, "mode": "lines", "opacity": 0.3, "line": {"color": colour, "width": 1},
            "hoverinfo": "skip",
        })  # fmt: skip
    shown = escaped(" + ".join(names))
    traces.append(group | {
        "x": curve.steps, "y": mean, "mode": "lines" if whole.sum() > 1 else "markers", "line": line,
        "name": "<br>".join(map(short, names)), "legendrank": rank, "showlegend": True,
        "hovertemplate": f"{shown}<br>step %{{x}}<br>loss %{{y:.4g}}<extra></extra>",
    })  # fmt: skip
    if end in ENDS and whole.any():
        symbol, words = ENDS[end]
        last = np.flatnonzero(whole)[-1]
        traces.append(group | {
            "x": curve.steps[[last]], "y": mean[[last]], "mode": "markers",
            "marker": {"symbol": symbol, "color": colour, "size": 9, "line": {"width": 2, "color": colour}},
            "hovertemplate": f"{shown}<br>{words}, after step %{{x}}<extra></extra>",
        })  # fmt: skip
    return traces
