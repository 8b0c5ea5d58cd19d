"""loss-plateau: the loss has not fallen since the beginning."""

import numpy as np

from desat.diagnose.finding import Finding
from desat.diagnose.learning import FALLING, Learning
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import LARGE_UPDATE, SMALL_UPDATE, update_ratios

LONG = Threshold(
    "long plateau",
    100,
    "steps",
    "steps with a loss below which a flat loss is a warning only",
    "desat: twice `few losses`",
)


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
    cause, remedies = _cause(evidence.get("update_ratio"))
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


def _cause(ratio: float | None) -> tuple[str, tuple[str, ...]]:
    if ratio is not None and ratio < SMALL_UPDATE.value:
        return (
            f"the optimizer's steps are too small: they change the weights by {ratio:.1g} of their size, 1e-3 is usual",
            ("optimizer=adam", "initialization=he"),
        )
    if ratio is not None and ratio > LARGE_UPDATE.value:
        return (
            f"the optimizer's steps are too large: they change the weights by {ratio:.0%} of their size, 0.1% is usual",
            ("clipping=1.0", "optimizer=adam"),
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
    thresholds=(LONG, SMALL_UPDATE, LARGE_UPDATE),
    meaning="The loss has not fallen since the beginning, or stays above that of guessing; no sick layer explains it.",
    measured=(
        "The median loss at the end against that after the first tenth of the run, in units of its own noise, and "
        "against the loss of one answer for all samples, where the criterion is a plain cross entropy or squared "
        "error; and rms(update)/rms(weight) of each layer for the cause."
    ),
    helps=("A learning rate from a range test, another optimizer, and a look at the labels and the loss."),
)
