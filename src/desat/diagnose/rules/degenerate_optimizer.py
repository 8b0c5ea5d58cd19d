"""degenerate-optimizer: the optimizer's own settings make its steps useless, whatever the gradient says."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import SEVERITIES, Finding, Severity
from desat.diagnose.learning import LEARNED
from desat.diagnose.rule import SEVERE, Case, Rule
from desat.diagnose.starvation import STARVED_PATH, Way, measure_way, starved_severity
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import USUAL_UPDATE
from desat.record.reader import Record
from desat.record.rows import Site

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
MOMENTUM_GAIN = Threshold(
    "momentum gain",
    12.0,
    "norm(update) / (learning rate x norm(gradient))",
    "how much momentum makes of a gradient, above which it carries the weights past where they should go",
    "desat: above the 1 / (1 - 0.9) of a steady gradient under the customary momentum (Sutskever et al. 2013)",
)
ADAPTED_STEP = Threshold(
    "adapted step",
    1.5,
    "rms(update) / learning rate",
    "size of Adam's steps in units of the learning rate, above which its betas do not belong together",
    "Kingma and Ba 2015, section 2.1: steps are about the learning rate at most, where beta1 < sqrt(beta2)",
)

ADAM_LIKE = ("Adam", "AdamW", "NAdam", "Adamax")
STEADY = 0.3
"""Share of the median gradient before it that a gradient has, at least, for steps to be compared with it."""
NO_DOUBT = 10.0
"""Times a threshold at which there is no doubt."""


@dataclass(frozen=True)
class _Symptom:
    """One way in which an optimizer is degenerate. margin: as in `Episode.confidence`."""

    severity: Severity
    episode: Episode
    margin: float
    site: Site | None
    cause: str
    message: str
    evidence: dict[str, float]
    remedies: tuple[str, ...]


def examine_optimizer(case: Case) -> list[Finding]:
    """At most one finding: the gravest symptom, of equals the first one below."""
    way = measure_way(case.record)
    found = [_no_rate(case), _spent_rate(case, way), _epsilon(case, way), _momentum(case)]
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


def _no_rate(case: Case) -> _Symptom | None:
    """A learning rate of zero from the first step to the last one, and weights that none of them changed."""
    steps, rates = _rates(case.record)
    changes = case.record.grid("parameter", "update_rms").values
    if len(rates) < UNSTEPPED.value or rates.any() or (np.nan_to_num(changes) > 0.0).any():
        return None
    return _Symptom(
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


def _spent_rate(case: Case, way: Way | None) -> _Symptom | None:
    """A rate that decayed to nothing in the first half of a run that has not learned."""
    steps, rates = _rates(case.record)
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
    return _Symptom(
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
        ("optimizer=adam",),
    )


def _epsilon(case: Case, way: Way | None) -> _Symptom | None:
    """Epsilon in the place of the second moment of most weights: steps shrink with the gradient, and vanish with it."""
    steps, shares, count = _epsilon_shares(case.record)
    episode = find_episode(steps, shares >= EPSILON_SHARE.value)
    if episode is None:
        return None
    share = float(np.median(shares[(steps >= episode.first_step) & (steps <= episode.last_step)]))
    margin = (share - EPSILON_SHARE.value) / (1.0 - EPSILON_SHARE.value)
    severity = starved_severity(case, episode, margin, way)
    if severity == "note" and case.learning.harm is False:
        return None  # what has been learned leaves no gradient that could outweigh anything
    evidence = {"epsilon_share": share, "parameters": float(count)}
    if way is not None:
        evidence |= {"update_ratio": way.ratio, "path": way.path}
    gradient = _typical_gradient(case.record, episode)
    if gradient is not None:
        evidence["gradient_rms"] = gradient
    epsilon = _told_epsilon(case.record, episode)
    if epsilon is not None:
        evidence["epsilon"] = epsilon
    is_large = epsilon is not None and epsilon >= LARGE_EPSILON.value
    evidence["small_gradients"] = float(not is_large)
    told = "" if gradient is None else f" (their rms is {gradient:.1g})"
    return _Symptom(
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
        ("optimizer=adam",) if is_large else ("initialization=he", "normalization=layer", "loss=scaling"),
    )


def _momentum(case: Case) -> _Symptom | None:
    """Steps far larger than the gradients they are made of, in a network that does not learn."""
    optimizers = case.record.sites("optimizer")
    if case.learning.harm is False or len(optimizers) != 1:
        return None
    operation = optimizers[0].operation
    if operation == "SGD":
        limit, (steps, gains) = MOMENTUM_GAIN, _gains(case.record)
    elif operation in ADAM_LIKE:
        limit, (steps, gains) = ADAPTED_STEP, _adapted_steps(case.record)
    else:
        return None
    episode = find_episode(steps, gains >= limit.value)
    if episode is None or 2 * episode.held < len(steps):
        return None
    gain = float(np.median(gains[(steps >= episode.first_step) & (steps <= episode.last_step)]))
    margin = float(np.clip(np.log(gain / limit.value) / np.log(NO_DOUBT), 0.0, 1.0))
    if operation == "SGD":
        cause = f"momentum is too near 1: it makes {gain:.0f} times the gradient of each, 10 with the usual 0.9"
        message = f"Momentum makes steps {gain:.0f} times as large as the gradients they are made of"
    else:
        cause = "beta2 forgets the gradient's size sooner than beta1 its direction; (0.9, 0.999) is usual"
        message = f"Adam's steps are {gain:.1f} times the learning rate"
    return _Symptom(
        case.severity(episode, margin),
        episode,
        margin,
        optimizers[0],
        cause,
        (
            f"{message}, {episode.since}; less than {limit.value:g} would be sound. "
            "Old gradients carry the weights past where the new ones point."
        ),
        {"step_gain": gain},
        ("optimizer=adam", "clipping=1.0"),
    )


def _rates(record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    columns = record.steps()
    known = np.isfinite(columns["learning_rate"])
    return columns["step"][known], columns["learning_rate"][known]


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


def _told_epsilon(record: Record, episode: Episode) -> float | None:
    """What the steps divide by where that is all epsilon: learning rate x gradient / update, the median."""
    gradient, update = record.grid("parameter", "gradient_rms"), record.grid("parameter", "update_rms")
    steps, rates = _rates(record)
    at = np.isin(gradient.steps, steps) & (gradient.steps >= episode.first_step)
    rate = rates[np.isin(steps, gradient.steps[at])]
    with np.errstate(divide="ignore", invalid="ignore"):
        divisor = rate * gradient.values[:, at] / update.values[:, at]
    divisor = divisor[np.isfinite(divisor) & (divisor > 0.0)]
    return float(np.median(divisor)) if len(divisor) else None


def _gains(record: Record) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At each sampled step norm(update) / (learning rate x norm(gradient)), over all parameters."""
    gradient, update = record.grid("parameter", "gradient_rms"), record.grid("parameter", "update_rms")
    norms = _norm(record, gradient.values)
    # What carries on after gradients that have died away tells of them, and not of the momentum.
    fresh = np.array([norm >= STEADY * np.nanmedian(norms[: place + 1]) for place, norm in enumerate(norms)])
    return _per_rate(record, gradient.steps, np.where(fresh, _norm(record, update.values) / norms, np.nan))


def _adapted_steps(record: Record) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At each sampled step rms(update) / learning rate, over all parameters."""
    update = record.grid("parameter", "update_rms")
    there = np.where(np.isfinite(update.values), 1.0, np.nan)
    return _per_rate(record, update.steps, _norm(record, update.values) / _norm(record, there))


def _norm(record: Record, values: NDArray[np.float64]) -> NDArray[np.float64]:
    elements = record.grid("parameter", "elements").values
    norm = np.sqrt(np.nansum(np.where(np.isfinite(values), elements * values**2, 0.0), axis=0))
    return np.where(norm > 0.0, norm, np.nan)


def _per_rate(
    record: Record, steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    known, rates = _rates(record)
    rate = dict(zip(known.astype(int).tolist(), rates.tolist(), strict=True))
    at = np.array([rate.get(int(step), np.nan) for step in steps])
    per_rate = values / np.where(at > 0.0, at, np.nan)
    finite = np.isfinite(per_rate)
    return steps[finite], per_rate[finite]


DEGENERATE_OPTIMIZER = Rule(
    code="degenerate-optimizer",
    examine=examine_optimizer,
    thresholds=(
        EPSILON_SHARE, LARGE_EPSILON, SPENT_RATE, EARLY_DECAY, UNSTEPPED, MOMENTUM_GAIN, ADAPTED_STEP, STARVED_PATH,
    ),
    meaning=(
        "The optimizer's own settings make its steps useless: a learning rate of zero or one that decayed too early, "
        "an epsilon that outweighs the gradients, a momentum or betas that never forget."
    ),
    measured=(
        "The learning rate at each step; the share of the weights whose second moment epsilon outweighs; and how large "
        "steps are beside the gradients, or Adam's beside the learning rate. Each counts only in a network that does "
        "not learn, or hardly moves. A gradient with much noise alone is no disease."
    ),
    helps="The customary settings: Adam with betas (0.9, 0.999) and epsilon 1e-8, or SGD with a momentum of 0.9.",
)  # fmt: skip
