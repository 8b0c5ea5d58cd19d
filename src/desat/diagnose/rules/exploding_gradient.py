"""exploding-gradient: the gradient grows on its way back through the layers, or from step to step."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.link_budget import Link, LinkBudget, measure_link_budgets
from desat.diagnose.reading_series import together, typical
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.diagnose.weight_gradient import weight_gradient_level
from desat.record.rows import Site

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
GROWN_THROUGH_TIME = Threshold(
    "grown through time",
    37.0,
    "dB",
    "gradient at the first step of a sequence over that at its last, through the recurrent state alone, above which it "
    "explodes",
    "desat: as over depth; Pascanu, Mikolov and Bengio 2013, section 2.1, on recurrent weights above one",
)
MOST_OF_GROWTH = Threshold(
    "most of the growth",
    0.5,
    "share",
    "part of the growth at one layer, above which it alone is to blame",
    "desat: half",
)
GROWING_LINK = Threshold(
    "growing link", 3.0, "dB", "gain of a site that takes a noteworthy part in the growth", "twice the power"
)
RECURRENT = ("lstm", "gru", "rnn")
"""Parts of the names of recurrent layers."""
SILENCE = -600.0
"""dB below which there is no gradient at all, from which any growth would be without bound."""


@dataclass(frozen=True)
class _Explosion:
    """An explosion over depth, over the training or through a sequence, by `decibels` against a threshold."""

    episode: Episode
    decibels: float
    threshold: Threshold

    @property
    def margin(self) -> float:
        return (self.decibels - self.threshold.value) / self.threshold.value


def examine_exploding(case: Case) -> list[Finding]:
    """One finding for the network: through its sequences or over its depth where that explains it, else over time."""
    through_time = max(_explosions_through_time(case), key=lambda one: one[0].decibels, default=None)
    if through_time is not None:
        return [_recurrent_finding(case, *through_time)]
    budgets = measure_link_budgets(case.record)
    in_depth = _explosion_in_depth(budgets)
    if in_depth is not None:
        lone = _lone_weight(budgets, in_depth.episode)
        return [_depth_finding(case, in_depth, _strongest(budgets, in_depth.episode), lone)]
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


def _explosions_through_time(case: Case) -> list[tuple[_Explosion, Site]]:
    """Of each recurrent layer the growth of the gradient on its way back through the sequence."""
    found = []
    for site in case.record.sites("recurrent"):
        series = together(case.record, site, "gradient_first_step_db")
        if series is None:
            continue
        level = series["gradient_first_step_db"]
        episode = find_episode(series["step"], level >= GROWN_THROUGH_TIME.value)
        growth = None if episode is None else typical(series["step"], level, episode)
        if episode is not None and growth is not None:
            found.append((_Explosion(episode, growth, GROWN_THROUGH_TIME), site))
    return found


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


def _lone_weight(budgets: tuple[LinkBudget, ...], episode: Episode) -> Link | None:
    """The layer whose weights alone make most of the growth where it began, from the start on; None where none does."""
    first = next(budget for budget in budgets if episode.covers(budget.step))
    most = max(first.links, key=lambda link: link.gain_db)
    growth = sum(link.gain_db for link in first.links if link.gain_db > 0.0)
    is_lone = episode.from_start and most.share == "weight" and most.gain_db > MOST_OF_GROWTH.value * growth
    return most if is_lone and most.gain_db > GROWING_LINK.value else None


def _recurrent_finding(case: Case, explosion: _Explosion, state: Site) -> Finding:
    module = next((site.name for site in case.record.sites("module") if state.name.startswith(f"{site.name}.")), None)
    series = together(case.record, state, "steps")
    steps = None if series is None else typical(series["step"], series["steps"], explosion.episode)
    a_step = {} if steps is None or steps < 2 else {"gradient_gain_db_per_step": explosion.decibels / (steps - 1)}
    by_step = f" by {a_step['gradient_gain_db_per_step']:.2g} dB" if a_step else ""
    return _finding(
        case,
        explosion,
        site=module or state.name,
        sites=tuple(dict.fromkeys([module or state.name, state.name])),
        cause=f"the recurrent weights are too large: the gradient grows{by_step} at each step back in time",
        message=(
            f"On its way back through the sequence the gradient of {state.name} grows by {explosion.decibels:.0f} dB, "
            f"{explosion.episode.since}; less than {GROWN_THROUGH_TIME.value:.0f} dB would be sound. "
            "The first steps of a sequence outweigh all others, and an update throws the weights about."
        ),
        evidence={"gradient_gain_through_time_db": explosion.decibels} | a_step,
        remedies=("initialization=torch", "initialization=orthogonal", "clipping=1.0"),
    )


def _depth_finding(case: Case, explosion: _Explosion, budget: LinkBudget, lone: Link | None) -> Finding:
    growing = [link for link in reversed(budget.links) if link.gain_db >= GROWING_LINK.value]
    worst = lone or max(budget.links, key=lambda link: link.gain_db)
    share = budget.dominating_share
    cause = f"gains above one multiply over the layers ({share}: {budget.fractions[share]:.0%} of the growth)"
    if any(name in worst.operation.lower() for name in RECURRENT):
        cause = f"the recurrent weights are too large: most of the growth comes at {worst.site}"
    elif lone is not None:
        grows = f"{lone.gain_db:.0f} dB of the growth come from it alone"
        cause = f"the weights of {lone.site} are too large: {grows}"
        if lone.site == budget.links[0].site:
            cause = f"the last layer's weights are too large: {grows}"
    return _finding(
        case,
        explosion,
        site=worst.site,
        sites=tuple(dict.fromkeys([budget.first_site, *(link.site for link in growing)])),
        cause=cause,
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
        remedies=("clipping=1.0", "optimizer=rate:0.1", "optimizer=adam", "normalization=batch"),
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
    thresholds=(GAINED_GRADIENT, GROWTH, GROWN_THROUGH_TIME, MOST_OF_GROWTH, GROWING_LINK),
    meaning=(
        "The gradient grows out of hand, on its way back through the layers or from step to step, so that "
        "each update throws away what was learned."
    ),
    measured=(
        "Over depth: the link budget's total, rms(gradient) at the first layer's output over that at the "
        "last, in decibels, pooling and reshaping left out. Over time: the largest rms(gradient) of any "
        "weight against the first sampled step. Through a sequence: what arrives at its first step over what came to "
        "its last, by the recurrent state alone."
    ),
    helps=(
        "Draw the weights so that each layer's gain is one (initialization), normalize, or clip the "
        "gradient's norm; lower the learning rate where it began in mid-run."
    ),
)
