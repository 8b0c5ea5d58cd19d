"""Parquet: a file for each table of a run, typed, with the histograms of `tensor` as lists of counts."""

from typing import Any

import numpy as np

from desat.record.histogram import BINS
from desat.record.reader import Record
from desat.record.tables import Column, Table, read_histograms
from desat.show.export.exporter import Order, Tell
from desat.show.export.facts import facts_of
from desat.show.export.files import prepare, write_file
from desat.show.export.moments import Progress
from desat.show.export.tables import NAMES, all_tables


def export_parquet(record: Record, order: Order, tell: Tell) -> str:
    """Raises DesatError where a file is there already, or cannot be written."""
    import pyarrow
    from pyarrow import parquet

    prepare(order, [f"{name}.parquet" for name in NAMES])
    for done, (name, table) in enumerate(all_tables(record, facts_of(record)), start=1):
        arrays = {column: _array(pyarrow, values) for column, values in table.items()}
        if name == "tensor":
            arrays["histogram"] = _histograms(pyarrow, record, table)
        sink: Any = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table(arrays), sink)
        write_file(order.place / f"{name}.parquet", sink.getvalue().to_pybytes())
        tell(Progress(done, len(NAMES)))
    return str(order.place)


def _array(pyarrow: Any, column: Column) -> Any:
    kind = {"text": pyarrow.string(), "whole": pyarrow.int64(), "number": pyarrow.float64()}[column.kind]
    return pyarrow.array(column.values, type=kind, mask=column.missing)


def _histograms(pyarrow: Any, record: Record, table: Table) -> Any:
    """Lists of BINS counts, null where there is none. A live record may have grown since the table was read."""
    counts, known = read_histograms(record)
    rows = len(next(iter(table.values())).values)
    counts, known = counts[:rows], known[:rows]
    offsets = np.concatenate([[0], np.cumsum(known)]).astype(np.int32) * BINS
    values = pyarrow.array(counts[known].astype(np.uint16).ravel())
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets, mask=np.append(~known, False)), values)
