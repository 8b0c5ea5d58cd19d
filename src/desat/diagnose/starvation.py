"""Starved training: steps so small, over the whole run, that the weights are where they began."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Severity
from desat.diagnose.layer_updates import layer_updates
from desat.diagnose.learning import FEW_LOSSES, SETTLED
from desat.diagnose.rule import Case
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import SMALL_UPDATE, USUAL_UPDATE
from desat.record.reader import Record

STARVED_PATH = Threshold(
    "starved path",
    0.3,
    "sum of rms(update)/rms(weight)",
    "way of the typical layer's weights in the whole run, below which small steps starve the training",
    "desat: perceptrons, LSTMs and transformers that learned digits within 400 steps came from 0.7 to 4",
)
NO_WAY = Threshold(
    "no way",
    0.1,
    "sum of rms(update)/rms(weight)",
    "way at which even a falling loss is no proof of health, as long as it has some way to go: it could fall faster",
    "desat: of 239 healthy networks of the proving ground one came 0.13, the others 0.28 or more",
)


@dataclass(frozen=True)
class Way:
    """What the typical layer did, in medians over layers and samples: its update ratio and the length of its path."""

    ratio: float
    path: float


def measure_way(record: Record) -> Way | None:
    """None where no weight was trained."""
    updates = layer_updates(record)
    if not len(updates.sites) or not np.isfinite(updates.values).any():
        return None
    paths = updates.paths(len(record.steps()["step"]))
    return Way(float(np.nanmedian(updates.values)), float(np.nanmedian(paths)))


def starved_severity(case: Case, episode: Episode, margin: float, way: Way | None) -> Severity:
    """How grave a cause of small steps is: a note where the steps are not small after all, or lead somewhere.

    Slow learning is harm enough here, since what is at fault is the speed; so is a loss that falls a little in a
    network that has come nowhere.
    """
    learning = case.learning
    if way is None or way.ratio > USUAL_UPDATE or way.path > STARVED_PATH.value or not episode.ongoing:
        return "note"
    if learning.state == "unknown":
        # In few steps nobody comes far.
        return "warning" if way.ratio <= SMALL_UPDATE.value else "note"
    if learning.state == "slow":
        return "error"
    if learning.harm is False:
        if learning.losses < FEW_LOSSES.value or learning.fall >= SETTLED.value:
            return "note"
        return "error" if way.path <= NO_WAY.value else "warning"
    return case.severity(episode, margin)
