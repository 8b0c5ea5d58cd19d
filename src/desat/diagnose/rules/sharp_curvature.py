"""sharp-curvature: the loss is curved more sharply than the optimizer's steps can follow."""

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.learning import FALLING
from desat.diagnose.reading_series import together
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold

OVER_LIMIT = Threshold(
    "over limit",
    1.5,
    "sharpness / stability limit",
    "sharpness over what the optimizer's steps can stand, above which they overshoot",
    "desat: healthy training stays near 1 (Cohen et al. 2021, section 3); batches make single measurements vary",
)
UNCONVERGED = Threshold(
    "unconverged",
    0.25,
    "residual / sharpness",
    "relative residual of the estimate, above which a measurement is left out",
    "desat: then an eigenvalue lies within a quarter of it (Golub and Van Loan, theorem 8.1.13)",
)
THROWN = Threshold(
    "thrown loss",
    2.0,
    "ratio",
    "loss in and soon after an episode over that at its beginning, by which the episode threw the training off",
    "desat: healthy perceptrons on digits overshoot by less in their first steps",
)
NO_DOUBT = 10.0
"""Times the limit at which there is no doubt."""
AFTERMATH = 20
"""Steps after an episode within which a risen loss is its work."""


def examine_curvature(case: Case) -> list[Finding]:
    """At most one finding, of the loss."""
    for site in case.record.sites("curvature"):
        series = together(case.record, site, "sharpness", "sharpness_residual", "stability_limit")
        if series is None:
            continue
        steps, sharpness, limit = series["step"], series["sharpness"], series["stability_limit"]
        with np.errstate(invalid="ignore"):
            converged = np.isfinite(sharpness) & (series["sharpness_residual"] <= UNCONVERGED.value) & (limit > 0.0)
        steps, sharpness, limit = steps[converged], sharpness[converged], limit[converged]
        over = sharpness / limit
        episode = find_episode(steps, over >= OVER_LIMIT.value)
        if episode is None:
            continue
        during = (steps >= episode.first_step) & (steps <= episode.last_step)
        ratio = float(np.median(over[during]))
        severity = _severity(case, episode, ratio)
        if severity is None:
            continue
        evidence = {
            "sharpness": float(np.median(sharpness[during])),
            "stability_limit": float(np.median(limit[during])),
            "sharpness_over_limit": ratio,
            "measurements": float(len(steps)),
        }
        rate = _rate(case, episode)
        if rate is not None:
            evidence |= {"learning_rate": rate, "fitting_learning_rate": rate / ratio}
        margin = _margin(ratio)
        return [
            Finding(
                code="sharp-curvature",
                severity=severity,
                site=site.name,
                sites=(site.name,),
                source=site.source,
                first_step=episode.first_step,
                last_step=episode.last_step,
                cause=_cause(evidence, episode),
                message=(
                    f"The loss is curved {ratio:.1f} times as sharply as the optimizer's steps can follow "
                    f"(sharpness {evidence['sharpness']:.3g}, limit {evidence['stability_limit']:.3g}), "
                    f"{episode.since}; about 1 or less would be sound. Each step lands higher on the other side."
                ),
                evidence=evidence,
                remedies=("optimizer=rate:0.1", "optimizer=adam", "clipping=1.0", "normalization=batch"),
                confidence=episode.confidence(margin),
            )
        ]
    return []


def _margin(ratio: float) -> float:
    return float(np.clip(np.log(ratio / OVER_LIMIT.value) / np.log(NO_DOUBT / OVER_LIMIT.value), 0.0, 1.0))


def _severity(case: Case, episode: Episode, ratio: float) -> Severity | None:
    """An error where the loss rises or goes nowhere under it; where it falls, the edge of stability is healthy.

    A network that was thrown off in its first steps may lie where nothing is sharp any more: what is over still is the
    cause if the loss rose with it.
    """
    learning = case.learning
    threw = _threw(case, episode)
    if learning.state == "non-finite" or (learning.harm and (episode.ongoing or threw)):
        return "error"
    if threw and not _is_below(case, episode):
        return "error"
    if learning.harm is False:
        return "note" if episode.ongoing else None
    return case.severity(episode, _margin(ratio))


def _threw(case: Case, episode: Episode) -> bool:
    """Whether the loss rose in an episode, or soon after."""
    before, losses = _since(case, episode)
    near = losses[: episode.last_step - episode.first_step + AFTERMATH]
    return before > 0.0 and len(near) > 0 and float(near.max()) >= THROWN.value * before


def _is_below(case: Case, episode: Episode) -> bool:
    """Whether the loss has come down again below where it was when the episode began; a fall from a peak is no cure."""
    before, _ = _since(case, episode)
    return not case.learning.end > (1.0 - FALLING.value) * before


def _since(case: Case, episode: Episode) -> tuple[float, NDArray[np.float64]]:
    """The loss when an episode began, nan if there was none, and the losses from then on."""
    columns = case.record.steps()
    losses = columns["loss"][(columns["step"] >= episode.first_step) & np.isfinite(columns["loss"])]
    return float(losses[0]) if len(losses) else np.nan, losses


def _rate(case: Case, episode: Episode) -> float | None:
    columns = case.record.steps()
    during = (columns["step"] >= episode.first_step) & (columns["step"] <= episode.last_step)
    rates = columns["learning_rate"][during & np.isfinite(columns["learning_rate"])]
    return float(np.median(rates)) if len(rates) else None


def _cause(evidence: dict[str, float], episode: Episode) -> str:
    began = "from the start" if episode.from_start else f"since step {episode.first_step}"
    rate = evidence.get("learning_rate")
    if rate is None:
        return f"the learning rate is too large for the curvature of the loss {began}"
    fitting = evidence["fitting_learning_rate"]
    return f"the learning rate {rate:.2g} is too large for the loss's curvature {began}: below {fitting:.1g} is stable"


SHARP_CURVATURE = Rule(
    code="sharp-curvature",
    examine=examine_curvature,
    thresholds=(OVER_LIMIT, UNCONVERGED, THROWN, FALLING),
    meaning=(
        "The loss is curved more sharply than the optimizer's steps can follow: each step overshoots the valley, and "
        "the loss rises or swings instead of falling."
    ),
    measured=(
        "The largest eigenvalue of the loss's Hessian, by Lanczos iteration, against the limit that the learning rate "
        "and momentum set (2 / learning rate for plain gradient descent); measured where curvature is asked for. Near "
        "the limit with a falling loss is healthy: training goes there by itself."
    ),
    helps="A smaller learning rate, warm-up, clipping, or normalization, which makes the loss less sharp.",
)
