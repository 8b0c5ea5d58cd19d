"""The schema of the run file, its version, and the way from older versions to it.

The version is `PRAGMA user_version`. A migration is one SQL script that lifts a file by one version; a new file gets
them all in turn, so that there is one description of the schema and not two.
"""

import sqlite3

from desat.errors import DesatError

FILE_NAME = "run.sqlite"
APPLICATION_ID = 0x64657361  # "desa", so that `file` and desat itself tell a run from any other SQLite file

MIGRATIONS = (
    """
    CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;  -- value is JSON
    CREATE TABLE site (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, operation TEXT NOT NULL,
        source TEXT, position INTEGER NOT NULL, curve TEXT
    );
    CREATE TABLE step (
        step INTEGER PRIMARY KEY, time REAL NOT NULL, loss REAL, learning_rate REAL, watching REAL
    );
    CREATE TABLE tensor (
        site INTEGER NOT NULL, quantity TEXT NOT NULL, step INTEGER NOT NULL,
        calls INTEGER NOT NULL, elements INTEGER NOT NULL,
        mean REAL, rms REAL, minimum REAL, maximum REAL, zeros REAL, nonfinite REAL,
        saturated_low REAL, saturated_high REAL, gain REAL, units INTEGER, saturated_units BLOB,
        PRIMARY KEY (site, quantity, step)
    ) WITHOUT ROWID;
    CREATE TABLE parameter (
        site INTEGER NOT NULL, step INTEGER NOT NULL, elements INTEGER NOT NULL,
        rms REAL, gradient_rms REAL, gradient_zeros REAL, gradient_nonfinite REAL, update_rms REAL,
        PRIMARY KEY (site, step)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE tensor ADD COLUMN histogram BLOB;
    CREATE TABLE reading (
        site INTEGER NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL, value REAL,
        PRIMARY KEY (site, name, step)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE tensor ADD COLUMN dtype TEXT;
    ALTER TABLE parameter ADD COLUMN unchanged REAL;
    """,
    """
    CREATE TABLE metric (
        name TEXT NOT NULL, step INTEGER NOT NULL, value REAL, time REAL NOT NULL,
        PRIMARY KEY (name, step)
    ) WITHOUT ROWID;
    """,
)
VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection) -> None:
    """Lift an open, writable file to this version; an empty file becomes a run file."""
    version = stored_version(connection)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(
            f"BEGIN; {script} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT;"
        )


def stored_version(connection: sqlite3.Connection) -> int:
    """The version of a run file, 0 for an empty one.

    Raises DesatError for a version newer than this desat knows.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise DesatError(
            f"the record has version {version}, this desat reads up to {VERSION}: upgrade with `pip install -U desat`"
        )
    return version
