"""residual-imbalance: the branches of residual sums do nothing, or drown the stream that they are added to."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.rows import Site

DROWNED = Threshold(
    "drowned stream",
    20.0,
    "dB",
    "rms(branch) over rms(stream) of a residual sum, above which the stream is drowned",
    "desat: of the stream a tenth is left; a branch of unit gain has 0 dB",
)
IDLE = Threshold(
    "idle branch",
    -40.0,
    "dB",
    "rms(branch) over rms(stream) of a residual sum, below which the branch does nothing",
    "desat: a hundredth; branches that are scaled by 1 / sqrt(layers) have -30 dB in a network of a thousand layers",
)
MANY = Threshold(
    "many sums",
    0.5,
    "share of the residual sums",
    "sums out of balance, more than which make it the network's disease",
    "desat: half; the first sum of a network often is, for embeddings are drawn small",
)
DROWNED_ALONE = Threshold(
    "drowned by one",
    30.0,
    "dB",
    "the same for a single sum: what it drowns is lost, and the sums behind it look balanced against what is left",
    "desat: a factor of 30; a first branch beside embeddings drawn with 0.02 has up to 20 dB",
)
LASTING_IMBALANCE = Threshold(
    "lasting imbalance",
    3,
    "sampled steps",
    "sampled steps over which the sums must be out of balance",
    "desat: branches that start at zero on purpose (ReZero, Bachlechner et al. 2021, section 3) grow within a few",
)
GROWING = 6.0
"""dB by which a quiet branch has grown since the first sample if it is on its way: twice as large."""

Kind = Literal["drowned", "idle"]


@dataclass(frozen=True)
class _Imbalance:
    """One sum out of balance: the median of its ratio over the episode, in dB."""

    site: Site
    decibels: float
    episode: Episode

    def margin(self, kind: Kind) -> float:
        return (self.decibels - DROWNED.value) / 20.0 if kind == "drowned" else (IDLE.value - self.decibels) / 40.0


def examine_residual(case: Case) -> list[Finding]:
    """One finding for the network: streams that drown, else branches that do nothing."""
    series = {}
    for site in case.record.sites("residual"):
        ratio = case.record.readings(site).get("branch_over_stream_db")
        if ratio is not None:
            series[site] = ratio
    for kind in ("drowned", "idle"):
        found = [one for site, ratio in series.items() if (one := _imbalance(site, ratio, kind)) is not None]
        alone = kind == "drowned" and any(one.decibels >= DROWNED_ALONE.value for one in found)
        if alone or len(found) > MANY.value * len(series):
            return [_finding(case, kind, found, len(series))]
    return []


def _imbalance(site: Site, ratio: dict[str, np.ndarray], kind: Kind) -> _Imbalance | None:
    steps, values = ratio["step"], ratio["value"]
    held = values >= DROWNED.value if kind == "drowned" else values <= IDLE.value
    episode = find_episode(steps, held)
    if episode is None or episode.held < LASTING_IMBALANCE.value:
        return None
    during = values[held & (steps >= episode.first_step) & (steps <= episode.last_step)]
    if kind == "idle" and (not episode.ongoing or during[-1] - during[0] >= GROWING):
        return None
    return _Imbalance(site, float(np.median(during)), episode)


def _finding(case: Case, kind: Kind, found: list[_Imbalance], sums: int) -> Finding:
    worst = max(found, key=lambda one: (one.episode.ongoing, one.margin(kind)))
    factor = 10.0 ** (worst.decibels / 20.0)
    return Finding(
        code="residual-imbalance",
        severity=_severity(case, worst, kind),
        site=worst.site.name,
        sites=tuple(one.site.name for one in found),
        source=worst.site.source,
        first_step=min(one.episode.first_step for one in found),
        last_step=max(one.episode.last_step for one in found),
        cause=_cause(worst, kind),
        message=(
            f"In {len(found)} of {sums} residual sums x + f(x) the branch f(x) is {factor:.2g} times as large as x, "
            f"{worst.episode.since}; between 0.03 and 3 would be sound. "
            + (
                "The stream that carries signal and gradient past the branches is drowned, as if it were not there."
                if kind == "drowned"
                else "The branches add nothing, so the network is as if they were not there."
            )
        ),
        evidence={"branch_over_stream_db": worst.decibels, "sums_affected": float(len(found)), "sums": float(sums)},
        remedies=("initialization=torch", "normalization=layer", "initialization=he"),
        confidence=worst.episode.confidence(worst.margin(kind)),
    )


def _severity(case: Case, worst: _Imbalance, kind: Kind) -> Severity:
    """Branches that do nothing leave a network that is shallower, and harm by that alone is a guess."""
    severity = case.severity(worst.episode, worst.margin(kind))
    return "warning" if severity == "error" and kind == "idle" else severity


def _cause(worst: _Imbalance, kind: Kind) -> str:
    if kind == "drowned":
        if worst.episode.from_start:
            return "the branches are scaled too large: no normalization at their start, or weights drawn too large"
        return f"the branches have outgrown the stream since step {worst.episode.first_step}: their weights grew"
    if worst.episode.from_start:
        return "the branches are scaled to next to nothing, and do not grow"
    return f"the branches have died down since step {worst.episode.first_step}: weight decay, or a stream that grows"


RESIDUAL_IMBALANCE = Rule(
    code="residual-imbalance",
    examine=examine_residual,
    thresholds=(DROWNED, DROWNED_ALONE, IDLE, MANY, LASTING_IMBALANCE),
    meaning="The branches of residual sums are so large that they drown the stream, or so small that they do nothing.",
    measured="rms(branch) over rms(stream) of each residual sum x + f(x), in decibels, of a sample of both.",
    helps=(
        "Normalization at the start of each branch, weights drawn for it, and a factor of about 1 / sqrt(number of "
        "branches) on its last layer."
    ),
)
