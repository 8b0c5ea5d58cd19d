"""Episodes: since when a symptom holds, until when, and how sure the samples make one of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

BRIDGE = 1
"""Sampled steps that a symptom may be away without being over: it flickers where it stands near its threshold."""


@dataclass(frozen=True)
class Episode:
    """A stretch of sampled steps over which a symptom held.

    held, observed: at how many sampled steps of how many it held. from_start: it held at the first sampled step.
    ongoing: it held at the end of the record. previous_step: the sampled step before, or None.
    """

    first_step: int
    last_step: int
    held: int
    observed: int
    from_start: bool
    ongoing: bool
    previous_step: int | None

    def covers(self, step: int) -> bool:
        """Whether a step lies within."""
        return self.first_step <= step <= self.last_step

    def confidence(self, margin: float) -> float:
        """How sure this is a real symptom, 0 to 1.

        margin: how far the symptom is beyond its threshold, as a share of the distance at which there is no doubt.
        The samples count by Laplace's rule of succession, (held + 1) / (observed + 2); at the threshold half of that is
        left.
        """
        certainty = (self.held + 1) / (self.observed + 2)
        return float(certainty * (0.5 + 0.5 * np.clip(margin, 0.0, 1.0)))

    @property
    def since(self) -> str:
        """When it began and whether it lasts, in words."""
        began = "from the start" if self.from_start else f"since step {self.first_step}"
        return began if self.ongoing else f"from step {self.first_step} to {self.last_step}, and not since"


def find_episode(steps: ArrayLike, held: ArrayLike) -> Episode | None:
    """The episode that lasts to the end of the record, else the longest one; None where the symptom never held.

    steps: the sampled steps, rising, shape (samples,). held: whether the symptom held there, same shape.
    A lone sample that is over is no episode, unless it is all there was before the last.
    """
    step = np.asarray(steps, np.int64)
    index = np.flatnonzero(np.asarray(held, np.bool_))
    if not len(index):
        return None
    groups = np.split(index, np.flatnonzero(np.diff(index) > BRIDGE + 1) + 1)
    group = groups[-1]
    ongoing = _reaches_end(group, len(step))
    if not ongoing:
        group = max(groups, key=len)
        if len(group) == 1 and len(step) > 2:
            return None
    first, last = int(group[0]), int(group[-1])
    return Episode(
        first_step=int(step[first]),
        last_step=int(step[last]),
        held=len(group),
        observed=last - first + 1,
        from_start=first == 0,
        ongoing=ongoing,
        previous_step=int(step[first - 1]) if first else None,
    )


def _reaches_end(group: NDArray[np.int64], samples: int) -> bool:
    missing = samples - 1 - int(group[-1])
    return missing == 0 or (missing <= BRIDGE and len(group) > 2)
