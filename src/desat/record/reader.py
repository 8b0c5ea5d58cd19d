"""The reader: a run file as NumPy arrays, while it is written, after it, and after a crash."""

import json
import sqlite3
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.errors import DesatError
from desat.record.histogram import BINS, unpack_histogram
from desat.record.rows import Metric, ParameterStatistics, Site, Step, TensorStatistics
from desat.record.schema import APPLICATION_ID, FILE_NAME, VERSION, migrate, stored_version

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
    what is known of the run as a whole. Raises DesatError where there is no run or it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _find(Path(path))
        self._connection = _open(self.path)

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
    def information(self) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM run")}

    def sites(self, kind: str | None = None) -> tuple[Site, ...]:
        """The sites in order of execution, all or those of one kind."""
        rows = (Site(*row) for row in self._rows("SELECT * FROM site ORDER BY position, id"))
        return tuple(site for site in rows if kind in (None, site.kind))

    def steps(self, sampled: bool | None = None) -> Columns:
        """Columns of the table `step`; with `sampled=True` only the steps at which the sites were measured."""
        where = {None: "", True: " WHERE watching IS NOT NULL", False: " WHERE watching IS NULL"}[sampled]
        return _columns(self._rows(f"SELECT * FROM step{where} ORDER BY step"), Step._fields)

    def last_steps(self, number: int) -> Columns:
        """The newest `number` rows of the table `step`, oldest first."""
        rows = self._rows("SELECT * FROM step ORDER BY step DESC LIMIT ?", (number,))
        return _columns(rows[::-1], Step._fields)

    def last_sample(self, quantity: str) -> dict[int, TensorStatistics]:
        """One quantity of all sites at the newest sampled step, by the number of the site."""
        rows = self._rows(
            "SELECT tensor.* FROM site CROSS JOIN tensor ON tensor.site = site.id"
            " WHERE quantity = ? AND tensor.step = (SELECT max(step) FROM step WHERE watching IS NOT NULL)",
            (quantity,),
        )
        return {row[0]: TensorStatistics(*row) for row in rows}

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

    def parameter(self, site: Site) -> Columns:
        """The series of one parameter: columns of the table `parameter`, by step."""
        names = ParameterStatistics._fields[1:]
        return _columns(
            self._rows(f"SELECT {', '.join(names)} FROM parameter WHERE site = ? ORDER BY step", (site.id,)), names
        )

    def histograms(self, site: Site, quantity: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps, and at each the counts of magnitudes: shape (steps, BINS), see desat.record.histogram."""
        rows = self._rows(
            "SELECT step, histogram FROM tensor WHERE site = ? AND quantity = ? ORDER BY step", (site.id, quantity)
        )
        counts = [unpack_histogram(packed) for _, packed in rows]
        return np.array([step for step, _ in rows], np.int64), np.array(counts).reshape(len(rows), BINS)

    def dtypes(self, site: Site, quantity: str) -> list[str | None]:
        """The dtype of one tensor of a site, at the steps of `tensor` and `histograms`; None where it is not known."""
        rows = self._rows("SELECT dtype FROM tensor WHERE site = ? AND quantity = ? ORDER BY step", (site.id, quantity))
        return [dtype for (dtype,) in rows]

    def readings(self, site: Site) -> dict[str, Columns]:
        """Every other number measured at a site: by its name, columns `step` and `value`."""
        series: dict[str, list[tuple[int, float | None]]] = {}
        for name, step, value in self._rows("SELECT name, step, value FROM reading WHERE site = ?", (site.id,)):
            series.setdefault(name, []).append((step, value))
        return {name: _columns(rows, ("step", "value")) for name, rows in series.items()}

    def metrics(self) -> dict[str, Columns]:
        """What the script told of itself with desat.log: by name, columns `step`, `value` and `time`, by step.

        The names are in the order in which they came first; they are the script's text.
        """
        series: dict[str, list[tuple[int, float | None, float]]] = {}
        for name, *row in self._rows("SELECT name, step, value, time FROM metric ORDER BY step, time, name"):
            series.setdefault(name, []).append((row[0], row[1], row[2]))
        return {name: _columns(rows, Metric._fields[1:]) for name, rows in series.items()}

    def saturated_units(self, site: Site) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Steps, and for each step and unit whether the unit was saturated on every sample: shape (steps, units)."""
        rows = self._rows(
            "SELECT step, units, saturated_units FROM tensor"
            " WHERE site = ? AND quantity = 'input' AND saturated_units IS NOT NULL ORDER BY step",
            (site.id,),
        )
        units = max((row[1] for row in rows), default=0)
        rows = [row for row in rows if row[1] == units]
        flags = [np.unpackbits(np.frombuffer(bits, np.uint8), count=units) for _, _, bits in rows]
        return (
            np.array([row[0] for row in rows], np.int64),
            np.array(flags, np.bool_).reshape(len(rows), units),
        )

    def grid(self, quantity: str, statistic: str, kind: str | None = None) -> Grid:
        """One statistic of one quantity (or of `parameter`s) over all sites and sampled steps."""
        fields = ParameterStatistics._fields if quantity == "parameter" else TensorStatistics._fields
        if statistic not in fields:
            raise DesatError(f"no statistic {statistic!r} of {quantity!r}: expected one of {', '.join(fields)}")
        if quantity == "parameter":
            rows = self._rows(f"SELECT site, step, {statistic} FROM parameter")
        else:
            rows = self._rows(f"SELECT site, step, {statistic} FROM tensor WHERE quantity = ?", (quantity,))
        measured = {row[0] for row in rows}
        sites = tuple(site for site in self.sites(kind) if site.id in measured)
        steps = np.unique(np.array([row[1] for row in rows], np.int64))
        values = np.full((len(sites), len(steps)), np.nan)
        place = {site.id: index for index, site in enumerate(sites)}
        for site_id, step, value in rows:
            if site_id in place and value is not None:
                values[place[site_id], np.searchsorted(steps, step)] = value
        return Grid(sites, steps, values)

    @cached_property
    def version(self) -> int:
        return stored_version(self._connection)

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DesatError(f"{self.path} cannot be read: {error}") from error


def _lifted(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A copy of an older file in memory, lifted to this version; the file itself stays as it is."""
    memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    connection.backup(memory)
    connection.close()
    migrate(memory)
    return memory


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


def _open(path: Path) -> sqlite3.Connection:
    """Open read-only; a file in a folder that takes no write-ahead log is opened as it lies there."""
    message = ""
    for options in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, check_same_thread=False)
        try:
            version = stored_version(connection)
            is_run = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            if is_run and version == VERSION:
                return connection
            if is_run and version:
                return _lifted(connection)
            message = f"a record of version {version}" if is_run else "not a run file of desat"
            connection.close()
            break
        except sqlite3.Error as error:
            message = str(error)
            connection.close()
        except DesatError as error:
            connection.close()
            raise DesatError(f"{path}: {error}") from None
    raise DesatError(f"{path} cannot be read: {message}; expected a file written by `desat run`")
