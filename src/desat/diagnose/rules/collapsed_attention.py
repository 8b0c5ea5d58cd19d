"""collapsed-attention: every query looks at one key whatever is asked, or at all keys alike, and it stays so."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.learning import FEW_LOSSES
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.reader import Columns
from desat.record.rows import Site

LOW_ENTROPY = Threshold(
    "low entropy",
    0.1,
    "share of log(keys)",
    "mean entropy of the heads of one attention, below which it has collapsed",
    "Zhai et al. 2023, section 3: training becomes unstable where entropy falls towards zero; 0.1 is desat's",
)
ONE_HOT = Threshold(
    "one-hot share",
    0.5,
    "share of rows",
    "rows with one weight above 0.99, above which most queries look at one key only",
    "desat: half of them; Dehghani et al. 2023 (ViT-22B), section 2.1, describe near one-hot attention",
)
LARGE_LOGIT = Threshold(
    "large logit",
    20.0,
    "nats",
    "largest magnitude of a logit that is the cause of sharp attention",
    "desat: exp(20) is 5e8, more than any number of keys evens out",
)
FLAT_LOGIT = Threshold(
    "flat logit",
    1e-2,
    "nats",
    "largest magnitude of a logit below which attention is a plain mean",
    "desat: weights differ by 1 %; weights drawn with 0.02 for a width of 64 give 0.1",
)


@dataclass(frozen=True)
class _Collapse:
    """One attention's collapse, onto one key (`sharp`) or onto the mean of all. entropy, logit: medians in it."""

    site: Site
    sharp: bool
    entropy: float
    one_hot: float
    logit: float
    episode: Episode

    @property
    def margin(self) -> float:
        if self.sharp:
            return (LOW_ENTROPY.value - self.entropy) / LOW_ENTROPY.value
        return (FLAT_LOGIT.value - self.logit) / FLAT_LOGIT.value


def examine_attention(case: Case) -> list[Finding]:
    """One finding for the network: sharp collapse before flat, the surest attention first."""
    collapses = [collapse for site in case.record.sites("attention") for collapse in _collapses(case, site) if collapse]
    sharp = [collapse for collapse in collapses if collapse.sharp]
    alike = sharp or collapses
    if not alike:
        return []
    worst = max(alike, key=lambda collapse: (collapse.episode.ongoing, collapse.margin))
    return [
        Finding(
            code="collapsed-attention",
            severity=case.severity(worst.episode, worst.margin),
            site=worst.site.name,
            sites=tuple(collapse.site.name for collapse in alike),
            source=worst.site.source,
            first_step=min(collapse.episode.first_step for collapse in alike),
            last_step=max(collapse.episode.last_step for collapse in alike),
            cause=_cause(worst),
            message=_message(worst),
            evidence={"entropy": worst.entropy, "one_hot_share": worst.one_hot, "largest_logit": worst.logit},
            remedies=("attention=qk-norm", "normalization=layer", "clipping=1.0")
            if worst.sharp
            else ("initialization=xavier", "attention=qk-norm"),
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _collapses(case: Case, site: Site) -> list[_Collapse | None]:
    readings = case.record.readings(site)
    names = ("entropy", "one_hot_share", "largest_logit")
    if any(name not in readings for name in names):
        return []
    steps = np.unique(np.concatenate([readings[name]["step"] for name in names]))
    entropy, one_hot, logit = (_at(readings[name], steps) for name in names)
    known = np.isfinite(entropy) & np.isfinite(one_hot) & np.isfinite(logit)
    steps, entropy, one_hot, logit = steps[known], entropy[known], one_hot[known], logit[known]
    sharp = (entropy <= LOW_ENTROPY.value) & (one_hot >= ONE_HOT.value)
    flat = logit <= FLAT_LOGIT.value
    # A young attention is flat and will not stay so; one that is flat at every sample of a long run has no say at all.
    stays_flat = bool(len(steps)) and bool(flat.all()) and case.learning.losses >= 2 * FEW_LOSSES.value
    return [
        _collapse(site, True, steps, sharp, (entropy, one_hot, logit)),
        _collapse(site, False, steps, flat, (entropy, one_hot, logit)) if stays_flat and case.learning.harm else None,
    ]


def _collapse(
    site: Site, sharp: bool, steps: np.ndarray, held: np.ndarray, series: tuple[np.ndarray, ...]
) -> _Collapse | None:
    episode = find_episode(steps, held)
    if episode is None:
        return None
    during = held & (steps >= episode.first_step) & (steps <= episode.last_step)
    entropy, one_hot, logit = (float(np.median(values[during])) for values in series)
    return _Collapse(site, sharp, entropy, one_hot, logit, episode)


def _at(series: Columns, steps: np.ndarray) -> np.ndarray:
    values = np.full(len(steps), np.nan)
    values[np.searchsorted(steps, series["step"])] = series["value"]
    return values


def _cause(collapse: _Collapse) -> str:
    if not collapse.sharp:
        return "queries and keys are next to nothing, so that no key is told from another: their weights are too small"
    large = f"its logits are as large as {collapse.logit:.0f}"
    if collapse.logit < LARGE_LOGIT.value:
        return f"most keys are masked or far below one another, though no logit is above {LARGE_LOGIT.value:.0f}"
    if collapse.episode.from_start:
        return (
            f"{large} from the start: the division by the root of the head's width is missing, or the query and "
            "key weights are too large"
        )
    return f"{large} since step {collapse.episode.first_step}: the query and key weights have grown"


def _message(collapse: _Collapse) -> str:
    if collapse.sharp:
        return (
            f"{collapse.one_hot:.0%} of the queries of {collapse.site.name} look at one key only, "
            f"{collapse.episode.since}: the entropy of the attention is {collapse.entropy:.2g} of its largest, "
            f"above {LOW_ENTROPY.value:g} would be sound. A softmax so sharp passes hardly any gradient."
        )
    return (
        f"{collapse.site.name} looks at all keys alike, {collapse.episode.since}: its largest logit is "
        f"{collapse.logit:.1g}, about 1 would be sound. It is a plain mean that no query can change."
    )


COLLAPSED_ATTENTION = Rule(
    code="collapsed-attention",
    examine=examine_attention,
    thresholds=(LOW_ENTROPY, ONE_HOT, LARGE_LOGIT, FLAT_LOGIT),
    meaning="Every query looks at one key only, or at all keys alike, so that attention has nothing left to learn by.",
    measured=(
        "The entropy of the attention weights over the log of the visible keys, the share of queries with one weight "
        "above 0.99, and the largest logit, of a sample of queries of each head."
    ),
    helps="Division of the logits by the root of the head's width, normalized queries and keys, smaller steps.",
)
