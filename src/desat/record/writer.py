"""The writer: a thread that takes rows from a bounded queue and commits them to the run file.

It never blocks and never raises into the training: where the queue is full, rows are dropped and counted; where the
disk fails, the writer says so once and ignores the rest.
"""

import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from desat.errors import DesatError
from desat.record.rows import Metric, ParameterStatistics, Reading, Row, Site, Step, TensorStatistics
from desat.record.schema import FILE_NAME, migrate
from desat.record.thinning import remove_samples, thinned

COMMIT_INTERVAL = 0.5
"""Seconds between commits: a killed process loses at most this much, plus the time of one commit."""

QUEUE_SIZE = 256
"""Batches of rows that wait for the disk; one batch is one sampled step."""

RowMaker = Callable[[], Iterable[Row]]

_logger = logging.getLogger("desat")
_INSERTS = {
    row: f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row._fields))})"
    for row, table in (
        (Site, "site"),
        (Step, "step"),
        (TensorStatistics, "tensor"),
        (ParameterStatistics, "parameter"),
        (Reading, "reading"),
        (Metric, "metric"),
    )
}
_INFORMATION = "INSERT OR REPLACE INTO run VALUES (?, ?)"


class RecordWriter:
    """Writes one run to `directory/run.sqlite`. `seconds` is the processor time that its thread has taken so far.

    Raises DesatError where the directory cannot be made or written, or holds a run already.
    """

    def __init__(self, directory: Path, *, overwrite: bool = False) -> None:
        self.path = directory / FILE_NAME
        self.dropped = 0
        self._sampled: list[int] = []
        self.failure: str | None = None
        self.seconds = 0.0
        _prepare(directory, self.path, overwrite)
        self._queue: queue.Queue[RowMaker | dict[str, Any] | None] = queue.Queue(QUEUE_SIZE)
        self._thread = threading.Thread(target=self._write_until_closed, name="desat-record", daemon=True)
        self._thread.start()

    def put(self, rows: RowMaker) -> bool:
        """Hand over a function that the writer's thread calls for rows.

        False if they were dropped because the disk is behind or has failed.
        """
        return self._offer(rows)

    def note(self, **information: Any) -> bool:
        """Store facts on the run (JSON values) under their names, replacing earlier ones."""
        return self._offer(information)

    def close(self, timeout: float = 10.0) -> None:
        """Write what is queued and turn the record into one plain file."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _offer(self, item: RowMaker | dict[str, Any]) -> bool:
        if self.failure is None:
            try:
                self._queue.put_nowait(item)
                return True
            except queue.Full:
                pass
        self.dropped += 1
        return False

    def _write_until_closed(self) -> None:
        try:
            connection = sqlite3.connect(self.path, isolation_level=None)
            try:
                connection.execute("PRAGMA synchronous = NORMAL")
                while self._write_batch(connection):
                    pass
                _fold_into_one_file(connection)
            finally:
                connection.close()
        except Exception as error:  # the disk, or what a row maker raised: neither may reach the training
            self.failure = str(error)
            _logger.warning("desat: the record %s ends here, the training goes on: %s", self.path, error)

    def _write_batch(self, connection: sqlite3.Connection) -> bool:
        """Commit what comes within one interval; False once the writer is closed."""
        items = [self._queue.get()]
        deadline = time.monotonic() + COMMIT_INTERVAL
        while items[-1] is not None:
            try:
                items.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        connection.execute("BEGIN")
        for item in items:
            if isinstance(item, dict):
                connection.executemany(_INFORMATION, [(key, json.dumps(value)) for key, value in item.items()])
            elif item is not None:
                rows: dict[type[Row], list[Any]] = {kind: [] for kind in _INSERTS}
                for row in item():
                    rows[type(row)].append(row)
                for kind, insert in _INSERTS.items():
                    connection.executemany(insert, rows[kind])
                self._sampled += [step.step for step in rows[Step] if step.watching is not None]
                self._sampled, gone = thinned(self._sampled)
                if gone:
                    remove_samples(connection, gone)
        connection.execute("COMMIT")
        self.seconds = time.thread_time()
        return items[-1] is not None


def _prepare(directory: Path, path: Path, overwrite: bool) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if path.exists() and not overwrite:
            raise DesatError(f"{directory} holds a run already: choose another --run-dir, or pass --overwrite")
        for leftover in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            leftover.unlink(missing_ok=True)
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            migrate(connection)
        finally:
            connection.close()
    except KeyboardInterrupt:
        path.unlink(missing_ok=True)  # half of a file: no record
        raise
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DesatError(
            f"cannot write the record to {directory}: {reason}; choose a writable folder with --run-dir"
        ) from error


def _fold_into_one_file(connection: sqlite3.Connection) -> None:
    """Fold the write-ahead log into the file, so that it can be copied and read from a read-only place.

    A reader that is just looking keeps the log alive; then the file stays as it is, complete and readable.
    """
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError:
        pass
