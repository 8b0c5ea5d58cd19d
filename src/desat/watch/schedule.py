"""The schedule: which steps are sampled, so that watching keeps its budget."""

import statistics
from collections import deque

from desat.errors import DesatError

FIRST_MINUTE = 60.0
"""Seconds. A run of a minute or more keeps the budget; so its first minute's share may be spent early."""

SPACING = 8
"""Until the early share is spent, the gap to the next sample is the step number over this: dense, then sparser."""

STEPS_REMEMBERED = 31
"""Unsampled steps whose median duration is what a step costs without watching."""


class Schedule:
    """Decides which steps are sampled.

    budget: the share of the wall time that watching may add. every: sample each `every`-th step instead.
    `spent` is the time watching has added so far, in seconds. The budget pays for `aside` as well, the processor time
    of what works beside the training: on a machine whose cores are all busy it is wall time.
    """

    def __init__(self, budget: float = 0.01, every: int | None = None) -> None:
        if not 0 < budget <= 1:
            raise DesatError(f"budget is a share of the wall time between 0 and 1, such as 0.01; it was {budget}")
        if every is not None and every < 1:
            raise DesatError(f"every counts steps, from 1; it was {every}")
        self.budget = budget
        self.every = every
        self.spent = 0.0
        self.aside = 0.0
        self._cost = 0.0
        self._due = 0
        self._plain: deque[float] = deque(maxlen=STEPS_REMEMBERED)

    def finished_plain(self, seconds: float) -> None:
        """Account for an unsampled step that lasted so long."""
        self._plain.append(seconds)

    def finished_sampled(self, step: int, seconds: float, watching: float) -> None:
        """Account for a sampled step: its whole duration, and the part that the taps themselves measured."""
        added = max(watching, seconds - statistics.median(self._plain)) if self._plain else watching
        self.spent += added
        self._cost = added if not self._cost else 0.7 * self._cost + 0.3 * added
        # One early step stays unsampled, so that there is something to compare with from the start.
        self._due = step + (2 if step == 1 else max(1, step // SPACING))

    def hurry(self) -> None:
        """Something looks wrong: sample as soon as the budget allows."""
        self._due = 0

    def is_sampled(self, step: int, elapsed: float) -> bool:
        """Whether to sample this step, `elapsed` seconds into the run."""
        if self.every is not None:
            return step % self.every == 0
        spent = self.spent + self.aside + self._cost
        if spent <= self.budget * elapsed:
            return True
        return step >= self._due and spent <= self.budget * max(elapsed, FIRST_MINUTE)
