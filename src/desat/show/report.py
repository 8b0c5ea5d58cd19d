"""The report: one self-contained HTML page of a run, which opens from disk and asks nobody for anything."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from desat.diagnose.finding import Diagnosis
from desat.diagnose.health import WEIGHTS, health
from desat.diagnose.link_budget import LinkBudget
from desat.record.reader import Record
from desat.show import figures, words
from desat.show.layers import measure_layers, sickest
from desat.show.page import Picture, picture, render, with_code, write_page
from desat.show.summary import summarize
from desat.show.terminal import comparison_facts

FACTS = ("script", "status", "started", "desat", "torch", "python", "device", "budget", "every", "applied", "dropped")
"""What is known of a run as a whole and told at the foot of the page, in this order."""

LAYERS_SHOWN = 20
"""Layers below full health that are listed at once; of more the sickest, in order of execution."""


def write_report(
    record: Record,
    diagnosis: Diagnosis,
    link_budget: LinkBudget | None,
    path: Path,
    compared: Sequence[tuple[Record, Diagnosis]] = (),
) -> Path:
    """Write the page of a run to `path`, whole or not at all; runs in `compared` stand beside it. Returns the path.

    Raises DesatError where it cannot be written.
    """
    return write_page(path, render_report(record, diagnosis, link_budget, compared))


def render_report(
    record: Record, diagnosis: Diagnosis, link_budget: LinkBudget | None, compared: Sequence[tuple[Record, Diagnosis]]
) -> str:
    """The page as text."""
    layers = measure_layers(record, diagnosis)
    listed = sickest(layers, LAYERS_SHOWN)
    return render(
        "report.html.j2",
        diagnosis=diagnosis,
        verdict=words.verdict(diagnosis),
        health=words.health(health(diagnosis)),
        summary=[with_code(sentence) for sentence in summarize(record, diagnosis)],
        listed_layers=listed,
        other_layers=[layer for layer in layers if layer not in listed],
        weights=WEIGHTS,
        script_name=str(record.information.get("script", "SCRIPT")),
        pictures=_pictures(record, diagnosis, link_budget, compared),
        budget=link_budget,
        table=_site_table(record),
        comparison=_comparison([(record, diagnosis), *compared]) if compared else [],
        facts=_facts(record.information),
        operations=words.operations(record),
    )


def _pictures(
    record: Record, diagnosis: Diagnosis, budget: LinkBudget | None, compared: Sequence[tuple[Record, Diagnosis]]
) -> list[Picture]:
    runs = [(record.name, record, diagnosis), *((other.name, other, found) for other, found in compared)]
    drawn: list[tuple[str, str, str, go.Figure | None]] = [
        (
            "loss",
            "Does it learn?",
            "Loss at every step. A dotted line marks the step at which a finding begins.",
            figures.loss_figure(runs),
        ),
        (
            "budget",
            "Where the gradient is lost",
            "The gradient's way from the loss (top) back to the first layer (bottom). Each bar is what one site takes "
            "(to the left) or adds (to the right); -20 dB is a tenth, -60 dB a thousandth. Colour says what took it.",
            figures.budget_figure(budget) if budget is not None and budget.links else None,
        ),
        (
            "gradient",
            "Gradient by layer and step",
            "Root mean square of the loss's gradient at each site's output, first layer on top. Rows of one colour are "
            "sound; a fade from bottom to top is a gradient that vanishes on its way back.",
            figures.gradient_figure(record),
        ),
        (
            "saturation",
            "Saturation by layer and step",
            "Share of the inputs at which the nonlinearity's slope is below 5 % of its maximum. Bright rows pass "
            "little gradient on. A rectifier is saturated on about half of its inputs when all is well.",
            figures.saturation_figure(record),
        ),
        (
            "updates",
            "How far each parameter moves",
            "Size of the optimizer's change over the size of the parameter. About 10^-3 is usual; far less learns "
            "nothing, far more is noise.",
            figures.update_figure(record),
        ),
    ]
    return [picture(name, title, caption, figure) for name, title, caption, figure in drawn if figure is not None]


def _site_table(record: Record) -> list[dict[str, Any]]:
    """The last sample of each site, for those who want the numbers behind the pictures."""
    inputs, outputs = record.last_sample("input"), record.last_sample("output")
    gradients = record.last_sample("gradient")
    rows = []
    for site in record.sites():
        if site.kind == "parameter":
            continue
        taken, given, gradient = inputs.get(site.id), outputs.get(site.id), gradients.get(site.id)
        saturated = None if taken is None else (taken.saturated_low or 0.0) + (taken.saturated_high or 0.0)
        rows.append(
            {
                "site": site,
                "input": taken.rms if taken else None,
                "saturated": saturated,
                "gain": taken.gain if taken else None,
                "dead": _dead_share(record, site) if taken else None,
                "output": given.rms if given else None,
                "gradient": gradient.rms if gradient else None,
            }
        )
    return rows


def _dead_share(record: Record, site: Any) -> float | None:
    """Share of the units that were saturated on every sample of every sampled step."""
    _, flags = record.saturated_units(site)
    return float(np.logical_and.reduce(flags).mean()) if flags.size else None


def _comparison(runs: Sequence[tuple[Record, Diagnosis]]) -> list[list[str]]:
    """A table of facts: the head row names the runs."""
    columns = [comparison_facts(record, diagnosis) for record, diagnosis in runs]
    facts = dict.fromkeys(name for column in columns for name in column)
    return [
        ["", *(words.plain(record.name) for record, _ in runs)],
        *([words.plain(fact), *(column.get(fact, "–") for column in columns)] for fact in facts),
    ]


def _facts(information: dict[str, Any]) -> list[tuple[str, str]]:
    told = [(name, information[name]) for name in FACTS if information.get(name) not in (None, [], "")]
    return [
        (name, "; ".join(map(words.plain, value)) if isinstance(value, list) else words.plain(value))
        for name, value in told
    ]
