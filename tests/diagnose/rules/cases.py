"""Cases for the tests of rules: a record made by hand, and a training that went as the test says."""

from collections.abc import Iterable
from pathlib import Path

from desat.diagnose.finding import Finding
from desat.diagnose.learning import Learning
from desat.diagnose.rule import Case, Rule
from desat.record.rows import ParameterStatistics, Row, TensorStatistics
from tests.records import write_record

HARMED = Learning("stalled", 300, 2.3, 2.3, 0.0, 0.0, 0)
LEARNED = Learning("learning", 300, 2.3, 0.1, 0.95, 0.9)
HALF_WAY = Learning("learning", 300, 2.3, 1.0, 0.56, 0.5)
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
