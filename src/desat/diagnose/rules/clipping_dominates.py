"""clipping-dominates: the limit of the clipping, and not the gradient, says how far the optimizer steps."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.reading_series import together, typical
from desat.diagnose.rule import Case, Rule
from desat.diagnose.starvation import STARVED_PATH, Way, measure_way, starved_severity
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import USUAL_UPDATE
from desat.record.rows import Site

CLIPPED_TO = Threshold(
    "clipped to",
    0.1,
    "norm after / norm before",
    "what clipping leaves of the gradient's norm, below which the limit dominates",
    "desat: a tenth; Pascanu, Mikolov and Bengio 2013, section 3.2, set the limit near the average norm",
)
CUT_VALUES = Threshold(
    "cut values",
    0.5,
    "share of the entries",
    "share of the gradient's entries cut to one magnitude, above which only their signs are left",
    "desat: half of them",
)
ALWAYS = Threshold(
    "always clipped",
    0.9,
    "share of the sampled steps",
    "share of the steps at which clipping dominates that is a symptom, not a guard against outliers",
    "desat: nearly every step",
)
ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Adafactor", "SparseAdam")
"""These divide by the gradient's own size: a factor on all gradients leaves their steps as they were."""
NO_DOUBT = 1e-2
"""Share of the threshold at which there is no doubt."""


@dataclass(frozen=True)
class _Clipping:
    """One optimizer's clipping over its episode: medians. kept: of the norm. cut: share of the entries."""

    site: Site
    episode: Episode
    kept: float
    cut: float
    norm: float | None
    share: float

    @property
    def by_value(self) -> bool:
        return self.cut >= CUT_VALUES.value

    @property
    def margin(self) -> float:
        if self.by_value:
            return float(np.clip((self.cut - CUT_VALUES.value) / (1.0 - CUT_VALUES.value), 0.0, 1.0))
        lost = np.log(max(self.kept / CLIPPED_TO.value, NO_DOUBT)) / np.log(NO_DOUBT)
        return float(np.clip(lost, 0.0, 1.0))


def examine_clipping(case: Case) -> list[Finding]:
    """At most one finding, for the optimizer whose gradients are clipped the most."""
    found = [one for site in case.record.sites("optimizer") if (one := _clipping(case, site)) is not None]
    if not found:
        return []
    worst = max(found, key=lambda one: one.margin)
    way = measure_way(case.record)
    evidence = {"clip_factor": worst.kept, "clipped_value_share": worst.cut, "clipped_steps_share": worst.share}
    if worst.norm is not None:
        evidence |= {"gradient_norm": worst.norm, "clip_limit": worst.kept * worst.norm}
    if way is not None:
        evidence |= {"update_ratio": way.ratio, "path": way.path}
    return [
        Finding(
            code="clipping-dominates",
            severity=_severity(case, worst, way),
            site=worst.site.name,
            sites=tuple(one.site.name for one in found),
            source=worst.site.source,
            first_step=worst.episode.first_step,
            last_step=worst.episode.last_step,
            cause=_cause(worst, evidence),
            message=_message(worst, evidence),
            evidence=evidence,
            remedies=_remedies(worst),
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _clipping(case: Case, site: Site) -> _Clipping | None:
    series = together(case.record, site, "clip_factor", "clipped_value_share")
    if series is None:
        return None
    kept, cut = series["clip_factor"], series["clipped_value_share"]
    held = (kept <= CLIPPED_TO.value) | (cut >= CUT_VALUES.value)
    episode = find_episode(series["step"], held)
    if episode is None or episode.held < ALWAYS.value * episode.observed:
        return None
    steps = series["step"]
    norms = together(case.record, site, "gradient_norm")
    return _Clipping(
        site,
        episode,
        kept=typical(steps, kept, episode) or 0.0,
        cut=typical(steps, cut, episode) or 0.0,
        norm=None if norms is None else typical(norms["step"], norms["gradient_norm"], episode),
        share=float(held.mean()),
    )


def _severity(case: Case, worst: _Clipping, way: Way | None) -> Severity:
    if worst.share < ALWAYS.value or worst.site.operation in ADAPTIVE:
        return "note"
    return starved_severity(case, worst.episode, worst.margin, way)


def _cause(worst: _Clipping, evidence: dict[str, float]) -> str:
    if worst.by_value:
        return f"clipping by value cuts {worst.cut:.0%} of the gradient's entries to the limit: it is too low"
    if worst.norm is None:
        return f"the limit of the clipping is too low: it leaves {worst.kept:.1g} of the gradient"
    limit = evidence["clip_limit"]
    return f"the limit of the clipping, {limit:.2g}, is too low: the gradient's norm is {worst.norm:.2g}"


def _message(worst: _Clipping, evidence: dict[str, float]) -> str:
    if worst.by_value:
        what = f"Clipping cuts {worst.cut:.0%} of the gradient's entries, below {CUT_VALUES.value:.0%} would be sound"
    else:
        what = (
            f"Clipping leaves {worst.kept:.2%} of the gradient's norm, more than {CLIPPED_TO.value:.0%} would be sound"
        )
    text = f"{what}, {worst.episode.since}, so that its limit sets the size of each step."
    if "update_ratio" not in evidence:
        return text
    return (
        f"{text} A step changes the weights by {evidence['update_ratio']:.1g} of their size; {USUAL_UPDATE:g} is usual."
    )


def _remedies(worst: _Clipping) -> tuple[str, ...]:
    if worst.by_value or worst.norm is None:
        return ("optimizer=adam", "normalization=layer", "clipping=1.0")
    return ("optimizer=adam", "clipping=percentile", f"clipping={_rounded(worst.norm)}")


def _rounded(number: float) -> str:
    return f"{float(f'{number:.1g}'):g}"


CLIPPING_DOMINATES = Rule(
    code="clipping-dominates",
    examine=examine_clipping,
    thresholds=(CLIPPED_TO, CUT_VALUES, ALWAYS, STARVED_PATH),
    meaning=(
        "Gradients are clipped by a large factor at nearly every step, so that the limit and not the gradient says how "
        "far the weights go, and that is hardly anywhere."
    ),
    measured=(
        "The gradients at the end of the backward pass against those that the optimizer is given: the factor on their "
        "norm, or the share of entries cut to one magnitude. It counts only where the weights of the typical layer "
        "have come a short way in all, and not with optimizers that divide by the gradient's size."
    ),
    helps="A limit near the usual norm of the gradient (clipping by a percentile of its history), or Adam.",
)
