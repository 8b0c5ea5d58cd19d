"""Diagnoses that are kept: one is costly, and the next is asked for within a second."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from desat.diagnose.finding import Diagnosis
from desat.diagnose.link_budget import LinkBudget
from desat.record.reader import Record
from desat.show.dashboard.folder import Look

SHARE = 0.05
"""Of the time that may go into diagnosing a run anew while it trains."""

KEPT = 256
"""Runs whose diagnosis is kept."""


@dataclass(frozen=True)
class Diagnosed:
    """A diagnosis with the version of the run that it is of, when it was made, and the seconds that it took."""

    diagnosis: Diagnosis
    link_budget: LinkBudget | None
    version: tuple[object, ...]
    moment: float
    cost: float


@dataclass
class _Place:
    lock: threading.Lock = field(default_factory=threading.Lock)
    found: Diagnosed | None = None


class Diagnoses:
    """By the name of the run. All methods may be called from several threads; a run is diagnosed by one at a time."""

    def __init__(self) -> None:
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, record: Record, look: Look) -> Diagnosed:
        """The diagnosis of a run, made anew where it is due. Raises what diagnosing raises."""
        from desat.diagnose.engine import diagnose
        from desat.diagnose.link_budget import measure_link_budget

        place = self._place(look.name)
        with place.lock:
            if place.found is None or self._is_due(place.found, look):
                began = time.thread_time()
                diagnosis, budget = diagnose(record), measure_link_budget(record)
                cost = time.thread_time() - began
                place.found = Diagnosed(diagnosis, budget, _version(look), time.monotonic(), cost)
            return place.found

    def is_due(self, look: Look) -> bool:
        """Whether a run that has been diagnosed is to be diagnosed anew."""
        found = self._known(look.name)
        return found is not None and self._is_due(found, look)

    def verdict(self, look: Look) -> str | None:
        """`error`, `warning` or `healthy`, where the run as it stands has been diagnosed; None otherwise."""
        found = self._known(look.name)
        return (
            found.diagnosis.verdict if found is not None and (look.is_live or found.version == _version(look)) else None
        )

    def _known(self, name: str) -> Diagnosed | None:
        with self._lock:
            place = self._places.get(name)
        return place.found if place is not None else None

    def _place(self, name: str) -> _Place:
        with self._lock:
            place = self._places.setdefault(name, _Place())
            self._places.move_to_end(name)
            while len(self._places) > KEPT:
                self._places.popitem(last=False)
            return place

    @staticmethod
    def _is_due(found: Diagnosed, look: Look) -> bool:
        """Of another version, and while it trains not too soon after the last one."""
        rested = time.monotonic() - found.moment >= found.cost / SHARE
        return found.version != _version(look) and (rested or not look.is_live)


def _version(look: Look) -> tuple[object, ...]:
    return look.started, look.sampled, look.state
