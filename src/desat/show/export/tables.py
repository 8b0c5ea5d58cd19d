"""All tables of a run, those of its record and one of its findings, as columns for files."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from desat.diagnose.finding import Diagnosis, Finding
from desat.record.reader import Record
from desat.record.tables import COLUMNS, Column, Table, read_table
from desat.show.export.facts import Facts

NAMES = ("run", *COLUMNS, "finding")
"""The tables that are written: the facts on the run, the tables of the record, the findings."""

_FINDING_TEXT = ("severity", "code", "site", "source", "cause", "message")


def all_tables(record: Record, facts: Facts) -> Iterator[tuple[str, Table]]:
    """Each of NAMES with its columns."""
    yield "run", _information(facts)
    for name in COLUMNS:
        yield name, read_table(record, name)
    yield "finding", finding_table(facts.diagnosis)


def finding_table(diagnosis: Diagnosis | None) -> Table:
    """The findings, a row each, the first to fix first; lists and evidence as JSON."""
    found: tuple[Finding, ...] = diagnosis.findings if diagnosis is not None else ()
    table = {name: _text([getattr(one, name) for one in found]) for name in _FINDING_TEXT}
    table |= {
        name: Column("whole", np.array([getattr(one, name) for one in found], np.int64))
        for name in ("first_step", "last_step")
    }
    table["confidence"] = Column("number", np.array([one.confidence for one in found], np.float64))
    table["sites"] = _text([_json(list(one.sites)) for one in found])
    table["remedies"] = _text([_json(list(one.remedies)) for one in found])
    table["evidence"] = _text([_json(one.evidence) for one in found])
    return table


def _information(facts: Facts) -> Table:
    known = facts.information
    return {"key": _text(list(known)), "value": _text([_json(value) for value in known.values()])}


def _text(values: list[Any]) -> Column:
    missing = np.array([value is None for value in values], np.bool_)
    text = np.array(["" if value is None else str(value) for value in values], np.object_)
    return Column("text", text, missing if missing.any() else None)


def _json(value: Any) -> str:
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """A value in which numbers that JSON has no word for, nan and infinity, are None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
