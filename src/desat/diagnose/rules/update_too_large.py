"""update-too-large: the optimizer's steps are so large beside the weights that they throw away what was learned."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.layer_updates import LayerUpdates, layer_updates, learning_rate_at
from desat.diagnose.learning import FALLING, FEW_LOSSES, LEARNED
from desat.diagnose.loss_course import Course, measure_course
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import LARGE_UPDATE, USUAL_UPDATE, rates_that_fit

THROWN_BACK = Threshold(
    "thrown back",
    0.2,
    "share",
    "rise of the loss above what it was before the first large step, by which the step did damage",
    "desat: on digits Adam's first steps at 1e-2 are as large, raise the loss by less than 7 %, and do no damage",
)
REPLACED = Threshold(
    "replaced",
    0.3,
    "rms(update)/rms(weight)",
    "update ratio of the typical layer in one of the first steps, above which it replaces the weights that were drawn",
    "desat: of 239 healthy networks of the proving ground none had more than 0.24",
)
FIRST_STEPS = 10
"""Steps in which nothing is learned yet that larger steps could throw away: what they replace is what was drawn."""
SOON = 50
"""Steps after the last large one within which its damage shows."""
NO_DOUBT = 1.0
"""Update ratio of a step that leaves nothing of the weights before it."""


@dataclass(frozen=True)
class _Throw:
    """The large steps of a run. ratios: the largest of each layer among them, shape (layers,)."""

    updates: LayerUpdates
    ratios: NDArray[np.float64]
    episode: Episode
    loss_before: float
    loss_peak: float

    @property
    def worst(self) -> int:
        return int(np.argmax(self.ratios))

    @property
    def worst_step(self) -> int:
        """The sampled step at which the worst layer was changed most."""
        return int(self.updates.steps[int(np.nanargmax(self.updates.values[self.worst]))])

    @property
    def replaces_the_drawn(self) -> bool:
        """Whether one of the first steps left little of what the typical layer's weights were drawn to be."""
        early = self.updates.values[:, self.updates.steps <= FIRST_STEPS]
        typical = [float(np.median(known)) for ratios in early.T if len(known := ratios[np.isfinite(ratios)])]
        return max(typical, default=0.0) >= REPLACED.value

    @property
    def margin(self) -> float:
        """In orders of magnitude, since the ratio is judged by them."""
        beyond = np.log10(self.ratios[self.worst] / LARGE_UPDATE.value)
        return float(beyond / np.log10(NO_DOUBT / LARGE_UPDATE.value))


def examine_large_updates(case: Case) -> list[Finding]:
    """One finding for the network: large steps, and a loss that they threw back or that they last up to the end."""
    course = measure_course(case.record)
    throw = _throw(layer_updates(case.record), course)
    if throw is None or course is None:
        return []
    severity = _severity(case, throw, course)
    if severity is None:
        return []
    site = throw.updates.sites[throw.worst]
    ratio = float(throw.ratios[throw.worst])
    evidence = {"update_ratio": ratio, "loss_before": throw.loss_before, "loss_peak": throw.loss_peak}
    cause = "the learning rate is too large for these weights"
    rate = learning_rate_at(case.record, throw.worst_step)
    if rate is not None:
        evidence |= {"learning_rate": rate, "fitting_learning_rate": rate * USUAL_UPDATE / ratio}
        cause += f": {rate:.1g}, about {evidence['fitting_learning_rate']:.1g} would change them by 0.1%"
    affected = [name.name for name, value in zip(throw.updates.sites, throw.ratios, strict=True) if _is_large(value)]
    return [
        Finding(
            code="update-too-large",
            severity=severity,
            site=site.name,
            sites=tuple(affected),
            source=site.source,
            first_step=throw.episode.first_step,
            last_step=throw.episode.last_step,
            cause=cause,
            message=(
                f"One optimizer step changes {site.name} by {ratio:.0%} of its size, {throw.episode.since}; "
                f"0.1% is usual. Such steps throw away what was learned: "
                f"the loss was {throw.loss_before:.4g} before them and rose to {throw.loss_peak:.4g}."
            ),
            evidence=evidence,
            remedies=(*rates_that_fit(ratio), "optimizer=hold", "optimizer=adam", "clipping=1.0"),
            confidence=throw.episode.confidence(throw.margin),
        )
    ]


def _throw(updates: LayerUpdates, course: Course | None) -> _Throw | None:
    """Every sample from the first to the last large step is the episode: in between the damage lasts."""
    if course is None or not updates.sites:
        return None
    largest = np.nanmax(np.where(np.isfinite(updates.values), updates.values, 0.0), axis=0)
    held = np.flatnonzero(_is_large(largest))
    if not len(held):
        return None
    first, last = int(held[0]), int(held[-1])
    step = updates.steps
    episode = Episode(
        int(step[first]),
        int(step[last]),
        len(held),
        last - first + 1,
        first == 0,
        last >= len(step) - 2 and len(held) > 2,
        int(step[first - 1]) if first else None,
    )
    ratios = np.nanmax(np.where(np.isfinite(updates.values[:, held]), updates.values[:, held], 0.0), axis=1)
    return _Throw(updates, ratios, episode, *_losses_around(course, episode))


def _losses_around(course: Course, episode: Episode) -> tuple[float, float]:
    """The loss before the first large step took effect (median of five at most), and the highest soon after."""
    until = int(np.searchsorted(course.steps, episode.first_step, side="right"))
    before = course.losses[max(until - 5, 0) : until]
    end = int(np.searchsorted(course.steps, episode.last_step + SOON, side="right"))
    after = course.losses[until:end]
    level = float(np.median(before)) if len(before) else float(course.losses[0])
    return level, float(after.max()) if len(after) else level


def _severity(case: Case, throw: _Throw, course: Course) -> Severity | None:
    """An error needs three things: large steps, a loss that rose after them, and one that never recovered.

    Or first steps that replace what was drawn, and a loss that has some way to go.
    """
    if throw.replaces_the_drawn and case.learning.fall < LEARNED.value:
        return "error"
    rise = throw.loss_peak - throw.loss_before
    thrown_back = rise >= THROWN_BACK.value * abs(throw.loss_before) and rise >= 3.0 * course.noise
    if not thrown_back:
        return case.severity(throw.episode, 0.0) if throw.episode.ongoing and case.learning.harm else None
    harm = case.learning.harm
    if len(course.losses) >= FEW_LOSSES.value and _never_recovered(throw, course):
        harm = True
    if harm:
        return "error"
    if harm is None:
        return "warning"
    return "note" if throw.episode.ongoing else None


def _never_recovered(throw: _Throw, course: Course) -> bool:
    """Whether the loss ends no lower than it was before the large steps.

    The first losses of a run, by which its fall is judged, are high already where its first step did the damage.
    """
    return course.late >= (1.0 - FALLING.value) * throw.loss_before > 0.0


def _is_large(ratio: NDArray[np.float64]) -> NDArray[np.bool_]:
    return ratio >= LARGE_UPDATE.value


UPDATE_TOO_LARGE = Rule(
    code="update-too-large",
    examine=examine_large_updates,
    thresholds=(LARGE_UPDATE, THROWN_BACK, REPLACED),
    meaning="The optimizer's steps are so large beside the weights that each undoes what those before learned.",
    measured=(
        "rms(update)/rms(weight) of the fastest weight of each layer, biases and weights that start at zero left out, "
        "together with the loss: it rises after the large steps and does not come back, or the first steps replace "
        "what was drawn and it has some way to go."
    ),
    helps=(
        "A smaller learning rate, by the factor that brings the ratio near 0.001; a warm-up; clipping of the "
        "gradient's norm."
    ),
)
