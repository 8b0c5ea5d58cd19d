"""Facts: what is known of a run as a whole, in the plain words and numbers that other tools have a place for."""

import math
from dataclasses import dataclass
from typing import Any

from desat.diagnose.engine import diagnose
from desat.diagnose.finding import Diagnosis
from desat.diagnose.health import health
from desat.record.reader import Record
from desat.record.run import state
from desat.show.export.moments import start_of
from desat.show.words import plain

Fact = str | int | float | bool

_RESULTS = ("status", "steps", "sampled_steps", "overhead")
_HIDDEN = ("host", "process", "dropped", "redefines_loss")
"""Of this machine alone, or of no use without the rest of the record."""

_LISTS = ("arguments", "asked", "applied")


@dataclass(frozen=True)
class Facts:
    """run: the run's name. information: Record.information. diagnosis: None where nothing was measured."""

    run: str
    information: dict[str, Any]
    diagnosis: Diagnosis | None

    @property
    def began(self) -> float:
        """In seconds since 1970; 0 where it is not known."""
        return start_of(self.information)

    @property
    def status(self) -> str:
        """See desat.record.run.state."""
        return state(self.information)

    def settings(self) -> dict[str, Fact]:
        """What was known before the training started; lists as one text."""
        found: dict[str, Fact] = {"run": plain(self.run)}
        for name, value in self.information.items():
            if name not in _RESULTS + _HIDDEN and (fact := _fact(name, value)) is not None:
                found[plain(name)] = fact
        return found

    def results(self) -> dict[str, Fact]:
        """How the run went: status, steps, and the verdict, the health and the codes of a diagnosis."""
        known = {name: self.information.get(name) for name in _RESULTS} | {"status": self.status}
        found = {name: fact for name, value in known.items() if (fact := _fact(name, value)) is not None}
        if self.diagnosis is not None:
            found |= {
                "verdict": self.diagnosis.verdict,
                "health": health(self.diagnosis),
                "findings": ", ".join(self.diagnosis.codes("error", "warning")) or "none",
            }
        return found


def facts_of(record: Record) -> Facts:
    return Facts(record.name, record.information, diagnose(record) if record.sites() else None)


def _fact(name: str, value: object) -> Fact | None:
    """A value that any tool can show; None for one that is no single one."""
    if name in _LISTS and isinstance(value, list):
        return plain(" ".join(map(str, value)))
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (int, float)) else None
