"""What a rule is: a code, what it means, what it examines, and the thresholds it goes by."""

from collections.abc import Callable
from dataclasses import dataclass

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.learning import LEARNED, Learning
from desat.diagnose.threshold import Threshold
from desat.record.reader import Record

SEVERE = Threshold(
    "severe", 0.5, "share", "margin of a symptom that is worth a warning in a network that learns", "desat: half way"
)


@dataclass(frozen=True)
class Case:
    """What a rule examines: the record, and how the training went."""

    record: Record
    learning: Learning

    def severity(self, episode: Episode, margin: float) -> Severity:
        """How grave a symptom is: an error only together with harm, and never once it is over.

        Without harm it is a note, or a warning where it is far beyond its threshold (see `Episode.confidence` for
        `margin`), has been so from the start, and the loss has some way to go still.
        """
        if not episode.ongoing:
            return "note"
        if self.learning.harm is not False:
            return "error" if self.learning.harm else "warning"
        hampered = episode.from_start and margin >= SEVERE.value and self.learning.fall < LEARNED.value
        return "warning" if hampered else "note"


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
