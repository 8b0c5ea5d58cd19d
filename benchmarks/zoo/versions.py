"""Which desat made a record: digests, so that a result that is out of date can be told."""

import functools
import hashlib
import subprocess
from pathlib import Path

import desat

_SOURCE = Path(desat.__file__).resolve().parent
_MEASURING = ("watch", "record", "reference", "nonlinearity.py", "cli/run.py")
"""What has a part in a record. Rules and reports have none: they read it."""


def digest(text: str) -> str:
    """A short digest of a script's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def measured_by() -> str:
    """A digest of the code that makes records."""
    parts = [_SOURCE / name for name in _MEASURING]
    files = [path for part in parts for path in (sorted(part.rglob("*")) if part.is_dir() else [part])]
    total = hashlib.sha256()
    for path in files:
        if path.suffix in (".py", ".c"):
            total.update(path.relative_to(_SOURCE).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


@functools.cache
def commit() -> str:
    """The checkout's commit, with a plus sign where files differ from it; "unknown" outside of a checkout."""
    command = ["git", "-C", str(_SOURCE), "describe", "--always", "--dirty=+", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
