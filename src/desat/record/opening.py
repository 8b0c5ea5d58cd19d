"""The opening of a run file that may be anybody's: read-only, and refused where it is not what desat writes."""

import sqlite3
import time
from pathlib import Path

from desat.errors import DesatError
from desat.record.rows import Metric, ParameterStatistics, Reading, Site, Step, TensorStatistics
from desat.record.schema import APPLICATION_ID, VERSION, migrate, stored_version

COLUMNS = {
    "run": ("key", "value"),
    "site": Site._fields,
    "step": Step._fields,
    "tensor": TensorStatistics._fields,
    "parameter": ParameterStatistics._fields,
    "reading": Reading._fields,
    "metric": Metric._fields,
}
"""The tables of a run file and their columns, in order."""

LARGEST_VALUE = 2**24
"""Bytes of one text or blob. The largest that desat writes are the flags of a tensor's units, one bit for each."""

LARGEST_LIFTED = 2**31
"""Bytes of a file of an older version, which is copied to memory to be read."""

_INSTRUCTIONS = 20_000
"""Of SQLite's machine between two looks at the clock: well under a millisecond."""

_TABLES = (
    "SELECT made.name, made.sql, own.name, own.hidden FROM sqlite_schema AS made, pragma_table_xinfo(made.name) AS own"
    " WHERE made.type = 'table' ORDER BY made.name, own.cid"
)

_GUARDS = "PRAGMA trusted_schema = OFF; PRAGMA query_only = ON; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;"


def open_run_file(path: Path, seconds: float | None = None) -> sqlite3.Connection:
    """Open read-only; a file in a folder that takes no write-ahead log is opened as it lies there.

    seconds: after these, from now, what is asked of the connection fails. Raises DesatError where the file cannot be
    read, or its tables are not those of a run.
    """
    message = ""
    for options in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, check_same_thread=False)
        try:
            _guard(connection, seconds)
            version = stored_version(connection)
            is_run = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            if is_run and version:
                if version != VERSION:
                    connection = _lifted(connection, path, seconds)
                _check_tables(connection)
                return connection
            message = f"a record of version {version}" if is_run else "not a run file of desat"
            connection.close()
            break
        except sqlite3.Error as error:
            message = " ".join(str(error).split())  # text of the file may be in it
            connection.close()
        except DesatError as error:
            connection.close()
            raise DesatError(f"{path}: {error}") from None
    raise DesatError(f"{path} cannot be read: {message}; expected a file written by `desat run`")


def _guard(connection: sqlite3.Connection, seconds: float | None) -> None:
    """Nothing in the file's schema is run that could do harm, and nothing for longer than is allowed."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1)
    if seconds is not None:
        deadline = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS)
    connection.executescript(_GUARDS)


def _check_tables(connection: sqlite3.Connection) -> None:
    """Raise DesatError where a table is missing, is a view or a virtual table, or has other columns."""
    found: dict[str, tuple[str, list[tuple[str, int]]]] = {}
    for table, made, column, hidden in connection.execute(_TABLES):
        found.setdefault(table, (str(made), []))[1].append((column, hidden))
    for table, columns in COLUMNS.items():
        made, own = found.get(table, ("", []))
        if not made.upper().startswith("CREATE TABLE"):
            raise DesatError(f"it has no table {table}; expected a file written by `desat run`")
        if own != [(column, 0) for column in columns]:
            raise DesatError(f"its table {table} has other columns than `desat run` writes")


def _lifted(connection: sqlite3.Connection, path: Path, seconds: float | None) -> sqlite3.Connection:
    """A copy of an older file in memory, lifted to this version; the file itself stays as it is."""
    if path.stat().st_size > LARGEST_LIFTED:
        raise DesatError(f"of an older version and larger than {LARGEST_LIFTED:,} bytes: it cannot be read")
    memory = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    try:
        connection.backup(memory)
        connection.close()
        migrate(memory)
        _guard(memory, seconds)
    except BaseException:
        memory.close()
        raise
    return memory
