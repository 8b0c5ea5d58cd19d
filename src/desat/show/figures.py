"""The report's pictures, as plotly figures made from a record."""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from desat.diagnose.finding import Diagnosis
from desat.diagnose.link_budget import SHARES, LinkBudget, Share
from desat.record.reader import Grid, Record
from desat.show.words import place, plain

# Okabe and Ito's palette, which colour-blind eyes tell apart (Okabe and Ito 2008, "Color universal design").
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8F98"
SHARE_COLOURS: dict[Share, str] = {
    "nonlinearity": VERMILION,
    "weight": BLUE,
    "normalization": GREEN,
    "other": GREY,
}
RUN_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE)
FINDING_COLOURS = {"error": VERMILION, "warning": ORANGE, "note": GREY}

LONGEST_NAME = 28
ROW_HEIGHT = 19
"""Pixels of one site in a heat map."""

MOST_POINTS = 4000
"""Points of a curve; a longer series is thinned evenly, which no screen shows."""


def loss_figure(runs: Sequence[tuple[str, Record, Diagnosis]]) -> go.Figure:
    """Loss over steps of one or several runs; errors and warnings of the first are marked where they begin."""
    figure = go.Figure()
    for (name, record, _), colour in zip(runs, RUN_COLOURS, strict=False):
        steps, losses = _thinned(record.steps()["step"], record.steps()["loss"])
        figure.add_scatter(
            x=steps, y=losses, name=escaped(name), mode="lines" if len(steps) > 1 else "markers",
            line={"color": colour, "width": 1.5}, hovertemplate="step %{x}<br>loss %{y:.4g}<extra></extra>",
        )  # fmt: skip
    if runs:
        for number, finding in enumerate(runs[0][2].findings):
            if finding.severity != "note":
                figure.add_vline(
                    x=finding.first_step, line_width=1, line_dash="dot", line_color=FINDING_COLOURS[finding.severity],
                    annotation_text=finding.code, annotation_position="top right", annotation_yshift=-16 * number,
                    annotation_font_size=11,
                )  # fmt: skip
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="loss")
    return styled(figure, 340, legend=len(runs) > 1)


def saturation_figure(record: Record) -> go.Figure | None:
    """Saturated share of each nonlinearity's inputs over steps; None where there is no nonlinearity."""
    low, high = (record.grid("input", f"saturated_{end}", "nonlinearity") for end in ("low", "high"))
    if not low.sites:
        return None
    share = Grid(low.sites, low.steps, low.values + high.values)
    return _heat_map(share, "saturated share", "%{z:.1%}", scale="Cividis", lowest=0.0, highest=1.0, ticks=".0%")


def gradient_figure(record: Record) -> go.Figure | None:
    """Root mean square of the gradient at each site over steps, as a power of ten; None where there is none."""
    grid = record.grid("gradient", "rms")
    if not grid.sites:
        return None
    with np.errstate(divide="ignore"):
        logarithms = np.log10(grid.values)
    logarithms[~np.isfinite(logarithms)] = np.nan
    return _heat_map(Grid(grid.sites, grid.steps, logarithms), "log10 of the gradient", "10^%{z:.1f}", scale="Viridis")


def update_figure(record: Record) -> go.Figure | None:
    """rms(update)/rms(parameter) of each parameter over steps, as a power of ten; None where there is none."""
    updates, sizes = record.grid("parameter", "update_rms"), record.grid("parameter", "rms")
    if not updates.sites:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log10(updates.values / sizes.values)
    ratios[~np.isfinite(ratios)] = np.nan
    return _heat_map(Grid(updates.sites, updates.steps, ratios), "log10 of the ratio", "10^%{z:.1f}", scale="Viridis")


def budget_figure(budget: LinkBudget) -> go.Figure:
    """The link budget as a waterfall, from the loss (top) back to the first layer (bottom), in decibels.

    Drawn as floating bars, since a plotly waterfall has one colour for all falls and here colour says the cause.
    """
    figure = go.Figure()
    names = [short(place(link.site, {link.site: link.operation})) for link in budget.links]
    after = np.cumsum([link.gain_db for link in budget.links])
    before = np.concatenate([[0.0], after[:-1]])
    for share in SHARES:
        chosen = [index for index, link in enumerate(budget.links) if link.share == share]
        if chosen:
            figure.add_bar(
                orientation="h", name=share, marker_color=SHARE_COLOURS[share], y=[f"{i:03d}" for i in chosen],
                base=[before[i] for i in chosen], x=[budget.links[i].gain_db for i in chosen],
                customdata=[[escaped(budget.links[i].site), after[i]] for i in chosen],
                hovertemplate="%{customdata[0]}<br>%{x:+.1f} dB, in all %{customdata[1]:+.1f} dB<extra></extra>",
            )  # fmt: skip
    ticks = [f"{index:03d}" for index in range(len(names))]
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=ticks[::-1],
        tickmode="array",
        tickvals=ticks,
        ticktext=names,
    )
    figure.update_xaxes(title_text="gradient, dB relative to the network's output")
    figure.update_layout(barmode="overlay", bargap=0.15)
    return styled(figure, 150 + ROW_HEIGHT * len(names), legend=True)


def escaped(text: object) -> str:
    """Text of a record as plotly shows it to the letter: it takes some HTML as markup."""
    return html.escape(plain(text))


def _heat_map(
    grid: Grid, title: str, shown: str, *, scale: str, lowest: float | None = None, highest: float | None = None,
    ticks: str | None = None,
) -> go.Figure:  # fmt: skip
    rows = [f"{index:03d}" for index in range(len(grid.sites))]
    full = np.array([[escaped(site.name)] * len(grid.steps) for site in grid.sites], dtype=object)
    figure = go.Figure(
        go.Heatmap(
            # Samples stand side by side as categories: a gap between sampled steps is no measurement to stretch.
            x=[str(step) for step in grid.steps], y=rows, z=grid.values.astype(np.float32), text=full, colorscale=scale,
            zmin=lowest, zmax=highest, hoverongaps=False,
            colorbar={"title": {"text": title, "side": "right"}, "thickness": 12, "tickformat": ticks},
            hovertemplate="%{text}<br>step %{x}<br>" + shown + "<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(
        autorange="reversed",
        tickmode="array",
        tickvals=rows,
        ticktext=[short(place(site.name, {site.name: site.operation})) for site in grid.sites],
    )
    figure.update_xaxes(title_text="sampled step", type="category", nticks=12, tickangle=0)
    return styled(figure, 130 + ROW_HEIGHT * max(len(rows), 3))


def styled(figure: go.Figure, height: int, legend: bool = False) -> go.Figure:
    """A figure in the page's look, of a height in pixels."""
    figure.update_layout(
        height=height, margin={"l": 10, "r": 10, "t": 36, "b": 10}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", showlegend=legend, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif", "size": 12, "color": GREY}, dragmode=False,
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
    )  # fmt: skip
    figure.update_xaxes(automargin=True, gridcolor="rgba(138,143,152,0.2)", zerolinecolor="rgba(138,143,152,0.5)")
    figure.update_yaxes(automargin=True, gridcolor="rgba(138,143,152,0.2)", zeroline=False)
    return figure


def short(name: str) -> str:
    """A name, escaped; a long one loses its middle, the whole of it is in the hover text."""
    name = plain(name)
    if len(name) > LONGEST_NAME:
        half = (LONGEST_NAME - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    return html.escape(name)


def _thinned(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    known = ~np.isnan(values)
    steps, values = steps[known], values[known]
    stride = max(1, -(-len(steps) // MOST_POINTS))
    return steps[::stride], values[::stride]
