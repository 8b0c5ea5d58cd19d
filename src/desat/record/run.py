"""A run's folder: its name, and the opening of its record."""

import contextlib
import datetime
import json
import math
import platform
import sqlite3
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from desat.errors import DesatError
from desat.record.process import identity, is_gone
from desat.record.reader import Record
from desat.record.schema import FILE_NAME
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
    opening = {
        "status": "running",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "desat": version("desat"),
        "python": platform.python_version(),
    }
    known = opening | identity() | information
    writer = RecordWriter(directory, overwrite=overwrite)
    writer.note(**known)
    return writer


def state(information: dict[str, Any]) -> str:
    """How the run stands, from the facts of its record: running, finished, failed, interrupted, killed or unknown.

    A training that was killed leaves `running` in its record; it is `killed` if its process has ended on this host.
    """
    told = str(information.get("status") or "unknown")
    return "killed" if told == "running" and is_gone(information) else told


@dataclass(frozen=True)
class Listed:
    """A run of a folder, as a list tells it. loss: the last; problem: why its record cannot be read, None if it can."""

    name: str
    script: str = ""
    status: str = ""
    started: str = ""
    steps: int = 0
    loss: float | None = None
    problem: str | None = None

    def document(self) -> dict[str, Any]:
        """For JSON, in which a loss that is no number is null."""
        told = asdict(self)
        return told | {"loss": self.loss if self.loss is not None and math.isfinite(self.loss) else None}


def list_runs(folder: Path) -> list[Listed]:
    """The runs in a folder, the newest first; a broken record is listed with its problem, at the end."""
    found = [_listed(path.parent) for path in folder.glob(f"*/{FILE_NAME}")]
    return sorted(found, key=lambda run: (run.problem is None, run.started, run.name), reverse=True)


def folders_of_runs(folder: Path) -> list[str]:
    """Names of the folders in this one that hold runs themselves, as those of `desat demo` do."""
    return sorted({path.parent.parent.name for path in folder.glob(f"*/*/{FILE_NAME}")})


def _listed(directory: Path) -> Listed:
    try:
        with Record(directory) as record:
            information = record.information
            facts = {name: str(information.get(name, "")) for name in ("script", "started")}
            last = record.last_steps(1)
            steps = int(last["step"][-1]) + 1 if len(last["step"]) else 0
            loss = float(last["loss"][-1]) if steps else None
            return Listed(directory.name, **facts, status=state(information), steps=steps, loss=loss)
    except (DesatError, sqlite3.Error, ValueError, TypeError) as error:
        return Listed(directory.name, problem=" ".join(str(error).split()))


def annotate(directory: Path, **information: Any) -> None:
    """Add facts (JSON values) to a finished run."""
    with Record(directory) as record:
        path = record.path
    connection = sqlite3.connect(path)
    with contextlib.closing(connection), connection:
        connection.executemany(
            "INSERT OR REPLACE INTO run VALUES (?, ?)", [(key, json.dumps(value)) for key, value in information.items()]
        )
