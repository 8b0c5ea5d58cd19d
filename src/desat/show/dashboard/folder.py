"""The runs of a folder, looked at cheaply and often: what has not changed on the disk is not read again.

Nothing outside of the folder is opened: a name is only ever one of the folder's own listing, and a link that leads
out of it is told and not followed.
"""

import os
import stat
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from desat.errors import DesatError
from desat.record import kept_cure
from desat.record.reader import Record
from desat.record.run import folders_of_runs, state
from desat.record.schema import FILE_NAME

LOOK_SECONDS, SECONDS = 2.0, 120.0
"""So long reading may take for a look, which takes a millisecond or two, and for what is shown of a run, which takes up
to ten for one of hundreds of layers, and more on a machine that is busy with the training."""

MOST_SITES = 20_000
"""Sites of a run that is shown; a network of billions of parameters has hundreds."""

SPARK_POINTS = 40
"""Losses of which the small curve of a run in the list is drawn."""

LONGEST_FACT, LONGEST_PROBLEM = 300, 300
"""Characters of a fact, and of what is wrong, that are shown."""

FRESH = 0.4
"""Seconds for which a listing of the folder is taken as it was."""

_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite opens beside a file."""


class NotThereError(DesatError):
    """The folder has no run of this name."""


@dataclass(frozen=True)
class Look:
    """What a run is seen to be, at a glance.

    name: of its folder. step: the newest, -1 for none; sampled: the newest at which the sites were measured.
    spark: some losses, evenly spaced, for a small curve. problem: why it cannot be read, None where it can.
    """

    name: str
    script: str = ""
    state: str = ""
    started: str = ""
    step: int = -1
    sampled: int = -1
    loss: float | None = None
    spark: tuple[float, ...] = ()
    problem: str | None = None

    @property
    def is_live(self) -> bool:
        return self.state == "running"

    @property
    def version(self) -> tuple[Any, ...]:
        """Another one means that something else is to be shown."""
        return self.state, self.step, self.sampled, self.problem


@dataclass(frozen=True)
class _Seen:
    signature: tuple[int, ...]
    look: Look
    information: dict[str, Any]


class Folder:
    """The folder `path`. All methods may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()
        self._listed: tuple[float, tuple[Look, ...]] = (-FRESH, ())

    def looks(self) -> tuple[Look, ...]:
        """All runs, the newest first; those that cannot be read are at the end."""
        with self._lock:
            moment, looks = self._listed
            if time.monotonic() - moment < FRESH:
                return looks
            names = self._names(FILE_NAME)
            self._seen = {name: seen for name, seen in self._seen.items() if name in names}
            found = [self._look(name) for name in names]
            looks = tuple(sorted(found, key=lambda look: (look.problem is None, look.started, look.name), reverse=True))
            self._listed = (time.monotonic(), looks)
            return looks

    def look(self, name: str) -> Look:
        """One run. Raises NotThereError where there is none of this name."""
        self.directory(name)
        with self._lock:
            return self._look(name)

    def newest(self) -> str | None:
        """The name of the run that began last."""
        return next((look.name for look in self.looks() if look.problem is None), None)

    def directory(self, name: str) -> Path:
        """The folder of a run. Raises NotThereError where there is none of this name."""
        return self._directory(name, FILE_NAME, "run")

    def record(self, name: str, seconds: float = SECONDS) -> Record:
        """The record of a run, to be closed by the caller; reading fails after `seconds`.

        Raises NotThereError where there is none of this name, DesatError where it cannot be read.
        """
        return _open(self.path, self.directory(name), seconds)

    def kept_cures(self) -> list[str]:
        """Names of folders that hold what `desat cure --keep` has left."""
        return self._names(kept_cure.FILE_NAME)

    def folders(self) -> list[str]:
        """Names of folders in this one that hold runs themselves: those are not shown, and told of."""
        return folders_of_runs(self.path)

    def kept_cure(self, name: str) -> dict[str, Any]:
        """The result of a search. Raises NotThereError where there is none of this name, DesatError where it is bad."""
        path = self._directory(name, kept_cure.FILE_NAME, "search for a cure") / kept_cure.FILE_NAME
        check_inside(self.path, path)
        return kept_cure.read_kept(path)

    def told(self, error: BaseException) -> str:
        """What is wrong, in a line. Text of a record may be in it: it is to be escaped."""
        text = " ".join(str(error).split()).replace(f"{self.path}/", "")
        whole = text if isinstance(error, DesatError) else f"it cannot be shown: {type(error).__name__} {text}"
        return whole if len(whole) <= LONGEST_PROBLEM else f"{whole[:LONGEST_PROBLEM]}…"

    def _directory(self, name: str, file: str, what: str) -> Path:
        if name not in self._names(file):
            raise NotThereError(f"there is no {what} of this name in the folder")
        return self.path / name

    def _names(self, file: str) -> list[str]:
        try:
            with os.scandir(self.path) as entries:
                return sorted(
                    entry.name for entry in entries if entry.is_dir() and os.path.lexists(f"{entry.path}/{file}")
                )
        except OSError as error:
            raise DesatError(f"the folder {self.path} cannot be read: {error.strerror}") from error

    def _look(self, name: str) -> Look:
        """The one boundary for what is wrong with one run: whatever it is, it is told in the run's row."""
        directory = self.path / name
        if not is_addressable(name):
            return Look(name, problem="the name of its folder is no text: no address can tell it")
        signature, seen = _signature(directory / FILE_NAME), self._seen.get(name)
        try:
            if seen is None or seen.signature != signature:
                seen = _Seen(signature, *_read(self.path, directory))
                self._seen[name] = seen
            if seen.look.problem is None:
                return replace(seen.look, state=state(seen.information))
            return seen.look
        except Exception as error:
            look = Look(name, problem=self.told(error))
            self._seen[name] = _Seen(signature, look, {})
            return look


def is_addressable(name: str) -> bool:
    """Whether a folder's name can be told in an address: file systems take octets that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_inside(folder: Path, path: Path) -> None:
    """Raise DesatError where a file is a link that leads out of the folder, or is no plain file."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DesatError(f"{path.parent.name}/{path.name} is a link that leads out of the folder: it is not followed")
    if not stat.S_ISREG(path.stat().st_mode):
        raise DesatError(f"{path.parent.name}/{path.name} is no plain file")


def _open(folder: Path, directory: Path, seconds: float) -> Record:
    path = directory / FILE_NAME
    for one in (path, *(path.with_name(path.name + ending) for ending in _BESIDE)):
        if os.path.lexists(one):
            try:
                check_inside(folder, one)
            except FileNotFoundError:  # a log that has just been folded in
                continue
    return Record(path, seconds)


def _signature(path: Path) -> tuple[int, ...]:
    """Changes when the file or its log is written, or made readable.

    Not by its ctime, which reading changes: SQLite gives a log to the owner of its file.
    """
    found: list[int] = []
    for one in (path, path.with_name(path.name + "-wal")):
        try:
            status = one.stat()
            found += (status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode)
        except OSError:
            found.append(0)
    return tuple(found)


def _read(folder: Path, directory: Path) -> tuple[Look, dict[str, Any]]:
    with _open(folder, directory, LOOK_SECONDS) as record:
        information = record.information
        facts = {name: str(information.get(name) or "")[:LONGEST_FACT] for name in ("script", "started")}
        last = record.last_steps(1)
        step = int(last["step"][-1]) if len(last["step"]) else -1
        loss = float(last["loss"][-1]) if step >= 0 else None
        newest = record.query("SELECT step FROM step WHERE watching IS NOT NULL ORDER BY step DESC LIMIT 1")
        sampled = next((one for (one,) in newest if isinstance(one, int)), -1)
        ((sites,),) = record.query("SELECT count(*) FROM site")
        if sites > MOST_SITES:
            raise DesatError(f"it has {sites:,} sites: more than {MOST_SITES:,} are not shown")
        spark = _spark(record, step)
        return Look(directory.name, **facts, step=step, sampled=sampled, loss=loss, spark=spark), information


def _spark(record: Record, step: int) -> tuple[float, ...]:
    """Losses at evenly spaced steps, each found by its key."""
    wanted = sorted({index * max(step, 0) // (SPARK_POINTS - 1) for index in range(SPARK_POINTS)})
    rows = record.query(
        f"SELECT loss FROM step WHERE step IN ({','.join('?' * len(wanted))}) ORDER BY step", tuple(wanted)
    )
    return tuple(float(loss) for (loss,) in rows if isinstance(loss, (int, float)) and abs(loss) != float("inf"))
