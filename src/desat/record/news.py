"""News: the rows of a record in the order of its steps, from where they were last left off.

So a finished run is read in pieces that fit into memory, and a live one again and again, each row once. A row is told
of when its step is in the table `step`, with which it is committed; metrics of the last step may come later than it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from desat.record.reader import Record
from desat.record.rows import Metric, ParameterStatistics, Reading, Step, TensorStatistics

MOST_STEPS = 4096
MOST_SAMPLES = 32
"""Steps, and sampled ones among them, that a window has at most."""

BEFORE_ALL = -(2**63)
"""No step has a lower number: SQLite's least integer."""

_BEFORE_FIRST_STEP = -1
"""The step of metrics that were told before the first step was done."""


class Window(NamedTuple):
    """All rows of consecutive steps, and which part of those that there are it is: `number` of `windows`, from 1."""

    steps: list[Step]
    tensors: list[TensorStatistics]
    parameters: list[ParameterStatistics]
    readings: list[Reading]
    metrics: list[Metric]
    number: int
    windows: int


_STEPS = "SELECT * FROM step WHERE step > ? AND step <= ? ORDER BY step"

# Tables are read along their keys, (site, name, step): what is new is found without a look at what is old.
_TENSORS = """
    SELECT tensor.* FROM site CROSS JOIN tensor ON tensor.site = site.id
    WHERE quantity IN ('input', 'output', 'gradient') AND step > ? AND step <= ?
"""
_PARAMETERS = """
    SELECT parameter.* FROM site CROSS JOIN parameter ON parameter.site = site.id WHERE step > ? AND step <= ?
"""
_READINGS = """
    WITH RECURSIVE named (site, name) AS (
        SELECT id, (SELECT min(name) FROM reading WHERE site = id) FROM site
        UNION ALL
        SELECT site, (SELECT min(name) FROM reading WHERE reading.site = named.site AND reading.name > named.name)
        FROM named WHERE name IS NOT NULL
    )
    SELECT reading.* FROM named CROSS JOIN reading ON reading.site = named.site AND reading.name = named.name
    WHERE step > ? AND step <= ?
"""
_METRICS = """
    WITH RECURSIVE named (name) AS (
        SELECT min(name) FROM metric
        UNION ALL
        SELECT (SELECT min(name) FROM metric WHERE metric.name > named.name) FROM named WHERE name IS NOT NULL
    )
    SELECT metric.* FROM named CROSS JOIN metric ON metric.name = named.name WHERE step >= ? AND step <= ?
"""


class News:
    """Knows what it has told; `read` tells the rest."""

    def __init__(self) -> None:
        self._through = BEFORE_ALL
        self._told_at_last: set[Metric] = set()

    def read(self, record: Record) -> Iterator[Window]:
        """What there is beyond what was told before. Raises DesatError where the record cannot be read."""
        steps = record.query(
            "SELECT step, watching IS NOT NULL FROM step WHERE step > ? ORDER BY step", (self._through,)
        )
        ends = _ends(steps) or [max(self._through, _BEFORE_FIRST_STEP)]
        for number, end in enumerate(ends, start=1):
            yield self._window(record, end, number, len(ends))

    def _window(self, record: Record, end: int, number: int, windows: int) -> Window:
        bounds = (self._through, end)
        metrics = [Metric(*row) for row in record.query(_METRICS, bounds)]
        metrics = [metric for metric in metrics if metric not in self._told_at_last]
        kept = self._told_at_last if end == self._through else set()
        self._told_at_last = kept | {metric for metric in metrics if metric.step == end}
        self._through = end
        return Window(
            [Step(*row) for row in record.query(_STEPS, bounds)],
            [TensorStatistics(*row) for row in record.query(_TENSORS, bounds)],
            [ParameterStatistics(*row) for row in record.query(_PARAMETERS, bounds)],
            [Reading(*row) for row in record.query(_READINGS, bounds)],
            metrics,
            number,
            windows,
        )


def _ends(steps: list[tuple[Any, ...]]) -> list[int]:
    """The last step of each window, of steps with whether they were sampled."""
    ends, length, sampled = [], 0, 0
    for step, is_sampled in steps:
        length, sampled = length + 1, sampled + is_sampled
        if length == MOST_STEPS or sampled == MOST_SAMPLES:
            ends.append(step)
            length = sampled = 0
    return [*ends, steps[-1][0]] if length else ends
