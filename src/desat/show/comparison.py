"""Runs side by side: what they are compared by."""

from collections.abc import Sequence

import numpy as np

from desat.diagnose.finding import Diagnosis
from desat.diagnose.link_budget import measure_link_budget
from desat.record.reader import Record
from desat.show.words import decibels, number, plain

MOST_COMPARED = 5
"""Runs side by side that there are colours for, and room in a terminal."""


def comparison_facts(record: Record, diagnosis: Diagnosis) -> dict[str, str]:
    """What two runs are compared by: name of the fact and its value as text."""
    information = record.information
    losses = record.steps()["loss"]
    losses = losses[~np.isnan(losses)]
    budget = measure_link_budget(record)
    errors = [finding.code for finding in diagnosis.findings if finding.severity == "error"]
    metrics = information.get("metrics") or {}
    facts = {f"{name}": number(value) for name, value in metrics.items() if isinstance(value, (int, float))}
    facts |= {
        "applied": ", ".join(map(plain, information.get("asked") or [])) or "nothing",
        "verdict": diagnosis.verdict,
        "errors": ", ".join(errors) or "none",
        "loss, first steps": number(float(losses[:10].mean())) if len(losses) else "–",
        "loss, last steps": number(float(losses[-10:].mean())) if len(losses) else "–",
        "gradient, loss to first layer": decibels(budget.total_db) if budget is not None else "–",
        "steps": str(diagnosis.steps),
        "watching added": f"{diagnosis.overhead:.1%}",
    }
    return facts


def comparison_table(runs: Sequence[tuple[Record, Diagnosis]]) -> list[list[str]]:
    """A table of facts: the head row names the runs."""
    columns = [comparison_facts(record, diagnosis) for record, diagnosis in runs]
    facts = dict.fromkeys(name for column in columns for name in column)
    return [
        ["", *(plain(record.name) for record, _ in runs)],
        *([plain(fact), *(column.get(fact, "–") for column in columns)] for fact in facts),
    ]
