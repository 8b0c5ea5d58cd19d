"""A run's folder: its name, and the opening of its record."""

import contextlib
import datetime
import json
import os
import platform
import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import Any

from desat.record.reader import Record
from desat.record.writer import RecordWriter

RUNS = Path("desat-runs")
"""Where runs are kept, below the working directory, unless the user says otherwise."""


def new_directory(name: str) -> Path:
    """A folder for a new run of this name, which does not exist yet: `desat-runs/<name>-<date>-<time>`."""
    stem = f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    candidate, number = RUNS / stem, 2
    while candidate.exists():
        candidate, number = RUNS / f"{stem}-{number}", number + 1
    return candidate


def open_run(directory: Path, *, overwrite: bool = False, **information: Any) -> RecordWriter:
    """A new record in `directory`, with what is known before the training starts."""
    writer = RecordWriter(directory, overwrite=overwrite)
    writer.note(
        status="running",
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        desat=version("desat"),
        python=platform.python_version(),
        process=os.getpid(),
        **information,
    )
    return writer


def annotate(directory: Path, **information: Any) -> None:
    """Add facts (JSON values) to a finished run."""
    with Record(directory) as record:
        path = record.path
    connection = sqlite3.connect(path)
    with contextlib.closing(connection), connection:
        connection.executemany(
            "INSERT OR REPLACE INTO run VALUES (?, ?)", [(key, json.dumps(value)) for key, value in information.items()]
        )
