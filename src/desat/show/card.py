"""The card: a run as a fragment of HTML for a notebook's page.

It has no script, no style sheet and no identifiers, so that nothing of it reaches the page around it. Its ground is
transparent and its text has the page's colour; the colours of its own are told from white and from near black alike.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from desat.diagnose.finding import Diagnosis, Finding, Severity
from desat.diagnose.health import health
from desat.record.reader import Record
from desat.record.run import state
from desat.show import words
from desat.show.page import asset, templates
from desat.show.sketch import FRAME, sketch
from desat.show.summary import summarize

COLOURS: dict[Severity | str, str] = {
    "error": "#D64545", "warning": "#A87900", "note": "#7A828C", "healthy": "#0F8A66", "loss": "#2B7FC4",
}  # fmt: skip
"""Each has a contrast of 3 or more to white and to #111 (WCAG 2.2, 1.4.11)."""

FINDINGS_SHOWN = (12, 6, 3, 0)
"""Findings that are listed: the first number with which the card is small enough."""

LARGEST = 30_000
"""Bytes of a card: it is saved with the notebook."""

LONGEST_CELL, LONGEST_SENTENCE = 120, 600
"""Characters."""


@dataclass(frozen=True)
class Row:
    """A finding as the card's table lists it. typed: what to type to try what helps; advised: what else may help."""

    severity: Severity
    code: str
    where: str
    since: str
    typed: str
    advised: str


def card(record: Record, diagnosis: Diagnosis) -> str:
    """A run as static HTML of 30 kB at most; a live one as it is now. Everything from the record is escaped."""
    information = record.information
    steps = record.steps()
    places = words.operations(record)
    rows = [_row(finding, places, words.script_of(record)) for finding in diagnosis.findings[: FINDINGS_SHOWN[0]]]
    values: dict[str, Any] = {
        "frame": FRAME,
        "name": _clipped(diagnosis.run),
        "state": _clipped(state(information)),
        "verdict": words.verdict(diagnosis),
        "colour": COLOURS[diagnosis.verdict],
        "health": words.health(health(diagnosis)),
        "sentences": [_parts(_clipped(sentence, LONGEST_SENTENCE)) for sentence in summarize(record, diagnosis)],
        "drawing": sketch(steps["step"], steps["loss"], diagnosis.findings),
        "diagnosis": diagnosis,
        "folder": _clipped(shown_path(record), LONGEST_SENTENCE),
    }
    cards = (
        _render("card.html.j2", rows=rows[:shown], more=len(diagnosis.findings) - len(rows[:shown]), **values)
        for shown in FINDINGS_SHOWN
    )
    return next(one for one in cards if len(one.encode()) <= LARGEST)


def problem_card(name: str, problem: str) -> str:
    """A card for a run that cannot be told of, and why."""
    return _render("problem_card.html.j2", name=_clipped(name), problem=_parts(_clipped(problem, LONGEST_SENTENCE)))


def told(record: Record, diagnosis: Diagnosis) -> str:
    """What the card says first, as text, for where there is no HTML."""
    head = f"{words.verdict(diagnosis)} · health {words.health(health(diagnosis))} of 1"
    return "\n".join([head, *summarize(record, diagnosis), f"next: desat diagnose {shown_path(record)}"])


def shown_path(record: Record) -> str:
    """The run's folder as it is typed, relative to the working directory where it lies below it."""
    folder = record.path.parent
    here = folder.absolute()
    return words.plain(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else folder)


def _row(finding: Finding, places: dict[str, str], script: str | None) -> Row:
    typed = advised = ""
    if finding.severity != "note":
        typed = words.command(finding, script) or ""
        advised = words.plain(words.advice(finding) or "")
    where, since = _clipped(words.places(finding, places)), words.since(finding)
    return Row(
        finding.severity, _clipped(finding.code), where, since, _clipped(typed, 2 * LONGEST_CELL), _clipped(advised)
    )


def _clipped(text: str, longest: int = LONGEST_CELL) -> str:
    """Without control characters; a long text loses its middle."""
    text = words.plain(text)
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def _parts(sentence: str) -> list[str]:
    """A sentence in parts, of which every second one stood between backticks and is to be typed."""
    return re.split("`([^`]+)`", sentence)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = templates(asset)
    environment.globals.update(symbols=words.SYMBOLS, count=words.count, clipped=_clipped, colours=COLOURS)
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
