"""The report: one self-contained HTML page of a run, which opens from disk and asks nobody for anything."""

from collections.abc import Sequence
from pathlib import Path

from desat.diagnose.finding import Diagnosis
from desat.diagnose.link_budget import LinkBudget
from desat.record.reader import Record
from desat.show.page import render, write_page
from desat.show.run_views import RunViews


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
    return write_page(path, render_report(RunViews(record, diagnosis, link_budget, compared)))


def render_report(views: RunViews) -> str:
    """The page as text."""
    return render("report.html.j2", views.all(), run=views.page(), title=views.record.name)
