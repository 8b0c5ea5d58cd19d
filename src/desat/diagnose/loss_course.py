"""The course of the loss: what it had reached, and where it is, in blocks that even out its noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.learning import noise_of
from desat.record.reader import Record

BLOCKS = 40
"""Blocks at most: AUTOTRAINER judges epochs, of which a training has some tens."""
LENGTH = 5
"""Losses of a block at least, so that its median is that of more than one batch."""
MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, for normal noise (Kendall and Stuart)."""


@dataclass(frozen=True)
class Course:
    """The finite losses of a run and their block medians.

    steps, losses: shape (losses,). begins: the step at which each block begins; medians: shape (blocks,). noise:
    standard deviation of the batch noise.
    """

    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    begins: NDArray[np.int64]
    medians: NDArray[np.float64]
    noise: float

    @property
    def error(self) -> float:
        """Standard error of a block's median."""
        return MEDIAN_ERROR * self.noise / np.sqrt(len(self.losses) / len(self.medians))

    @property
    def best(self) -> float:
        """The lowest median of a block."""
        return float(self.medians.min())

    @property
    def late(self) -> float:
        """The median of the last seventh, as in desat.diagnose.learning."""
        return float(np.median(self.losses[-max(len(self.losses) // 7, 2) :]))

    def stays_above(self, level: float) -> int:
        """The step at which the first block begins from which on all medians lie above `level`."""
        below = np.flatnonzero(self.medians <= level)
        place = min(int(below[-1]) + 1, len(self.medians) - 1) if len(below) else 0
        return int(self.begins[place])


def measure_course(record: Record, most: int = BLOCKS) -> Course | None:
    """In `most` blocks at most; None where there are fewer finite losses than make two."""
    columns = record.steps()
    finite = np.isfinite(columns["loss"])
    steps, losses = columns["step"][finite].astype(np.int64), columns["loss"][finite]
    number = min(most, len(losses) // LENGTH)
    if number < 2:
        return None
    blocks = np.array_split(np.arange(len(losses)), number)
    return Course(
        steps,
        losses,
        np.array([steps[block[0]] for block in blocks]),
        np.array([np.median(losses[block]) for block in blocks]),
        noise_of(losses),
    )
