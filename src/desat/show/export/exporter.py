"""What an exporter is: a file of this folder, and an entry in desat.show.export.formats."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.export.facts import Facts, facts_of
from desat.show.export.moments import Moment, Progress, Stream

Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Order:
    """What is to be written where. place: the file or folder. project: of the tools that have projects.

    is_own: the user has named the place. overwrite: what was exported to the place before may go.
    """

    place: Path
    project: str = "desat"
    is_own: bool = False
    overwrite: bool = False


class Sink(Protocol):
    """Takes moments in the order of their steps, and hands them to another project's library.

    `told` is what to tell the user of where they are. Errors may be of any kind.
    """

    told: str

    def write(self, moment: Moment) -> None: ...

    def flush(self) -> None:
        """Called when nothing more is there for now: what was written is to be seen by others."""
        ...

    def finish(self, facts: Facts) -> None:
        """Called once, at the end, with what is known of the run as a whole."""
        ...


class Opener(Protocol):
    def __call__(self, order: Order, facts: Facts) -> Sink: ...


class Exporter(Protocol):
    """Writes a whole record; returns what to tell the user of where it is."""

    def __call__(self, record: Record, order: Order, tell: Tell) -> str: ...


@dataclass(frozen=True)
class Format:
    """One that can be exported to. place: its name in the run's folder. library: what writes it; None for Python.

    open: of those that can be mirrored live, too.
    """

    export: Exporter
    place: str
    library: str | None = None
    open: Opener | None = None


def of_moments(opener: Opener) -> Exporter:
    """An exporter that hands all moments of a record to a sink."""

    def export(record: Record, order: Order, tell: Tell) -> str:
        facts = facts_of(record)
        sink = opener(order, facts)
        for progress, moments in Stream().read(record):
            with of_the_library():
                for moment in moments:
                    sink.write(moment)
            tell(progress)
        with of_the_library():
            sink.finish(facts)
        return sink.told

    return export


@contextlib.contextmanager
def of_the_library() -> Iterator[None]:
    """Whatever another project's library raises inside, a server that is not there say, is one line for the user."""
    try:
        yield
    except DesatError:
        raise
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise DesatError(f"the export ended early: {told}") from error


def check_library(name: str, library: str | None) -> None:
    """Raise DesatError where what writes the format `name` is not installed. Nothing is imported."""
    found = importlib.util.find_spec(library) if library is not None else None
    if library is not None and (found is None or found.origin is None):  # a folder of that name is no library
        raise DesatError(f"{name} is written by {library}, which is not installed: `pip install 'desat[{name}]'`")
