"""Does the network learn? A symptom is an error only where it goes with harm, and harm is judged here.

The loss tells first. Where it is missing, or the run is too short for it to tell, the weights do: a first layer that
hardly moves while the last one does is not being trained.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import update_ratios
from desat.record.reader import Record

State = Literal["learning", "settled", "slow", "stalled", "guessing", "diverging", "non-finite", "unknown"]

LEARNED = Threshold(
    "learned", 0.9, "share", "a loss that fell by this share has been learned, flat or not", "desat: ten times better"
)
SETTLED = Threshold(
    "settled", 0.5, "share", "a loss that fell by this share and is flat may just be done", "desat: half of the loss"
)
FALLING = Threshold(
    "falling",
    0.1,
    "share",
    "fall of the loss over the last nine tenths of the run that counts as learning",
    "desat: the first tenth is left out, since there the last layer's bias learns the mean of the targets alone",
)
CREEPING = Threshold("creeping", 0.01, "share", "fall over the same time that counts as slow learning", "desat")
SIGNIFICANT = Threshold(
    "significant", 3.0, "standard errors", "change of the loss that is not chance", "the three-sigma rule"
)
FEW_LOSSES = Threshold("few losses", 50, "steps", "below this a flat loss tells nothing", "desat")
FROZEN_RATIO = Threshold(
    "frozen ratio",
    1e-3,
    "ratio",
    "update ratio of the first layer over the last layer's, below which the first layer is not trained",
    "AUTOTRAINER (Zhang et al., ICSE 2021), vanishing gradient: first over last layer below 1e-3",
)
FROZEN_UPDATE = Threshold(
    "frozen update",
    1e-5,
    "rms(update)/rms(weight)",
    "update ratio below which a weight hardly moves",
    "a hundredth of the customary 1e-3 (Karpathy, CS231n notes, Neural Networks Part 3: ratio of weights to updates)",
)
THRESHOLDS = (LEARNED, SETTLED, FALLING, CREEPING, SIGNIFICANT, FEW_LOSSES, FROZEN_RATIO, FROZEN_UPDATE)

START_LOSSES = 5
"""Losses whose median is the loss at the start."""
NAN_TAIL = 3
"""Steps without a loss, at the end of a run whose steps had one, that tell of a loss that became nan."""


@dataclass(frozen=True)
class Learning:
    """How the training went; `guessing` is a loss that stays above that of guessing, though it may fall.

    losses: finite losses seen. start, end: the loss in the beginning and at the end (medians). fall: (start - end) over
    the larger of their magnitudes; 1 is a loss brought to 0, negative a loss that rose. late_fall: the same without the
    first tenth of the run. Both count from the loss of guessing where that is lower: to come down to it is no learning.
    flat_since: the step from which on the loss stays near its end. nonfinite_since: the first step whose loss was not
    finite. front_frozen: whether the first layer hardly moves compared to the last; None where it was not measured.
    guessing: the loss of one answer for all samples; None where it is not known.
    """

    state: State
    losses: int = 0
    start: float = float("nan")
    end: float = float("nan")
    fall: float = float("nan")
    late_fall: float = float("nan")
    flat_since: int | None = None
    nonfinite_since: int | None = None
    front_frozen: bool | None = None
    guessing: float | None = None

    @property
    def harm(self) -> bool | None:
        """Whether the training suffers; None where that cannot be told."""
        if self.state in ("stalled", "guessing", "diverging", "non-finite"):
            return True
        if self.state == "learning":
            return False
        return True if self.front_frozen else None


def judge_learning(record: Record) -> Learning:
    """Judge a run by its losses and by how its first and last layer move."""
    columns = record.steps()
    steps, losses = columns["step"].astype(np.int64), columns["loss"]
    return judge_losses(steps, losses, front_is_frozen(record), loss_of_guessing(record))


def loss_of_guessing(record: Record) -> float | None:
    """What one answer for all samples would cost, as desat.watch.loss_graph read it off the loss; the largest seen.

    None where the loss is not a plain one of its kind.
    """
    series = [record.readings(site).get("guessing") for site in record.sites("loss")]
    if len(series) != 1 or series[0] is None:
        return None
    known = series[0]["value"][np.isfinite(series[0]["value"])]
    return float(known.max()) if len(known) and known.max() > 0.0 else None


def judge_losses(
    steps: NDArray[np.int64],
    losses: NDArray[np.float64],
    front_frozen: bool | None = None,
    guessing: float | None = None,
) -> Learning:
    """Judge a series of losses, shape (steps,); nan where there is none. guessing: see Learning."""
    finite = np.isfinite(losses)
    series, number = losses[finite], int(finite.sum())
    nonfinite_since = _nonfinite_since(steps, losses)
    if number < 4:
        state: State = "unknown" if nonfinite_since is None else "non-finite"
        return Learning(state, number, nonfinite_since=nonfinite_since, front_frozen=front_frozen, guessing=guessing)
    # By an exact power of two into [-1, 1]: what follows asks for ratios alone, and sums of huge losses overflow.
    exponent = int(np.frexp(np.abs(series).max())[1])
    series = np.ldexp(series, -exponent)
    chance = np.inf if guessing is None else np.ldexp(guessing, -exponent)
    start, early, late = (
        series[:START_LOSSES],
        series[number // 10 : max(number // 4, 2)],
        series[-max(number // 7, 2) :],
    )
    noise = noise_of(series)
    fall, late_fall = (_relative_fall(np.minimum(before, chance), late) for before in (start, early))
    rise = _significance(late, early, noise)
    if nonfinite_since is not None:
        state = "non-finite"
    elif fall >= LEARNED.value:
        state = "learning"
    elif number < FEW_LOSSES.value and fall < SETTLED.value:
        state = "unknown"  # the last layer's bias alone brings a loss down in the first steps
    elif late_fall >= FALLING.value and -rise >= SIGNIFICANT.value:
        state = "learning"
    elif -fall >= FALLING.value and _significance(late, start, noise) >= SIGNIFICANT.value:
        state = "diverging"
    elif fall >= SETTLED.value:
        state = "settled"
    elif np.median(late) >= (1.0 + FALLING.value) * chance:
        state = "guessing"
    elif late_fall >= CREEPING.value and -rise >= SIGNIFICANT.value and not _is_near_guessing(late, number, chance):
        state = "slow"
    else:
        state = "stalled"
    return Learning(
        state,
        number,
        float(np.ldexp(np.median(start), exponent)),
        float(np.ldexp(np.median(late), exponent)),
        fall,
        late_fall,
        _flat_since(steps[finite], series, noise) if state in ("stalled", "settled", "guessing") else None,
        nonfinite_since,
        front_frozen,
        guessing,
    )


def _is_near_guessing(late: NDArray[np.float64], number: int, guessing: float) -> bool:
    """Whether a loss that creeps has had its time, and is still next to that of guessing."""
    return number >= 2 * FEW_LOSSES.value and float(np.median(late)) >= (1.0 - 0.5 * FALLING.value) * guessing


def noise_of(series: NDArray[np.float64]) -> float:
    """Standard deviation of the batch noise of a series, robust against its trend and against outliers.

    From successive differences (von Neumann 1941) by their median magnitude, scaled to a standard deviation by 1.4826
    (Rousseeuw and Croux 1993).
    """
    return float(1.4826 * np.median(np.abs(np.diff(series))) / np.sqrt(2.0)) if len(series) > 1 else 0.0


def front_is_frozen(record: Record) -> bool | None:
    """Whether the first layer's weights hardly move beside the last layer's; None where fewer than two were trained."""
    ratios = update_ratios(record)
    if len(ratios) < 2:
        return None
    first, last = ratios[0], ratios[-1]
    return bool(last > 0.0 and first <= FROZEN_RATIO.value * last and first <= FROZEN_UPDATE.value)


def _relative_fall(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    old, new = float(np.median(before)), float(np.median(after))
    scale = max(abs(old), abs(new))
    return (old - new) / scale if scale > 0.0 else 0.0


def _significance(after: NDArray[np.float64], before: NDArray[np.float64], noise: float) -> float:
    """The rise of the median in standard errors; that of a median is 1.2533 noise / sqrt(n) (Kendall and Stuart)."""
    rise = float(np.median(after) - np.median(before))
    error = 1.2533 * noise * np.sqrt(1.0 / len(after) + 1.0 / len(before))
    with np.errstate(over="ignore", divide="ignore"):
        return float(np.float64(rise) / error) if rise else 0.0


def _flat_since(steps: NDArray[np.int64], series: NDArray[np.float64], noise: float) -> int:
    """The start of the first of twenty blocks from which on every block's median stays near the end's."""
    blocks = [block for block in np.array_split(np.arange(len(series)), 20) if len(block)]
    medians = np.array([np.median(series[block]) for block in blocks])
    near = np.maximum(0.5 * FALLING.value * abs(medians[-1]), SIGNIFICANT.value * noise)
    far = np.flatnonzero(np.abs(medians - medians[-1]) > near)
    return int(steps[blocks[far[-1] + 1 if len(far) else 0][0]])


def _nonfinite_since(steps: NDArray[np.int64], losses: NDArray[np.float64]) -> int | None:
    """The first infinite loss, or where the losses end before the run does: the record's NULL is a nan as well."""
    infinite = np.flatnonzero(np.isinf(losses))
    if len(infinite) and not np.isfinite(losses[infinite[-1] :]).any():
        return int(steps[infinite[0]])
    known = np.flatnonzero(~np.isnan(losses))
    if not len(known) or len(losses) - 1 - known[-1] < NAN_TAIL or len(known) < 0.9 * (known[-1] + 1):
        return None
    return int(steps[known[-1] + 1])
