"""vanishing-gradient: so much of the gradient is lost on its way back that the first layers learn nothing."""

import numpy as np

from desat.diagnose.curves import nonlinearities
from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.link_budget import LinkBudget, measure_link_budgets
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.diagnose.weight_gradient import weight_gradient_ratio

LOST_GRADIENT = Threshold(
    "lost gradient",
    -60.0,
    "dB",
    "gradient at the first layer over the last, pooling and reshaping left out, below which it has vanished",
    "AUTOTRAINER (Zhang et al., ICSE 2021): first over last layer below 1e-3, which is -60 dB",
)
AGREEMENT = Threshold(
    "agreement",
    -40.0,
    "dB",
    "rms(gradient)/rms(weight) at the first layer over the last, low as well unless the loss tells of harm",
    "desat: a large feature map spreads its gradient thin and sums it up again in the weight, which is no disease",
)
LOSING_LINK = Threshold(
    "losing link", -3.0, "dB", "gain of a site that takes a noteworthy part in the loss", "half of the power"
)
NO_DOUBT = -120.0
"""dB at which the loss is beyond doubt: six orders of magnitude, more than the 24 bits of a float32 mantissa bridge."""


def examine_vanishing(case: Case) -> list[Finding]:
    """One finding for the network, by the sampled step with the median loss of gradient among the sick ones."""
    budgets = measure_link_budgets(case.record)
    weights = weight_gradient_ratio(case.record)
    held = [
        _lost(budget) <= LOST_GRADIENT.value
        and (bool(case.learning.harm) or weights.get(budget.step, -np.inf) <= AGREEMENT.value)
        for budget in budgets
    ]
    episode = find_episode([budget.step for budget in budgets], held)
    if episode is None:
        return []
    sick = [budget for budget, is_held in zip(budgets, held, strict=True) if is_held and episode.covers(budget.step)]
    budget = sorted(sick, key=_lost)[len(sick) // 2]
    return [_finding(case, budget, episode, weights.get(budget.step))]


def _finding(case: Case, budget: LinkBudget, episode: Episode, weight_db: float | None) -> Finding:
    losing = [link for link in reversed(budget.links) if link.gain_db <= LOSING_LINK.value]
    worst = min(budget.links, key=lambda link: link.gain_db)
    sources = {site.name: site.source for site in case.record.sites()}
    margin = (_lost(budget) - LOST_GRADIENT.value) / (NO_DOUBT - LOST_GRADIENT.value)
    evidence = {"gradient_loss_db": budget.total_db, "worst_link_db": worst.gain_db}
    evidence |= {f"{share}_db": gain for share, gain in budget.by_share.items()}
    evidence |= {f"{share}_share": fraction for share, fraction in budget.fractions.items()}
    if weight_db is not None:
        evidence["weight_gradient_db"] = weight_db
    return Finding(
        code="vanishing-gradient",
        severity=case.severity(episode, margin),
        site=worst.site,
        sites=tuple(dict.fromkeys([budget.first_site, *(link.site for link in losing)])),
        source=sources.get(worst.site),
        first_step=episode.first_step,
        last_step=episode.last_step,
        cause=_cause(budget),
        message=(
            f"On its way back to the first layer ({budget.first_site}) the gradient loses {-budget.total_db:.0f} dB, "
            f"{episode.since}: {_fraction_left(budget.total_db)} arrives. "
            f"A loss of less than {-LOST_GRADIENT.value:.0f} dB would be sound; so the first layers hardly learn."
        ),
        evidence=evidence,
        remedies=_remedies(case, budget),
        confidence=episode.confidence(margin),
    )


def _lost(budget: LinkBudget) -> float:
    return budget.total_db - budget.by_share["other"]


def _fraction_left(total_db: float) -> str:
    exponent = int(np.floor(-total_db / 20.0))
    return f"less than 1/10^{exponent} of it" if exponent > 6 else f"1 part in {10 ** (-total_db / 20.0):,.0f}"


def _cause(budget: LinkBudget) -> str:
    share = budget.dominating_share
    reason = {
        "nonlinearity": "the slope of the nonlinearities shrinks it",
        "weight": "the weights are too small to carry it",
        "normalization": "the normalization layers shrink it",
        "other": "other modules shrink it",
    }[share]
    return f"{reason} ({share}: {budget.fractions[share]:.0%} of what is lost)"


def _remedies(case: Case, budget: LinkBudget) -> tuple[str, ...]:
    bounded = bool(nonlinearities(case.record, "bounded"))
    if bounded or budget.dominating_share == "nonlinearity":
        return ("activation=relu", "initialization=he", "normalization=batch")
    return ("initialization=he", "normalization=batch", "activation=leaky_relu")


VANISHING_GRADIENT = Rule(
    code="vanishing-gradient",
    examine=examine_vanishing,
    thresholds=(LOST_GRADIENT, AGREEMENT, LOSING_LINK),
    meaning=("So much of the gradient is lost on its way back from the loss that the first layers learn nothing."),
    measured=(
        "The link budget: rms(gradient) at the first layer's output over that at the last, in decibels, "
        "pooling and reshaping left out, together with the relative gradients of the first and last weights."
    ),
    helps=(
        "A nonlinearity with a slope of one, weights drawn for it, normalization, or residual connections, by "
        "what the link budget says takes the gradient."
    ),
)
