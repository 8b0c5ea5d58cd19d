"""What a rule is: a code, what it means, what it examines, and the thresholds it goes by."""

from collections.abc import Callable
from dataclasses import dataclass

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.learning import FEW_LOSSES, LEARNED, SETTLED, Learning
from desat.diagnose.threshold import Threshold
from desat.record.reader import Record

SEVERE = Threshold(
    "severe",
    0.5,
    "share",
    "margin of a symptom that is an error from initialization on, even in a network that learns a little",
    "desat: half way to no doubt; none of 239 healthy networks of the proving ground had such a symptom",
)

WRONG_START = Threshold(
    "wrong start",
    5.0,
    "ratio",
    "loss at the start over that of guessing, from which on a network was born sure and wrong",
    "desat: of 239 healthy networks of the proving ground none began above 4.2; such a network is trained lazily: its "
    "training loss may fall to nothing, and what is unseen it knows less of (Chizat, Oyallon and Bach 2019, "
    "On lazy training in differentiable programming)",
)

SEEN = 2
"""Sampled steps at which such a symptom was seen, at least."""
BORN_BY = 3
"""A symptom that holds from this step on was there from initialization: the first updates belong to the beginning."""


@dataclass(frozen=True)
class Case:
    """What a rule examines: the record, and how the training went."""

    record: Record
    learning: Learning

    @property
    def is_learned(self) -> bool:
        """Whether nothing is left to learn."""
        return self.learning.harm is False and self.learning.fall >= LEARNED.value

    @property
    def has_learned_little(self) -> bool:
        """Whether less than half of the loss has been learned, though there was time."""
        return self.learning.losses >= FEW_LOSSES.value and self.learning.fall < SETTLED.value

    @property
    def began_wrong(self) -> bool:
        """Whether the loss began far above that of one answer for all samples; not so where that is not known."""
        guessing = self.learning.guessing
        return guessing is not None and self.learning.start >= WRONG_START.value * guessing

    def severity_from_birth(self, episode: Episode, margin: float) -> Severity:
        """As `severity`, of what makes a network sure and wrong: it did harm if it was there as the loss began so.

        A training loss that has come down from there tells nothing of what the network makes of unseen data.
        """
        is_severe = margin >= SEVERE.value and episode.held >= SEEN
        if self.began_wrong and is_severe and episode.from_start and episode.ongoing:
            return "error"
        return self.severity(episode, margin)

    def severity(self, episode: Episode, margin: float) -> Severity:
        """How grave a symptom is: an error only together with harm, and never once it is over.

        Harm is a training that suffers, or a loss that has some way to go under a symptom which has been there from the
        start and is far beyond its threshold (see `Episode.confidence` for `margin`): what no sound network has. Where
        harm cannot be told it is a warning, and without harm a note.
        """
        if not episode.ongoing:
            return "note"
        is_severe = margin >= SEVERE.value and episode.held >= SEEN
        hampered = is_severe and episode.first_step <= BORN_BY and not self.is_learned
        if self.learning.harm or hampered:
            return "error"
        return "warning" if self.learning.harm is None else "note"


@dataclass(frozen=True)
class Rule:
    """One rule. `examine` returns no finding, or one for the whole network.

    meaning: what is wrong, in one sentence for a beginner. measured: how desat sees it. helps: what to do about it.
    """

    code: str
    examine: Callable[[Case], list[Finding]]
    thresholds: tuple[Threshold, ...]
    meaning: str
    measured: str
    helps: str
