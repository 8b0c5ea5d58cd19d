"""exploding-gradient: the gradient grows on its way back through the layers, or from step to step."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.link_budget import LinkBudget, measure_link_budgets
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.diagnose.weight_gradient import weight_gradient_level

GAINED_GRADIENT = Threshold(
    "gained gradient",
    37.0,
    "dB",
    "gradient at the first layer over gradient at the last, above which it explodes",
    "AUTOTRAINER (Zhang et al., ICSE 2021): first over last layer above 70, which is 37 dB",
)
GROWTH = Threshold(
    "growth",
    60.0,
    "dB",
    "largest rms(gradient) of a weight over what it was at the first sampled step, above which it explodes",
    "desat: a thousandfold; Pascanu, Mikolov and Bengio 2013, section 2.3, describe the cliffs that cause it",
)
GROWING_LINK = Threshold(
    "growing link", 3.0, "dB", "gain of a site that takes a noteworthy part in the growth", "twice the power"
)
SILENCE = -600.0
"""dB below which there is no gradient at all, from which any growth would be without bound."""


@dataclass(frozen=True)
class _Explosion:
    """An explosion over the depth of the network or over time, by `decibels` against a threshold."""

    episode: Episode
    decibels: float
    threshold: Threshold

    @property
    def margin(self) -> float:
        return (self.decibels - self.threshold.value) / self.threshold.value


def examine_exploding(case: Case) -> list[Finding]:
    """One finding for the network: over its depth where that explains it, else over time."""
    budgets = measure_link_budgets(case.record)
    in_depth = _explosion_in_depth(budgets)
    if in_depth is not None:
        return [_depth_finding(case, in_depth, _strongest(budgets, in_depth.episode))]
    in_time = _explosion_in_time(case)
    return [_time_finding(case, in_time)] if in_time is not None else []


def _explosion_in_depth(budgets: tuple[LinkBudget, ...]) -> _Explosion | None:
    grown = [budget.total_db - budget.by_share["other"] for budget in budgets]
    held = [gain >= GAINED_GRADIENT.value for gain in grown]
    episode = find_episode([budget.step for budget in budgets], held)
    if episode is None:
        return None
    during = [gain for gain, budget in zip(grown, budgets, strict=True) if episode.covers(budget.step)]
    return _Explosion(episode, float(np.median(during)), GAINED_GRADIENT)


def _explosion_in_time(case: Case) -> _Explosion | None:
    steps, level = weight_gradient_level(case.record)
    known = np.isfinite(level) & (level > SILENCE)
    steps, level = steps[known], level[known]
    if not len(level):
        return None
    growth = level - level[0]
    episode = find_episode(steps, growth >= GROWTH.value)
    return None if episode is None else _Explosion(episode, float(growth.max()), GROWTH)


def _strongest(budgets: tuple[LinkBudget, ...], episode: Episode) -> LinkBudget:
    during = [budget for budget in budgets if episode.covers(budget.step)]
    return max(during, key=lambda budget: budget.total_db)


def _depth_finding(case: Case, explosion: _Explosion, budget: LinkBudget) -> Finding:
    growing = [link for link in reversed(budget.links) if link.gain_db >= GROWING_LINK.value]
    worst = max(budget.links, key=lambda link: link.gain_db)
    share = budget.dominating_share
    return _finding(
        case,
        explosion,
        site=worst.site,
        sites=tuple(dict.fromkeys([budget.first_site, *(link.site for link in growing)])),
        cause=f"gains above one multiply over the layers ({share}: {budget.fractions[share]:.0%} of the growth)",
        message=(
            f"On its way back to the first layer ({budget.first_site}) the gradient grows by "
            f"{explosion.decibels:.0f} dB, {explosion.episode.since}; "
            f"less than {GAINED_GRADIENT.value:.0f} dB would be sound. "
            "The first layers are thrown about while the last ones hardly move."
        ),
        evidence={"gradient_gain_db": explosion.decibels, "worst_link_db": worst.gain_db}
        | {f"{share}_db": gain for share, gain in budget.by_share.items()},
        remedies=("initialization=he", "normalization=batch", "clipping=1.0"),
    )


def _time_finding(case: Case, explosion: _Explosion) -> Finding:
    gradients = case.record.grid("parameter", "gradient_rms")
    at = gradients.values[:, gradients.steps == explosion.episode.last_step].reshape(-1)
    site = gradients.sites[int(np.argmax(np.nan_to_num(at, nan=-1.0, posinf=np.finfo(np.float64).max)))]
    return _finding(
        case,
        explosion,
        site=site.name,
        sites=(site.name,),
        cause=f"gradients grew {explosion.episode.since}: the learning rate is too large for the slope of the loss",
        message=(
            f"The largest gradient grew by {explosion.decibels:.0f} dB during the training, {explosion.episode.since}; "
            f"less than {GROWTH.value:.0f} dB would be sound. Each such step throws away what was learned."
        ),
        evidence={"gradient_growth_db": explosion.decibels},
        remedies=("clipping=1.0", "optimizer=adam", "normalization=batch"),
    )


def _finding(
    case: Case,
    explosion: _Explosion,
    *,
    site: str,
    sites: tuple[str, ...],
    cause: str,
    message: str,
    evidence: dict[str, float],
    remedies: tuple[str, ...],
) -> Finding:
    sources = {known.name: known.source for known in case.record.sites()}
    return Finding(
        code="exploding-gradient",
        severity="error" if case.learning.state == "non-finite" else case.severity(explosion.episode, explosion.margin),
        site=site,
        sites=sites,
        source=sources.get(site),
        first_step=explosion.episode.first_step,
        last_step=explosion.episode.last_step,
        cause=cause,
        message=message,
        evidence=evidence,
        remedies=remedies,
        confidence=explosion.episode.confidence(explosion.margin),
    )


EXPLODING_GRADIENT = Rule(
    code="exploding-gradient",
    examine=examine_exploding,
    thresholds=(GAINED_GRADIENT, GROWTH, GROWING_LINK),
    meaning=(
        "The gradient grows out of hand, on its way back through the layers or from step to step, so that "
        "each update throws away what was learned."
    ),
    measured=(
        "Over depth: the link budget's total, rms(gradient) at the first layer's output over that at the "
        "last, in decibels, pooling and reshaping left out. Over time: the largest rms(gradient) of any "
        "weight against the first sampled step."
    ),
    helps=(
        "Draw the weights so that each layer's gain is one (initialization), normalize, or clip the "
        "gradient's norm; lower the learning rate where it began in mid-run."
    ),
)
