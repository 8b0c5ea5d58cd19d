"""collapsed-attention: every query looks at one key whatever is asked, or at all keys alike, and it stays so."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.learning import FEW_LOSSES
from desat.diagnose.link_budget import share_of
from desat.diagnose.rule import Case, Rule
from desat.diagnose.scale import SOUND_GAIN, Scale, measure_scale
from desat.diagnose.threshold import Threshold
from desat.record.reader import Columns, Record
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
UNSCALED = Threshold(
    "unscaled logits",
    1.0,
    "ratio",
    "largest logit over what the sizes of queries and keys let expect between with and without the division by the "
    "root of the head's width, above which it is missing",
    "desat: half way in decibels; in the proving ground it was below 0.75 with the division and above 1.4 without",
)
LARGEST_OF_MANY = 4.5
"""The largest of about 1e5 logits over their rms, if they are normal: the root of twice the logarithm of how many."""
NO_DOUBT = 0.75
"""One-hot share without a doubt; of 24 healthy transformers of the proving ground none had more than 0.016."""
FEWEST_WIDTH = 8
"""Width of a head from which on the division makes a difference that can be told."""


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
            by_rows = (self.one_hot - ONE_HOT.value) / (NO_DOUBT - ONE_HOT.value)
            return max((LOW_ENTROPY.value - self.entropy) / LOW_ENTROPY.value, by_rows)
        return (FLAT_LOGIT.value - self.logit) / FLAT_LOGIT.value


def examine_attention(case: Case) -> list[Finding]:
    """One finding for the network: sharp collapse before flat, the surest attention first."""
    collapses = [collapse for site in case.record.sites("attention") for collapse in _collapses(case, site) if collapse]
    sharp = [collapse for collapse in collapses if collapse.sharp]
    alike = sharp or collapses
    if not alike:
        return []
    worst = max(alike, key=lambda collapse: (collapse.episode.ongoing, collapse.margin))
    projections = _projections(case.record, worst) if worst.sharp and worst.episode.from_start else None
    return [
        Finding(
            code="collapsed-attention",
            severity=case.severity(worst.episode, worst.margin),
            site=worst.site.name,
            sites=tuple(collapse.site.name for collapse in alike),
            source=worst.site.source,
            first_step=min(collapse.episode.first_step for collapse in alike),
            last_step=max(collapse.episode.last_step for collapse in alike),
            cause=_cause(worst, projections),
            message=_message(worst),
            evidence={"entropy": worst.entropy, "one_hot_share": worst.one_hot, "largest_logit": worst.logit}
            | ({} if projections is None else projections.evidence),
            remedies=("attention=scale", "attention=qk-norm", "initialization=torch")
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


@dataclass(frozen=True)
class _Projections:
    """The layers that queries and keys come from, at the first sampled step of a collapse.

    gain: of their weights, see desat.diagnose.scale; incoming: rms of what goes into the first. excess: of the largest
    logit, see UNSCALED; None where the width of a head or the sizes are not known.
    """

    gain: float | None
    incoming: float | None
    excess: float | None

    @property
    def evidence(self) -> dict[str, float]:
        known = {"weight_gain": self.gain, "layer_input_rms": self.incoming, "logit_excess": self.excess}
        return {name: value for name, value in known.items() if value is not None}


def _projections(record: Record, collapse: _Collapse) -> _Projections | None:
    """Of the layers inside of the attention that run before its softmax those with the largest outputs, two at most.

    Where there is but one, queries, keys and values come from it.
    """
    step, site = collapse.episode.first_step, collapse.site
    within = [
        layer
        for layer in record.sites("module")
        if layer.position < site.position and layer.name.startswith(f"{site.name}.") and share_of(layer) == "weight"
    ]
    scales = [scale for layer in within if (scale := measure_scale(record, layer, step)) and scale.output]
    largest = sorted(scales, key=lambda scale: scale.output or 0.0)[-2:]
    if not largest:
        return None
    gains = [scale.gain for scale in largest if scale.gain is not None]
    return _Projections(max(gains, default=None), scales[0].incoming, _excess(record, collapse, largest, len(within)))


def _excess(record: Record, collapse: _Collapse, largest: list[Scale], layers: int) -> float | None:
    readings, units = record.readings(collapse.site), largest[0].units
    at = {name: readings[name] for name in ("largest_logit", "heads") if name in readings}
    if len(at) < 2 or units is None:
        return None
    logit, heads = (
        float(one["value"][one["step"] == collapse.episode.first_step].max(initial=0.0)) for one in at.values()
    )
    width = units / (3.0 if layers == 1 else 1.0) / max(heads, 1.0)
    size = (largest[0].output or 0.0) * (largest[-1].output or 0.0)
    if width < FEWEST_WIDTH or not np.isfinite(logit) or size <= 0.0 or logit <= 0.0:
        return None
    return float(logit / (size * LARGEST_OF_MANY * width**0.25))


def _cause(collapse: _Collapse, projections: _Projections | None) -> str:
    if not collapse.sharp:
        return "queries and keys are next to nothing, so that no key is told from another: their weights are too small"
    large = f"its logits are as large as {collapse.logit:.0f}"
    if collapse.logit < LARGE_LOGIT.value:
        return f"most keys are masked or far below one another, though no logit is above {LARGE_LOGIT.value:.0f}"
    if collapse.episode.from_start:
        return f"{large} from the start: {_since_birth(projections)}"
    return f"{large} since step {collapse.episode.first_step}: the query and key weights have grown"


def _since_birth(projections: _Projections | None) -> str:
    if projections is None or projections.excess is None:
        return "the division by the root of the head's width is missing, or the query and key weights are too large"
    if projections.excess >= UNSCALED.value:
        return "they are not divided by the root of the head's width, as their size beside queries and keys tells"
    if projections.gain is not None and projections.gain > SOUND_GAIN:
        return f"the query and key weights are too large, their gain is {projections.gain:.2g}, 1 to 1.4 is sound"
    return "what comes into the attention is too large, and nothing normalizes it"


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
    thresholds=(LOW_ENTROPY, ONE_HOT, LARGE_LOGIT, FLAT_LOGIT, UNSCALED),
    meaning="Every query looks at one key only, or at all keys alike, so that attention has nothing left to learn by.",
    measured=(
        "The entropy of the attention weights over the log of the visible keys, the share of queries with one weight "
        "above 0.99, and the largest logit, of a sample of queries of each head."
    ),
    helps="Division of the logits by the root of the head's width, normalized queries and keys, smaller steps.",
)
