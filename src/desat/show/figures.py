"""The pictures of a whole run: its loss, and where its gradient is lost."""

from collections.abc import Sequence

import numpy as np

from desat.diagnose.finding import Finding
from desat.diagnose.link_budget import SHARES, LinkBudget, Share
from desat.record.reader import Record
from desat.show.loss_curve import loss_axis, smoothed, thinned
from desat.show.plot import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    ROW_HEIGHT,
    RUN_COLOURS,
    VERMILION,
    Figure,
    escaped,
    labels,
    styled,
    title,
)  # fmt: skip

SHARE_COLOURS: dict[Share, str] = {
    "nonlinearity": VERMILION,
    "weight": BLUE,
    "normalization": GREEN,
    "other": GREY,
}
FINDING_COLOURS = {"error": VERMILION, "warning": ORANGE, "note": GREY}

LOSS_HEIGHT = 340
TALLEST = 900
"""Pixels of a waterfall's bars: of very many, which are thin then, not each has its name beside it."""

FLAG = 16
"""Pixels of a finding's name above the loss."""

MOST_FLAGS = 8
"""Findings marked on the loss, the gravest first; the list below the picture has them all."""

SMOOTHED_FROM = 60
"""Points of a loss from which on its mean is drawn over it."""


def loss_figure(runs: Sequence[tuple[str, Record]], findings: Sequence[Finding] = ()) -> Figure:
    """Loss over steps of one or several runs, at most as many as there are colours.

    findings: those whose beginning is marked, unless they are notes.
    """
    data, last = [], 0.0
    for (name, record), colour in zip(runs, RUN_COLOURS if len(runs) > 1 else [BLUE], strict=False):
        columns = record.steps()
        steps, losses = thinned(columns["step"], columns["loss"])
        last = max(last, float(columns["step"].max(initial=0.0)))
        hover = f"{escaped(name)}<br>step %{{x}}<br>loss %{{y:.4g}}<extra></extra>"
        line = {"x": steps, "type": "scatter", "mode": "lines" if len(steps) > 1 else "markers", "hovertemplate": hover}
        means = smoothed(losses) if len(losses) >= SMOOTHED_FROM else None
        faint = {"opacity": 0.35, "showlegend": False} if means is not None else {"name": escaped(name)}
        data.append(line | faint | {"y": losses, "line": {"color": colour, "width": 1.2}, "marker": {"color": colour}})
        if means is not None:
            data.append(line | {"y": means, "name": escaped(name), "line": {"color": colour, "width": 2.4}})
    values = np.concatenate([trace["y"] for trace in data] or [np.empty(0)])
    values = values[np.isfinite(values)]
    axis = loss_axis(float(values.min()), float(values.max())) if len(values) else {}
    flagged = [finding for finding in findings if finding.severity != "note"][:MOST_FLAGS]
    return styled(
        data, LOSS_HEIGHT + FLAG * len(flagged), {"title": title("step")}, {"title": title("loss")} | axis,
        showlegend=len(runs) > 1, top=12 + FLAG * len(flagged),
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        shapes=[
            {"type": "line", "x0": found.first_step, "x1": found.first_step, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"width": 1, "dash": "dot", "color": FINDING_COLOURS[found.severity]}}
            for found in flagged
        ],
        annotations=[
            {"x": found.first_step, "yref": "paper", "y": 1, "yshift": 2 + FLAG * index, "yanchor": "bottom",
             "xanchor": "left" if 2 * found.first_step <= last else "right", "text": escaped(found.code),
             "showarrow": False, "font": {"size": 11, "color": FINDING_COLOURS[found.severity]}}
            for index, found in enumerate(flagged)
        ],
    )  # fmt: skip


def budget_figure(budget: LinkBudget, numbers: dict[str, int]) -> Figure:
    """The link budget as a waterfall, from the loss (top) back to the first layer (bottom), in decibels.

    Drawn as floating bars, since a plotly waterfall has one colour for all falls and here colour says the cause.
    numbers: of the sites, by name; a bar's last custom value is that of its site.
    """
    links = budget.links
    names = labels([(link.site, link.operation) for link in links])
    after = np.cumsum([link.gain_db for link in links]).tolist()
    before = [0.0, *after[:-1]]
    data = []
    for share in SHARES:
        chosen = [index for index, link in enumerate(links) if link.share == share]
        if chosen:
            data.append({
                "type": "bar", "orientation": "h", "name": share, "marker": {"color": SHARE_COLOURS[share]},
                "y": [f"{i:03d}" for i in chosen], "base": [before[i] for i in chosen],
                "x": [links[i].gain_db for i in chosen],
                "customdata": [[escaped(links[i].site), after[i], numbers.get(links[i].site)] for i in chosen],
                "hovertemplate": "%{customdata[0]}<br>%{x:+.1f} dB, in all %{customdata[1]:+.1f} dB<extra></extra>",
            })  # fmt: skip
    ticks = [f"{index:03d}" for index in range(len(names))]
    height = min(ROW_HEIGHT * len(names), TALLEST)
    stride = -(-ROW_HEIGHT * len(names) // height)
    rows = {"type": "category", "categoryorder": "array", "categoryarray": ticks[::-1], "tickmode": "array"}
    return styled(
        data, 150 + height, {"title": title("gradient, dB")},
        rows | {"tickvals": ticks[::stride], "ticktext": names[::stride]},
        showlegend=True, barmode="overlay", bargap=0.15,
    )  # fmt: skip
