"""degenerate-batchnorm: batch normalization by statistics that say nothing, or that are others in evaluation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.learning import FEW_LOSSES, SETTLED
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.reader import Columns
from desat.record.rows import Site

TINY_BATCH = Threshold(
    "tiny batch",
    4,
    "elements",
    "elements behind each channel's statistics, at or below which these are mostly noise",
    "Wu and He 2018, Group Normalization, figure 1: the error rises steeply for batches of 4 and 2",
)
MEAN_MISMATCH = Threshold(
    "mean mismatch",
    1.0,
    "standard deviations",
    "batch means from the running means, above which evaluation differs from training",
    "desat: a channel shifted by its own width; on digits sound layers are below 0.5 from step 50 on",
)
VARIANCE_MISMATCH = Threshold(
    "variance mismatch",
    6.0,
    "dB",
    "batch variances from the running ones, above which evaluation differs from training",
    "desat: four times the variance; on digits sound layers are below 2.6 dB from step 50 on",
)
SETTLING = Threshold(
    "settling",
    50,
    "steps",
    "steps after which running statistics are expected to have settled",
    "a momentum of 0.1 has forgotten 99.5 % of its first value by then",
)
STILL_INITIAL = Threshold(
    "still initial",
    0.5,
    "share of the running statistics",
    "(1 - momentum) ** steps, the part that still is what they began with, above which they do not follow",
    "Ioffe and Szegedy 2015, algorithm 2: evaluation is by the statistics of the population; desat: half of them",
)
BELOW_EPSILON = Threshold(
    "below epsilon",
    1e-5,
    "variance",
    "largest running variance, below which the layer's epsilon outweighs all that it normalizes by",
    "PyTorch's default epsilon",
)
COLLAPSED_GAMMA = Threshold(
    "collapsed gamma",
    1e-2,
    "rms",
    "learned scale, below which the layer passes nothing on; 1 is where it starts",
    "desat: a loss of 40 dB",
)
NEAR_ONE = 1.5
"""Factor from 1, where running variances begin, within which those that do not follow still are."""
LONG_SETTLED = 4
"""Times of settling after which a mismatch of twice its threshold is beyond doubt."""


@dataclass(frozen=True)
class _Defect:
    """One way to be degenerate, at one site. value: the median over the episode; margin: see Episode.confidence."""

    kind: str
    site: Site
    value: float
    margin: float
    episode: Episode


def examine_batchnorm(case: Case) -> list[Finding]:
    """One finding for the network, by the worst of its defects in the order of DEFECTS."""
    defects, steps = [], case.record.steps()["step"]
    for site in case.record.sites():
        readings = case.record.readings(site)
        if "batch_size" in readings:
            defects += [defect for judge in DEFECTS for defect in judge(site, readings)]
            defects += _not_following(site, readings, int(steps[-1]) + 1)
    defects = [defect for defect in defects if _severity(case, defect) is not None]
    if not defects:
        return []
    order = {kind: place for place, kind in enumerate(MESSAGES)}
    grave = {"error": 0, "warning": 1, "note": 2}
    worst = min(
        defects, key=lambda defect: (grave[_severity(case, defect) or "note"], order[defect.kind], -defect.margin)
    )
    alike = [defect for defect in defects if defect.kind == worst.kind]
    cause, message = MESSAGES[worst.kind]
    return [
        Finding(
            code="degenerate-batchnorm",
            severity=_severity(case, worst) or "note",
            site=worst.site.name,
            sites=tuple(defect.site.name for defect in alike),
            source=worst.site.source,
            first_step=min(defect.episode.first_step for defect in alike),
            last_step=max(defect.episode.last_step for defect in alike),
            cause=cause,
            message=f"{worst.site.name}, {worst.episode.since}: " + message.format(worst.value),
            evidence=_evidence(defects, worst.site),
            remedies=REMEDIES.get(worst.kind, ("normalization=group", "normalization=layer")),
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _tiny_batches(site: Site, readings: Mapping[str, Columns]) -> list[_Defect]:
    return _defect(
        "tiny_batch", site, readings["batch_size"], lambda size: (TINY_BATCH.value - size) / TINY_BATCH.value
    )


def _mismatches(site: Site, readings: Mapping[str, Columns]) -> list[_Defect]:
    """Both at once or one alone, after they had time to settle; a batch's own noise is no mismatch."""
    found = []
    for kind, limit in (("mean_mismatch", MEAN_MISMATCH), ("variance_mismatch_db", VARIANCE_MISMATCH)):
        series = readings.get(kind)
        if series is not None:
            late = {name: column[series["step"] >= SETTLING.value] for name, column in series.items()}
            if len(late["step"]) and _median_size(readings) > TINY_BATCH.value:
                found += _defect(kind, site, late, lambda value, limit=limit: (value - limit.value) / limit.value)
    return [defect for defect in found if defect.episode.ongoing]


def _not_following(site: Site, readings: Mapping[str, Columns], steps: int) -> list[_Defect]:
    """Running statistics that cannot have left, in all the steps of a run, where they began.

    Those of a network that was trained before began elsewhere.
    """
    momentum, largest, smallest = (
        readings.get(name) for name in ("momentum", "running_variance_largest", "running_variance_smallest")
    )
    if momentum is None or largest is None or smallest is None:
        return []
    began_at_one = (largest["value"].max() <= NEAR_ONE) and (smallest["value"].min() >= 1.0 / NEAR_ONE)
    if not began_at_one or steps < 2 * SETTLING.value:
        return []
    limit = STILL_INITIAL.value
    series = {"step": momentum["step"], "value": (1.0 - np.clip(momentum["value"], 0.0, 1.0)) ** steps}
    return _defect("still_initial", site, series, lambda share: (share - limit) / (1.0 - limit))


def _without_variance(site: Site, readings: Mapping[str, Columns]) -> list[_Defect]:
    if "running_variance_largest" not in readings:
        return []
    limit = BELOW_EPSILON.value
    return _defect("running_variance", site, readings["running_variance_largest"], lambda value: 1.0 - value / limit)


def _without_scale(site: Site, readings: Mapping[str, Columns]) -> list[_Defect]:
    """A scale that starts at zero on purpose (the last of a residual branch) grows; one that stays there does not."""
    if "gamma_rms" not in readings:
        return []
    limit = COLLAPSED_GAMMA.value
    return _defect("collapsed_gamma", site, readings["gamma_rms"], lambda value: 1.0 - value / limit)


DEFECTS: tuple[Callable[[Site, Mapping[str, Columns]], list[_Defect]], ...] = (
    _tiny_batches, _mismatches, _without_variance, _without_scale,
)  # fmt: skip

MESSAGES = {
    "tiny_batch": (
        "the batch is too small to normalize by",
        "its statistics come from {:.0f} elements of each channel, 16 or more would be sound. "
        "They are mostly noise, and in evaluation the layer uses others.",
    ),
    "running_variance": (
        "what comes in does not vary: the layer's epsilon outweighs the variance of every channel",
        "the largest variance it keeps is {:.2g}, and about 1 would be sound. It no longer normalizes.",
    ),
    "collapsed_gamma": (
        "its learned scale has collapsed: look at the weight decay and the learning rate",
        "the learned scale is {:.2g} (rms), and it starts at 1. The layer passes next to nothing on.",
    ),
    "still_initial": (
        "the momentum is too small for a run of this length: the running statistics still are what they began with",
        "{:.0%} of its running means and variances are the zeros and ones they began with, next to none would be "
        "sound. In evaluation the network computes something else than in training.",
    ),
    "mean_mismatch": (
        "running means that do not follow the batches: the momentum is too small, or the batches differ too much",
        "the batch means lie {:.2g} standard deviations from the running means, less than 0.5 would be sound. "
        "In evaluation the network computes something else than in training.",
    ),
    "variance_mismatch_db": (
        "running variances that do not follow the batches: the momentum is too small, or the batches differ too much",
        "the batch variances are {:.1f} dB from the running ones, less than 3 would be sound. "
        "In evaluation the network computes something else than in training.",
    ),
}
"""Cause and message of each defect, the first to fix first."""

REMEDIES = {
    "collapsed_gamma": ("normalization=layer", "initialization=he"),
    **dict.fromkeys(
        ("still_initial", "mean_mismatch", "variance_mismatch_db"), ("normalization=momentum", "normalization=layer")
    ),
}
"""Of those defects that other remedies help than a normalization which needs no batch."""


def _defect(kind: str, site: Site, series: Columns, margin: Callable[[float], float]) -> list[_Defect]:
    """At most one: over the samples at which the margin is not negative."""
    known = np.isfinite(series["value"])
    steps, values = series["step"][known], series["value"][known]
    order = np.argsort(steps)
    steps, values = steps[order], values[order]
    held = np.array([margin(float(value)) >= 0.0 for value in values], np.bool_)
    episode = find_episode(steps, held)
    if episode is None:
        return []
    during = held & (steps >= episode.first_step) & (steps <= episode.last_step)
    value = float(np.median(values[during]))
    return [_Defect(kind, site, value, margin(value), episode)]


def _severity(case: Case, defect: _Defect) -> Severity | None:
    """A mismatch is a harm of its own, which the training's loss does not show: it breaks evaluation, not training."""
    if defect.kind == "collapsed_gamma" and (defect.episode.from_start and not case.learning.harm):
        return None
    if defect.kind == "still_initial":
        return "error" if defect.episode.ongoing else None
    if defect.kind in ("mean_mismatch", "variance_mismatch_db"):
        settled = defect.episode.last_step >= LONG_SETTLED * SETTLING.value
        return "error" if defect.margin >= 1.0 and settled else "warning"
    if defect.kind == "tiny_batch":
        if not defect.episode.ongoing:
            return "error" if case.learning.harm else None
        # Statistics of two to four elements are noise from the first step on, and no sound network has them.
        return "error" if case.learning.harm or case.has_learned_little else "warning"
    return case.severity(defect.episode, defect.margin)


def _median_size(readings: Mapping[str, Columns]) -> float:
    sizes = readings["batch_size"]["value"]
    return float(np.nanmedian(sizes)) if np.isfinite(sizes).any() else np.inf


def _evidence(defects: list[_Defect], site: Site) -> dict[str, float]:
    return {defect.kind: defect.value for defect in defects if defect.site == site}


DEGENERATE_BATCHNORM = Rule(
    code="degenerate-batchnorm",
    examine=examine_batchnorm,
    thresholds=(
        TINY_BATCH,
        STILL_INITIAL,
        MEAN_MISMATCH,
        VARIANCE_MISMATCH,
        SETTLING,
        BELOW_EPSILON,
        COLLAPSED_GAMMA,
        SETTLED,
        FEW_LOSSES,
    ),
    meaning=(
        "A batch normalization divides by statistics that say nothing, or by others in evaluation than in training."
    ),
    measured=(
        "The elements behind each channel's statistics, the running statistics against the batch's after they had "
        "time to settle, how far their momentum lets them follow, the largest running variance, and the learned scale."
    ),
    helps="Larger batches, group or layer normalization, and a momentum that lets the running statistics follow.",
)
