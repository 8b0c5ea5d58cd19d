"""Frames: a table of a record for pandas or polars."""

import importlib
from typing import Any

from desat.errors import DesatError
from desat.record.reader import Record
from desat.record.tables import Column, read_table

LIBRARIES = ("pandas", "polars")


def frame(record: Record, table: str, library: str = "pandas") -> Any:
    """One table as a frame; see Record.frame.

    Raises DesatError for a table or a library that is not known, or a library that is not installed.
    """
    if library not in LIBRARIES:
        raise DesatError(f"no frames of {library!r}: expected one of {', '.join(LIBRARIES)}")
    columns = read_table(record, table)
    try:
        module = importlib.import_module(library)
    except ImportError:
        raise DesatError(f"{library} is not installed: `pip install {library}`") from None
    make = _pandas_series if library == "pandas" else _polars_series
    return module.DataFrame({name: make(module, column) for name, column in columns.items()})


def _pandas_series(pandas: Any, column: Column) -> Any:
    """Of int64, of Int64 where some are missing, of float64 with nan, or of text with None."""
    if column.kind == "text":
        return pandas.Series(column.objects(), dtype="object" if pandas.__version__.startswith(("1.", "2.")) else "str")
    if column.kind == "whole" and column.missing is not None:
        return pandas.Series(pandas.arrays.IntegerArray(column.values, column.missing))
    return pandas.Series(column.values)


def _polars_series(polars: Any, column: Column) -> Any:
    """Of Int64, Float64 or String; what is missing is null."""
    dtype = {"text": polars.String, "whole": polars.Int64, "number": polars.Float64}[column.kind]
    if column.kind == "text":
        return polars.Series(column.objects().tolist(), dtype=dtype)
    series = polars.Series(column.values, dtype=dtype)
    if column.missing is None:
        return series
    return series.set(polars.Series(column.missing), None)
