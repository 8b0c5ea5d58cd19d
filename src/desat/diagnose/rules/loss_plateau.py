"""loss-plateau: the loss has not fallen since the beginning."""

import numpy as np

from desat.diagnose.finding import Finding
from desat.diagnose.learning import FALLING, Learning
from desat.diagnose.loss_course import measure_course
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import LARGE_UPDATE, SMALL_UPDATE, USUAL_UPDATE, update_ratios
from desat.record.reader import Record

LONG = Threshold(
    "long plateau",
    100,
    "steps",
    "steps with a loss below which a flat loss is a warning only",
    "desat: twice `few losses`",
)
USUAL_STEPS = Threshold(
    "usual steps",
    30.0,
    "ratio",
    "of the update ratio and the customary 1e-3, within which the steps are of a usual size, neither small nor large",
    "desat: what learned in the proving ground had 5e-4 to 2e-2",
)
AT_GUESSING = Threshold(
    "at guessing",
    0.05,
    "share of the loss of guessing",
    "how far below the loss of guessing a loss may come that still says nothing of the labels",
    "desat: what the frequencies of the classes and a few samples known by heart save",
)
NOISE_LEVEL = Threshold(
    "noise level",
    0.11,
    "mean(gradient)^2 / var(gradient)",
    "signal-to-noise ratio of the gradients over 16 samples, below which nothing in them lasts",
    "desat: one and a half times the 15 / (13 * 16) = 0.072 of pure noise, by the F distribution's mean",
)
FAINT = 0.1
"""rms of the network's input from which on it may be too small to be told from nothing; 1 is sound."""
FULL_WINDOW = 16
"""Samples from which on the ratio is over 16 of them (desat.watch.gradient_noise)."""


def examine_plateau(case: Case) -> list[Finding]:
    """At most one finding; it has no site, for the loss has none."""
    learning = case.learning
    if learning.state not in ("stalled", "guessing") or learning.flat_since is None:
        return []
    ratios = update_ratios(case.record)
    evidence = {
        "loss_start": learning.start,
        "loss_end": learning.end,
        "loss_fall_share": learning.fall,
        **({"loss_of_guessing": learning.guessing} if learning.guessing is not None else {}),
        "losses": float(learning.losses),
    }
    if ratios:
        evidence["update_ratio"] = float(np.median(ratios))
    steps = case.record.steps()["step"]
    noise = _noise(case.record)
    if noise is not None:
        evidence["gradient_snr"] = noise
    cause, remedies = _labels(case, evidence) or _cause(evidence.get("update_ratio"))
    never_fell = learning.fall < FALLING.value
    return [
        Finding(
            code="loss-plateau",
            severity="error" if never_fell and learning.losses >= LONG.value else "warning",
            site=None,
            sites=(),
            source=None,
            first_step=learning.flat_since,
            last_step=int(steps[-1]),
            cause=cause,
            message=_message(learning),
            evidence=evidence,
            remedies=remedies,
            confidence=_confidence(learning),
        )
    ]


def _message(learning: Learning) -> str:
    if learning.guessing is not None and learning.state == "guessing":
        return (
            f"The loss went from {learning.start:.4g} to {learning.end:.4g}, which is worse than guessing: one answer "
            f"for all samples costs {learning.guessing:.3g}. A network that learns comes far below that."
        )
    return (
        f"The loss went from {learning.start:.4g} to {learning.end:.4g} and has been flat since step "
        f"{learning.flat_since}; a network that learns brings it down by far more than {FALLING.value:.0%}."
    )


def _noise(record: Record) -> float | None:
    """The signal-to-noise ratio of the typical weight's gradient in the last quarter of the samples; None if unknown.

    Parameters called `bias` are left out: that of the last layer learns how frequent the classes are.
    """
    ratios: list[float] = []
    for site in record.sites("parameter"):
        series = record.readings(site).get("gradient_snr")
        if series is None or site.is_bias:
            continue
        known = series["value"][np.isfinite(series["value"])]
        if len(known) >= FULL_WINDOW:
            ratios.append(float(np.median(known[-len(known) // 4 :])))
    return float(np.median(ratios)) if ratios else None


def _labels(case: Case, evidence: dict[str, float]) -> tuple[str, tuple[str, ...]] | None:
    """The cause where it is the labels: sound steps along gradients of noise, and a loss that was never below guessing.

    None where one of these is not so, or not known.
    """
    guessing, ratio, noise = case.learning.guessing, evidence.get("update_ratio"), evidence.get("gradient_snr")
    course = measure_course(case.record)
    if guessing is None or ratio is None or noise is None or course is None or case.learning.front_frozen:
        return None
    is_usual = 1.0 / USUAL_STEPS.value <= ratio / USUAL_UPDATE <= USUAL_STEPS.value
    was_below = course.best < (1.0 - AT_GUESSING.value) * guessing
    is_above = course.late > (1.0 + FALLING.value) * guessing
    if not is_usual or was_below or is_above or noise > NOISE_LEVEL.value or _is_faint(case.record):
        return None
    return (
        f"the labels carry nothing that the inputs tell: the loss stays at that of guessing, {guessing:.3g}, in "
        "steps of a usual size along gradients of mere noise; look whether the labels belong to these inputs",
        (),
    )


def _is_faint(record: Record) -> bool:
    """Whether next to nothing comes into the network, so that it cannot tell the samples apart."""
    sizes = [record.tensor(site, "output")["rms"] for site in record.sites("input")]
    return any(len(size) and np.nanmedian(size) <= FAINT for size in sizes if np.isfinite(size).any())


def _cause(ratio: float | None) -> tuple[str, tuple[str, ...]]:
    if ratio is not None and ratio < SMALL_UPDATE.value:
        return (
            f"the optimizer's steps are too small: they change the weights by {ratio:.1g} of their size, 1e-3 is usual",
            ("optimizer=adam", "initialization=he"),
        )
    if ratio is not None and ratio > LARGE_UPDATE.value:
        return (
            f"the optimizer's steps are too large: they change the weights by {ratio:.0%} of their size, 0.1% is usual",
            ("optimizer=rate:0.1", "optimizer=adam", "clipping=1.0"),
        )
    return (
        "no sick layer explains it: look at the learning rate, the labels and the loss",
        ("optimizer=adam", "activation=relu", "initialization=he"),
    )


def _confidence(learning: Learning) -> float:
    """Laplace's rule of succession over the losses in units of ten, less the nearer the loss came to falling."""
    blocks = learning.losses / 10.0
    margin = float(np.clip(1.0 - learning.late_fall / FALLING.value, 0.0, 1.0))
    return (blocks + 1.0) / (blocks + 2.0) * (0.5 + 0.5 * margin)


LOSS_PLATEAU = Rule(
    code="loss-plateau",
    examine=examine_plateau,
    thresholds=(LONG, SMALL_UPDATE, LARGE_UPDATE, USUAL_STEPS, AT_GUESSING, NOISE_LEVEL),
    meaning="The loss has not fallen since the beginning, or stays above that of guessing; no sick layer explains it.",
    measured=(
        "The median loss at the end against that after the first tenth of the run, in units of its own noise, and "
        "against the loss of one answer for all samples, where the criterion is a plain cross entropy or squared "
        "error; for the cause rms(update)/rms(weight) of each layer, and the signal-to-noise ratio of its gradient."
    ),
    helps=("A learning rate from a range test, another optimizer, and a look at the labels and the loss."),
)
