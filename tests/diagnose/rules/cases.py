"""Cases for the tests of rules: a record made by hand, and a training that went as the test says."""

from collections.abc import Iterable
from pathlib import Path

from desat.diagnose.finding import Finding
from desat.diagnose.learning import Learning
from desat.diagnose.rule import Case, Rule
from desat.record.rows import ParameterStatistics, Row, Site, Step, TensorStatistics
from tests.records import statistics, write_record

HARMED = Learning("stalled", 300, 2.3, 2.3, 0.0, 0.0, 0)
LEARNED = Learning("learning", 300, 2.3, 0.1, 0.95, 0.9)
HALF_WAY = Learning("learning", 300, 2.3, 1.0, 0.56, 0.5)
LITTLE = Learning("learning", 300, 2.3, 1.8, 0.22, 0.12)
"""Learned a little."""
BORN_WRONG = Learning("learning", 300, 23.0, 0.05, 0.98, 0.95, guessing=2.3)
"""Learned, from ten times the loss of guessing on."""
UNKNOWN = Learning("unknown")

SAMPLES = range(0, 300, 10)


def examine(rule: Rule, directory: Path, rows: Iterable[Row], learning: Learning = HARMED) -> Finding | None:
    """The one finding of a rule, or None."""
    with write_record(directory / "run", rows) as record:
        findings = rule.examine(Case(record, learning))
    assert len(findings) <= 1
    assert all(finding.code == rule.code for finding in findings)
    return findings[0] if findings else None


def spliced(before: Iterable[Row], after: Iterable[Row], step: int) -> list[Row]:
    """The statistics of one network before `step` and of another, of the same make, from then on."""
    measured = (TensorStatistics, ParameterStatistics)
    return [row for row in before if not isinstance(row, measured) or row.step < step] + [
        row for row in after if isinstance(row, measured) and row.step >= step
    ]


def with_biases(rows: list[Row], rms: float, steps: Iterable[int] = SAMPLES) -> list[Row]:
    """The network with a bias of 64 entries in each Linear."""
    added: list[Row] = []
    for site in rows:
        if isinstance(site, Site) and site.operation == "Linear" and site.kind == "module":
            number = 500 + site.id
            added.append(Site(number, f"{site.name}.bias", "parameter", "Linear", None, site.position, None))
            added += [ParameterStatistics(number, step, 64, rms, 1e-3, 0.0, 0.0, 1e-6) for step in steps]
    return [*rows, *added]


def with_input(rows: list[Row], steps: Iterable[int] = SAMPLES, **values: float) -> list[Row]:
    """The network with an input of floating-point numbers."""
    site = Site(600, "input", "input", "float32", None, -1, None)
    return [*rows, site, *(statistics(600, "output", step, **values) for step in steps)]


def with_rates(rows: list[Row], before: float, after: float, step: int) -> list[Row]:
    """The network trained with a learning rate that jumps at `step`."""
    return [
        row._replace(learning_rate=before if row.step < step else after) if isinstance(row, Step) else row
        for row in rows
    ]


def weighing(rows: list[Row], rms: float, site: int | None = None) -> list[Row]:
    """The network with weights of this size: of 64 inputs a unit, so that 0.125 is a gain of one."""
    return [
        row._replace(rms=rms)
        if isinstance(row, ParameterStatistics) and row.elements == 4096 and site in (None, row.site)
        else row
        for row in rows
    ]
