"""The reader: a run file as NumPy arrays, while it is written, after it, and after a crash."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.errors import DesatError
from desat.record import doubt
from desat.record.histogram import unpack_histograms
from desat.record.opening import open_run_file
from desat.record.rows import Metric, ParameterStatistics, Site, Step, TensorStatistics
from desat.record.schema import FILE_NAME, stored_version

LARGEST_GRID = 2**25
"""Sites times sampled steps that are read at once, of which desat writes at most 1024."""

_NOT_NUMBERS = ("site", "quantity", "saturated_units", "histogram", "dtype")

Columns = dict[str, NDArray[np.float64]]
"""Arrays of one length by column name; NULL is nan."""


@dataclass(frozen=True)
class Grid:
    """One statistic: `values[i, j]` belongs to `sites[i]` and `steps[j]`, nan where it was not measured."""

    sites: tuple[Site, ...]
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


class Record:
    """A run, read from `path`: the run's directory or its run.sqlite.

    Everything is read afresh on each call, so a record of a live run shows what is there now. `information` holds
    what is known of the run as a whole. Raises DesatError where there is no run or it cannot be read, also where
    something else stands in it than desat writes. seconds: after these reading fails; without them it takes what it
    takes.
    """

    def __init__(self, path: str | Path, seconds: float | None = None) -> None:
        self.path = _find(Path(path))
        self._connection = open_run_file(self.path, seconds)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The name of the run: its directory's."""
        return self.path.resolve().parent.name

    @property
    @doubt.doubted
    def information(self) -> dict[str, Any]:
        return {
            doubt.text(key): json.loads(doubt.text(value)) for key, value in self._rows("SELECT key, value FROM run")
        }

    @doubt.doubted
    def sites(self, kind: str | None = None) -> tuple[Site, ...]:
        """The sites in order of execution, all or those of one kind."""
        rows = (doubt.site(row) for row in self._rows("SELECT * FROM site ORDER BY position, id"))
        return tuple(site for site in rows if kind in (None, site.kind))

    @doubt.doubted
    def steps(self, sampled: bool | None = None) -> Columns:
        """Columns of the table `step`; with `sampled=True` only the steps at which the sites were measured."""
        where = {None: "", True: " WHERE watching IS NOT NULL", False: " WHERE watching IS NULL"}[sampled]
        return _columns(self._rows(f"SELECT * FROM step{where} ORDER BY step"), Step._fields)

    @doubt.doubted
    def last_steps(self, number: int) -> Columns:
        """The newest `number` rows of the table `step`, oldest first."""
        rows = self._rows("SELECT * FROM step ORDER BY step DESC LIMIT ?", (number,))
        return _columns(rows[::-1], Step._fields)

    @doubt.doubted
    def last_sample(self, quantity: str) -> dict[int, TensorStatistics]:
        """One quantity of all sites at the newest sampled step, by the number of the site."""
        rows = self._rows(
            "SELECT tensor.* FROM site CROSS JOIN tensor ON tensor.site = site.id"
            " WHERE quantity = ? AND tensor.step = (SELECT max(step) FROM step WHERE watching IS NOT NULL)",
            (quantity,),
        )
        return {row[0]: doubt.statistics(row) for row in rows}

    @doubt.doubted
    def tensor(self, site: Site, quantity: str) -> Columns:
        """The series of one tensor of a site: columns of the table `tensor` that are numbers, by step."""
        names = [name for name in TensorStatistics._fields if name not in _NOT_NUMBERS]
        return _columns(
            self._rows(
                f"SELECT {', '.join(names)} FROM tensor WHERE site = ? AND quantity = ? ORDER BY step",
                (site.id, quantity),
            ),
            names,
        )

    @doubt.doubted
    def parameter(self, site: Site) -> Columns:
        """The series of one parameter: columns of the table `parameter`, by step."""
        names = ParameterStatistics._fields[1:]
        return _columns(
            self._rows(f"SELECT {', '.join(names)} FROM parameter WHERE site = ? ORDER BY step", (site.id,)), names
        )

    @doubt.doubted
    def histograms(
        self, site: Site, quantity: str, most: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps, and at each the counts of magnitudes: shape (steps, BINS), see desat.record.histogram.

        most: at most so many of the steps, evenly spread.
        """
        chosen, steps = self._chosen(site, quantity, most)
        rows = self._rows(
            f"SELECT step, histogram FROM tensor WHERE site = ? AND quantity = ?{chosen} ORDER BY step",
            (site.id, quantity, *steps),
        )
        counts = unpack_histograms([doubt.octets(packed) for _, packed in rows])
        return np.array([step for step, _ in rows], np.int64), counts

    @doubt.doubted
    def dtypes(self, site: Site, quantity: str) -> list[str | None]:
        """The dtype of one tensor of a site, at the steps of `tensor` and `histograms`; None where it is not known."""
        rows = self._rows("SELECT dtype FROM tensor WHERE site = ? AND quantity = ? ORDER BY step", (site.id, quantity))
        return [None if dtype is None else doubt.text(dtype) for (dtype,) in rows]

    @doubt.doubted
    def readings(self, site: Site) -> dict[str, Columns]:
        """Every other number measured at a site: by its name, columns `step` and `value`."""
        series: dict[str, list[tuple[int, float | None]]] = {}
        for name, step, value in self._rows("SELECT name, step, value FROM reading WHERE site = ?", (site.id,)):
            series.setdefault(doubt.text(name), []).append((step, value))
        return {name: _columns(rows, ("step", "value")) for name, rows in series.items()}

    @doubt.doubted
    def metrics(self) -> dict[str, Columns]:
        """What the script told of itself with desat.log: by name, columns `step`, `value` and `time`, by step.

        The names are in the order in which they came first; they are the script's text.
        """
        series: dict[str, list[tuple[int, float | None, float]]] = {}
        for name, *row in self._rows("SELECT name, step, value, time FROM metric ORDER BY step, time, name"):
            series.setdefault(doubt.text(name), []).append((row[0], row[1], row[2]))
        return {name: _columns(rows, Metric._fields[1:]) for name, rows in series.items()}

    @doubt.doubted
    def saturated_units(self, site: Site, most: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Steps, and for each step and unit whether the unit was saturated on every sample: shape (steps, units).

        most: at most so many of the steps, evenly spread.
        """
        chosen, steps = self._chosen(site, "input", most)
        rows = self._rows(
            "SELECT step, units, saturated_units FROM tensor"
            f" WHERE site = ? AND quantity = 'input' AND saturated_units IS NOT NULL{chosen} ORDER BY step",
            (site.id, *steps),
        )
        rows = [(step, *doubt.packed_units(units, bits)) for step, units, bits in rows]
        units = max((row[1] for row in rows), default=0)
        rows = [row for row in rows if row[1] == units]
        flags = [np.unpackbits(np.frombuffer(bits, np.uint8), count=units) for _, _, bits in rows]
        return (
            np.array([row[0] for row in rows], np.int64),
            np.array(flags, np.bool_).reshape(len(rows), units),
        )

    @doubt.doubted
    def grid(self, quantity: str, statistic: str, kind: str | None = None) -> Grid:
        """One statistic of one quantity (or of `parameter`s) over all sites and sampled steps."""
        fields = ParameterStatistics._fields if quantity == "parameter" else TensorStatistics._fields
        if statistic not in fields:
            raise DesatError(f"no statistic {statistic!r} of {quantity!r}: expected one of {', '.join(fields)}")
        if quantity == "parameter":
            rows = self._rows(f"SELECT site, step, {statistic} FROM parameter")
        else:
            rows = self._rows(f"SELECT site, step, {statistic} FROM tensor WHERE quantity = ?", (quantity,))
        table = np.array(rows, np.float64).reshape(len(rows), 3)
        numbers, steps = table[:, 0].astype(np.int64), np.unique(table[:, 1].astype(np.int64))
        measured = set(numbers.tolist())
        sites = tuple(site for site in self.sites(kind) if site.id in measured)
        if len(sites) * len(steps) > LARGEST_GRID:
            raise DesatError(f"{self.path} holds more than can be drawn: {len(sites)} sites at {len(steps)} steps")
        values = np.full((len(sites), len(steps)), np.nan)
        known, own = np.unique(numbers, return_inverse=True)
        place = {site.id: index for index, site in enumerate(sites)}
        of_site = np.array([place.get(number, -1) for number in known.tolist()], np.int64)[own]
        kept = of_site >= 0
        values[of_site[kept], np.searchsorted(steps, table[kept, 1])] = table[kept, 2]
        return Grid(sites, steps, values)

    def frame(self, table: str, library: str = "pandas") -> Any:
        """A table as a frame of `pandas` or `polars`: `site`, `step`, `tensor`, `parameter`, `reading` or `metric`.

        Columns are those of desat.record.rows, with the name of a site, its operation and its kind in place of its
        number. Integers stay integers, NULL is missing. Raises DesatError for another table or library, or one that is
        not installed.
        """
        from desat.record.frames import frame

        return frame(self, table, library)

    def query(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query of your own, in SQL; desat.record.schema has the tables. The file is open read-only.

        Raises DesatError where it cannot be answered.
        """
        return self._rows(sql, values)

    def batches(self, sql: str, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a query in lists of at most `size`, for tables that are large. Raises DesatError as `query`."""
        try:
            cursor = self._connection.execute(sql)
            while rows := cursor.fetchmany(size):
                yield rows
        except sqlite3.Error as error:
            text = " ".join(str(error).split())  # text of the file may be in it
            raise DesatError(f"{self.path} cannot be read: {text}") from error

    @cached_property
    def version(self) -> int:
        return stored_version(self._connection)

    def _chosen(self, site: Site, quantity: str, most: int | None) -> tuple[str, tuple[Any, ...]]:
        """A condition, and its values, for at most so many of a tensor's steps."""
        if most is None:
            return "", ()
        query = "SELECT step FROM tensor WHERE site = ? AND quantity = ? ORDER BY step"
        steps = [step for (step,) in self._rows(query, (site.id, quantity))]
        kept = tuple(steps[:: max(1, -(-len(steps) // most))])
        return f" AND step IN ({','.join('?' * len(kept))})", kept

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            text = " ".join(str(error).split())  # text of the file may be in it
            raise DesatError(f"{self.path} cannot be read: {text}") from error


def _columns(rows: list[tuple[Any, ...]], names: tuple[str, ...] | list[str]) -> Columns:
    table = np.array(rows, np.float64).reshape(len(rows), len(names))
    return {name: table[:, index] for index, name in enumerate(names)}


def _find(path: Path) -> Path:
    for candidate in (path, path / FILE_NAME):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise DesatError(f"no run in {path}: expected {FILE_NAME} in it, made by `desat run --run-dir {path} SCRIPT`")
    raise DesatError(f"no run at {path}: expected a run's folder or its {FILE_NAME}; `desat run SCRIPT` makes one")
