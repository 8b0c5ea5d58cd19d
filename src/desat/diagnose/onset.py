"""What the optimizer did when a symptom began that was not there before."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode
from desat.diagnose.threshold import Threshold
from desat.record.reader import Record
from desat.record.rows import Site

RATE_JUMP = Threshold(
    "learning rate jump",
    3.0,
    "ratio",
    "learning rate over the largest one before, from which on it is said to have jumped",
    "desat: a warmup that rises by equal steps does not reach it after its first steps",
)
LOOK_BACK = 0.1
"""Share of the run's steps, up to a symptom, within which a jump may have brought it."""


@dataclass(frozen=True)
class RateJump:
    """The learning rate rose at `step` from `before` to `after`."""

    step: int
    before: float
    after: float

    @property
    def words(self) -> str:
        return f"the learning rate jumped from {self.before:.2g} to {self.after:.2g} at step {self.step}"


def rate_jump(record: Record, previous_step: int | None, first_step: int) -> RateJump | None:
    """The jump of the learning rate that a symptom followed; None where it did not, or the rate is not known.

    previous_step, first_step: the last sampled step without the symptom, None where there was none, and the first with
    it.
    """
    columns = record.steps()
    known = np.isfinite(columns["learning_rate"])
    steps, rates = columns["step"][known].astype(np.int64), columns["learning_rate"][known]
    if previous_step is None or not len(steps):
        return None
    since = min(previous_step, first_step - int(LOOK_BACK * len(steps)))
    before = rates[steps < since]
    during = np.flatnonzero((steps >= since) & (steps <= first_step))
    if not len(before) or not len(during) or before.max() <= 0.0:
        return None
    largest = float(before.max())
    jumped = during[rates[during] >= RATE_JUMP.value * largest]
    return RateJump(int(steps[jumped[0]]), largest, float(rates[jumped].max())) if len(jumped) else None


def update_at_onset(record: Record, layer: Site, episode: Episode) -> float | None:
    """The largest update ratio of a layer's weights, biases aside, from the last sound sample to the first sick one."""
    if episode.previous_step is None:
        return None
    ratios: list[float] = []
    for site in record.sites("parameter"):
        owner, _, name = site.name.rpartition(".")
        if owner != layer.name or name.startswith("bias"):
            continue
        series = record.parameter(site)
        at = (series["step"] >= episode.previous_step) & (series["step"] <= episode.first_step) & (series["rms"] > 0.0)
        ratios += [ratio for ratio in (series["update_rms"][at] / series["rms"][at]).tolist() if np.isfinite(ratio)]
    return max(ratios, default=None)
