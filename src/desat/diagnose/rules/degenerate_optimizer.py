"""degenerate-optimizer: the optimizer's own settings make its steps useless, whatever the gradient says."""

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import SEVERITIES, Finding
from desat.diagnose.learning import LEARNED, SETTLED
from desat.diagnose.old_gradients import ADAPTED_STEP, LONG_MEMORY, LONG_MOMENTUM, MOMENTUM_GAIN, memory_symptom
from desat.diagnose.optimizer_steps import Symptom, adapted_steps, learning_rates, settings_of
from desat.diagnose.rule import SEVERE, Case, Rule
from desat.diagnose.starvation import STARVED_PATH, Way, measure_way, starved_severity
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import USUAL_UPDATE
from desat.record.reader import Record

EPSILON_SHARE = Threshold(
    "epsilon share",
    0.5,
    "share of the weights",
    "share of the weights whose second moment the optimizer's epsilon outweighs, above which it no longer adapts",
    "desat: half of them; Kingma and Ba 2015, algorithm 1, mean epsilon to avoid a division by zero alone",
)
LARGE_EPSILON = Threshold(
    "large epsilon",
    1e-6,
    "size of a gradient",
    "epsilon, as the steps tell of it, above which it is too large; else the gradients are too small",
    "desat: a hundred times the customary 1e-8 (Kingma and Ba 2015, algorithm 1)",
)
SPENT_RATE = Threshold(
    "spent rate",
    1e-2,
    "learning rate / its largest value",
    "part of the largest learning rate below which it has decayed to nothing",
    "desat: two of the customary tenfold cuts (He et al. 2016, section 3.4)",
)
EARLY_DECAY = Threshold(
    "early decay",
    0.5,
    "share of the steps",
    "share of the run that was spent with such a rate, above which it decayed too early",
    "desat: half of it; a cosine's last tenth is below that rate, and a stepwise schedule's last third",
)
UNSTEPPED = Threshold(
    "unstepped",
    10,
    "steps",
    "steps with a learning rate of zero from the start that are no warm-up any more",
    "desat: schedules of warm-up start at zero for one step",
)
SLOWED = Threshold(
    "slowed",
    0.1,
    "rms(update) / learning rate",
    "size of an adaptive optimizer's steps in units of the learning rate, below which a large epsilon starves a "
    "network that learns a little",
    "desat: a tenth of the step that it makes where epsilon is small (Kingma and Ba 2015, section 2.1)",
)
OTHER_EPSILON = ("Adadelta", "Adamax")
"""Optimizers whose epsilon is no size of a gradient that is added to a root."""


def examine_optimizer(case: Case) -> list[Finding]:
    """At most one finding: the gravest symptom, of equals the first one below."""
    way = measure_way(case.record)
    found = [_no_rate(case), _spent_rate(case, way), _epsilon(case, way), memory_symptom(case)]
    symptoms = [symptom for symptom in found if symptom is not None]
    if not symptoms:
        return []
    worst = min(symptoms, key=lambda symptom: SEVERITIES.index(symptom.severity))
    optimizers = case.record.sites("optimizer")
    site = worst.site or (optimizers[0] if optimizers else None)
    return [
        Finding(
            code="degenerate-optimizer",
            severity=worst.severity,
            site=None if site is None else site.name,
            sites=() if site is None else (site.name,),
            source=None if site is None else site.source,
            first_step=worst.episode.first_step,
            last_step=worst.episode.last_step,
            cause=worst.cause,
            message=worst.message,
            evidence=worst.evidence,
            remedies=worst.remedies,
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _no_rate(case: Case) -> Symptom | None:
    """A learning rate of zero from the first step to the last one, and weights that none of them changed."""
    steps, rates = learning_rates(case.record)
    changes = case.record.grid("parameter", "update_rms").values
    if len(rates) < UNSTEPPED.value or rates.any() or (np.nan_to_num(changes) > 0.0).any():
        return None
    return Symptom(
        "error",
        Episode(int(steps[0]), int(steps[-1]), len(steps), len(steps), True, True, None),
        1.0,
        None,
        "the learning rate is zero",
        (
            f"The learning rate has been 0 at each of {len(rates)} steps, so that no weight changes; "
            "it should be above zero. Look at the schedule, and at what sets it."
        ),
        {"learning_rate": 0.0, "steps": float(len(rates))},
        ("optimizer=adam",),
    )


def _spent_rate(case: Case, way: Way | None) -> Symptom | None:
    """A rate that decayed to nothing in the first half of a run that has not learned."""
    steps, rates = learning_rates(case.record)
    if case.is_learned or len(rates) < UNSTEPPED.value or not rates.any():
        return None
    after_peak = np.arange(len(rates)) > int(np.argmax(rates))
    episode = find_episode(steps, after_peak & (rates <= SPENT_RATE.value * rates.max()))
    if episode is None or not episode.ongoing or episode.held < EARLY_DECAY.value * len(rates):
        return None
    ratio = _ratio_during(case.record, episode)
    if ratio is not None and ratio > 0.1 * USUAL_UPDATE:
        return None
    left = float(np.median(rates[steps >= episode.first_step]))
    share = episode.held / len(rates)
    margin = (share - EARLY_DECAY.value) / (1.0 - EARLY_DECAY.value)
    evidence = {"learning_rate": left, "largest_learning_rate": float(rates.max()), "share_of_steps": share}
    if ratio is not None:
        evidence["update_ratio"] = ratio
    if way is not None:
        evidence["path"] = way.path
    return Symptom(
        "error" if margin >= SEVERE.value and case.learning.fall < LEARNED.value else case.severity(episode, margin),
        episode,
        margin,
        None,
        f"the learning rate had decayed to {left:.1g} by step {episode.first_step}, before the network had learned",
        (
            f"The learning rate fell from {rates.max():.2g} to {left:.1g} by step {episode.first_step}, and "
            f"{share:.0%} of the steps were made with next to nothing; less than {EARLY_DECAY.value:.0%} would be "
            f"sound. The loss stands at {case.learning.end:.3g}."
        ),
        evidence,
        ("optimizer=hold", "optimizer=adam"),
    )


def _epsilon(case: Case, way: Way | None) -> Symptom | None:
    """Epsilon in the place of the second moment of most weights: steps shrink with the gradient, and vanish with it."""
    steps, shares, count = _epsilon_shares(case.record)
    episode = find_episode(steps, shares >= EPSILON_SHARE.value)
    if episode is None:
        return None
    share = float(np.median(shares[(steps >= episode.first_step) & (steps <= episode.last_step)]))
    margin = (share - EPSILON_SHARE.value) / (1.0 - EPSILON_SHARE.value)
    severity = starved_severity(case, episode, margin, way)
    epsilon, is_large = _epsilon_of(case.record, episode)
    if severity == "warning" and is_large and _is_slowed(case, episode):
        severity = "error"
    if severity == "note" and case.learning.harm is False:
        return None  # what has been learned leaves no gradient that could outweigh anything
    evidence = {"epsilon_share": share, "parameters": float(count)}
    if way is not None:
        evidence |= {"update_ratio": way.ratio, "path": way.path}
    gradient = _typical_gradient(case.record, episode)
    if gradient is not None:
        evidence["gradient_rms"] = gradient
    if epsilon is not None:
        evidence["epsilon"] = epsilon
    evidence["small_gradients"] = float(not is_large)
    told = "" if gradient is None else f" (their rms is {gradient:.1g})"
    return Symptom(
        severity,
        episode,
        margin,
        None,
        f"epsilon, about {epsilon:.1g}, is too large for these gradients{told}; 1e-8 is usual"
        if is_large
        else f"the gradients{told} are so small that the optimizer's epsilon outweighs them",
        (
            f"The optimizer's epsilon outweighs the second moment of {share:.0%} of the weights, {episode.since}; "
            f"less than {EPSILON_SHARE.value:.0%} would be sound. So it no longer adapts, and its steps are too small"
            + (f": {way.ratio:.1g} of the weights, {USUAL_UPDATE:g} is usual." if way is not None else ".")
        ),
        evidence,
        ("optimizer=defaults", "optimizer=adam") if is_large else ("initialization=he", "normalization=layer"),
    )


def _ratio_during(record: Record, episode: Episode) -> float | None:
    update, size = record.grid("parameter", "update_rms"), record.grid("parameter", "rms")
    during = (update.steps >= episode.first_step) & (update.steps <= episode.last_step)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (update.values / size.values)[:, during]
    ratio = ratio[np.isfinite(ratio)]
    return float(np.median(ratio)) if len(ratio) else None


def _epsilon_shares(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Sampled steps, the share of all weights together at each, and how many parameters there are."""
    weighted: dict[float, float] = {}
    elements: dict[float, float] = {}
    count = 0
    for site in record.sites("parameter"):
        series = record.readings(site).get("epsilon_share")
        if series is None:
            continue
        sizes = record.parameter(site)["elements"]
        size = float(sizes[0]) if len(sizes) else 1.0
        count += 1
        for step, share in zip(series["step"], series["value"], strict=True):
            if np.isfinite(share):
                weighted[step] = weighted.get(step, 0.0) + size * share
                elements[step] = elements.get(step, 0.0) + size
    steps = sorted(weighted)
    return np.array(steps), np.array([weighted[step] / elements[step] for step in steps]), count


def _typical_gradient(record: Record, episode: Episode) -> float | None:
    gradient = record.grid("parameter", "gradient_rms")
    during = gradient.values[:, (gradient.steps >= episode.first_step) & (gradient.steps <= episode.last_step)]
    during = during[np.isfinite(during)]
    return float(np.median(during)) if len(during) else None


def _epsilon_of(record: Record, episode: Episode) -> tuple[float | None, bool]:
    """What the optimizer was given, or what its steps tell of it where that is not known; and whether it is large."""
    known = [
        epsilon
        for site in record.sites("optimizer")
        if site.operation not in OTHER_EPSILON and (epsilon := settings_of(record, site).epsilon) is not None
    ]
    epsilon = max(known, default=None)
    if epsilon is None:
        epsilon = _told_epsilon(record, episode)
    return epsilon, epsilon is not None and epsilon >= LARGE_EPSILON.value


def _is_slowed(case: Case, episode: Episode) -> bool:
    """Whether such an epsilon has made the steps of a network small that has learned little, and from the start on."""
    steps, sizes = adapted_steps(case.record)
    during = sizes[(steps >= episode.first_step) & (steps <= episode.last_step)]
    is_small = bool(len(during)) and float(np.median(during)) <= SLOWED.value
    return is_small and episode.from_start and case.learning.harm is False and case.learning.fall < SETTLED.value


def _told_epsilon(record: Record, episode: Episode) -> float | None:
    """What the steps divide by where that is all epsilon: learning rate x gradient / update, the median."""
    gradient, update = record.grid("parameter", "gradient_rms"), record.grid("parameter", "update_rms")
    steps, rates = learning_rates(record)
    at = np.isin(gradient.steps, steps) & (gradient.steps >= episode.first_step)
    rate = rates[np.isin(steps, gradient.steps[at])]
    with np.errstate(divide="ignore", invalid="ignore"):
        divisor = rate * gradient.values[:, at] / update.values[:, at]
    divisor = divisor[np.isfinite(divisor) & (divisor > 0.0)]
    return float(np.median(divisor)) if len(divisor) else None


DEGENERATE_OPTIMIZER = Rule(
    code="degenerate-optimizer",
    examine=examine_optimizer,
    thresholds=(
        EPSILON_SHARE, LARGE_EPSILON, SPENT_RATE, EARLY_DECAY, UNSTEPPED, SLOWED, MOMENTUM_GAIN, ADAPTED_STEP,
        LONG_MOMENTUM, LONG_MEMORY, STARVED_PATH,
    ),
    meaning=(
        "The optimizer's own settings make its steps useless: a learning rate of zero or one that decayed too early, "
        "an epsilon that outweighs the gradients, a momentum or betas that never forget."
    ),
    measured=(
        "The learning rate at each step; the share of the weights whose second moment epsilon outweighs; how large "
        "steps are beside the gradients, or Adam's beside the learning rate; and the settings themselves: how many "
        "steps momentum and the first moment remember, beside the run's and the second moment's, and whether the "
        "steps would be sound with the customary momentum. Each counts only in a network that does not learn, or "
        "hardly moves; betas that cannot belong together count while there is something left to learn. A gradient "
        "with much noise alone is no disease."
    ),
    helps="The customary settings: Adam with betas (0.9, 0.999) and epsilon 1e-8, or SGD with a momentum of 0.9.",
)  # fmt: skip
