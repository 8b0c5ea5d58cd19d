"""The tables of a record as typed columns: what frames and files are made of.

The names of sites stand in place of their numbers, with what the sites do. Of the units that were saturated on every
sample there is the number, not the flags (see Record.saturated_units), and histograms are apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from desat.errors import DesatError
from desat.record.histogram import unpack_histograms
from desat.record.opening import COLUMNS as STORED
from desat.record.reader import Record

Kind = Literal["whole", "number", "text"]


@dataclass(frozen=True)
class Column:
    """One column: int64, float64 or objects that are str. missing: where the record has NULL; None for nowhere.

    Where a value is missing, `values` holds 0, nan or "".
    """

    kind: Kind
    values: NDArray[Any]
    missing: NDArray[np.bool_] | None = None

    def objects(self) -> NDArray[np.object_]:
        """The values as Python's own, None where they are missing."""
        values = self.values.astype(np.object_)
        if self.missing is not None:
            values[self.missing] = None
        return values


Table = dict[str, Column]

_TEXT = frozenset(("name", "kind", "operation", "source", "curve", "quantity", "dtype"))
_WHOLE = frozenset(("step", "calls", "elements", "units", "saturated_units", "position"))

COLUMNS = {
    table: tuple(name for name in names if name not in ("id", "histogram"))
    for table, names in STORED.items()
    if table != "run"
}
"""The tables and their columns, as desat.record.rows explains them; `site` becomes the columns of SITE_COLUMNS."""

SITE_COLUMNS = ("site", "operation", "kind")
"""What stands in place of a site's number: its name, what it does, and its kind."""

BATCH = 1024
"""Rows that are read at once: beyond some thousand, Python's collector looks through them time and again."""

_ORDER = {
    "site": "position, id",
    "step": "step",
    "tensor": "site, quantity, step",
    "parameter": "site, step",
    "reading": "site, name, step",
    "metric": "name, step",
}


def read_table(record: Record, name: str) -> Table:
    """One table by its columns, in the order of its key; sites in order of execution.

    Raises DesatError for a table that does not exist, and where a column holds what it cannot hold.
    """
    if name not in COLUMNS:
        raise DesatError(f"no table {name!r} in a record: expected one of {', '.join(COLUMNS)}")
    names = COLUMNS[name]
    pieces: list[list[NDArray[Any]]] = [[_array(column, ()) for column in names]]
    column = ""
    try:
        for batch in record.batches(_select(name, names), BATCH):
            stored = zip(*batch, strict=True)
            pieces.append([_array(column := one, values) for one, values in zip(names, stored, strict=True)])
    except (TypeError, ValueError, OverflowError) as error:
        raise DesatError(f"{record.path} cannot be read: column {column} of {name}: {error}") from error
    table: Table = {}
    for column, arrays in zip(names, zip(*pieces, strict=True), strict=True):
        whole = np.concatenate(arrays)
        table |= _sites(record, whole) if column == "site" else {column: _column(column, whole)}
    return table


def read_histograms(record: Record) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The histograms of the table `tensor`, row by row: counts of shape (rows, BINS), and whether there is one."""
    packed = [row[0] for batch in record.batches(_select("tensor", ("histogram",)), BATCH) for row in batch]
    return unpack_histograms(packed), np.array([one is not None for one in packed], np.bool_)


def _select(table: str, names: Sequence[str]) -> str:
    return f"SELECT {', '.join(names)} FROM {table} ORDER BY {_ORDER[table]}"


def _array(column: str, values: tuple[Any, ...]) -> NDArray[Any]:
    """Values as they are stored: text as objects; numbers, and whole ones of which some are NULL, as float64."""
    if column in _TEXT:
        return np.array(values, np.object_)
    if column == "saturated_units":
        return _numbers_of_bits(values)
    if column == "site" or (column in _WHOLE and None not in values):
        return np.array(values, np.int64)
    return np.array(values, np.float64)


def _column(name: str, values: NDArray[Any]) -> Column:
    if name in _TEXT:
        missing = np.array([value is None for value in values.tolist()], np.bool_)
        return Column("text", np.where(missing, "", values), missing) if missing.any() else Column("text", values)
    if values.dtype == np.int64:
        return Column("whole", values)
    missing = np.isnan(values)  # SQLite has no nan: it is what NULL became
    if name in _WHOLE:
        return Column("whole", np.where(missing, 0.0, values).astype(np.int64), missing if missing.any() else None)
    return Column("number", values, missing if missing.any() else None)


def _sites(record: Record, wanted: NDArray[np.int64]) -> Table:
    """The name, the operation and the kind of the site of each row; missing where there is no such site."""
    known = record.query("SELECT id, name, operation, kind FROM site ORDER BY id")
    ids = np.array([row[0] for row in known], np.int64)
    place = np.searchsorted(ids, wanted)
    found = place < len(ids)
    found[found] = ids[place[found]] == wanted[found]
    place = np.where(found, place, len(ids))
    missing = None if found.all() else ~found
    return {
        column: Column("text", np.array([*(row[index] for row in known), ""], np.object_)[place], missing)
        for index, column in enumerate(SITE_COLUMNS, start=1)
    }


def _numbers_of_bits(packed: tuple[Any, ...]) -> NDArray[np.float64]:
    """How many bits are set in each row's bytes; nan where there are none."""
    counts = np.array([np.nan if one is None else 0.0 for one in packed], np.float64)
    filled = [one for one in packed if one]
    if filled:
        bits = np.unpackbits(np.frombuffer(b"".join(filled), np.uint8)).reshape(-1, 8).sum(axis=1, dtype=np.int64)
        starts = np.cumsum([0, *map(len, filled[:-1])])
        counts[[bool(one) for one in packed]] = np.add.reduceat(bits, starts)
    return counts
