"""update-too-small: the optimizer's steps are so small beside the weights that the network stays where it began."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.layer_updates import LayerUpdates, layer_updates, learning_rate
from desat.diagnose.learning import FEW_LOSSES, SETTLED
from desat.diagnose.rule import Case, Rule
from desat.diagnose.starvation import NO_WAY
from desat.diagnose.updates import SMALL_UPDATE, USUAL_UPDATE, rates_that_fit

SANE_RATE = 1.0
"""Learning rate above which no one would look for the fitting one: then the gradient is at fault."""
NO_DOUBT = 1e-2
"""Share of a threshold at which there is no doubt."""


@dataclass(frozen=True)
class _Creep:
    """The typical layer's (median) ratio at the samples at which it was small, and its path."""

    updates: LayerUpdates
    ratio: float
    path: float
    episode: Episode
    steps: int

    @property
    def margin(self) -> float:
        short = min(self.ratio / SMALL_UPDATE.value, self.path / NO_WAY.value)
        return float(np.log10(max(short, NO_DOUBT)) / np.log10(NO_DOUBT))


def examine_small_updates(case: Case) -> list[Finding]:
    """One finding for the network where it does not learn and half of its layers hardly move."""
    creep = _creep(case, layer_updates(case.record))
    severity = None if creep is None else _severity(case, creep)
    if creep is None or severity is None:
        return []
    ratios = _ratios(creep.updates.values)
    slow = ratios <= np.nanmedian(ratios)
    site = creep.updates.sites[int(np.nanargmin(ratios))]
    rates = learning_rate(case.record)
    evidence = {"update_ratio": creep.ratio, "path": creep.path, "steps": float(creep.steps)}
    if rates is not None:
        evidence["learning_rate"] = rates[0]
        if creep.ratio > 0.0:
            evidence["fitting_learning_rate"] = rates[0] * USUAL_UPDATE / creep.ratio
    return [
        Finding(
            code="update-too-small",
            severity=severity,
            site=site.name,
            sites=tuple(each.name for each, is_slow in zip(creep.updates.sites, slow, strict=True) if is_slow),
            source=site.source,
            first_step=creep.episode.first_step,
            last_step=creep.episode.last_step,
            cause=_cause(evidence),
            message=(
                f"One optimizer step changes the weights of a typical layer by {creep.ratio:.1g} of their size, "
                f"{creep.episode.since}; {USUAL_UPDATE:g} is usual. In {creep.steps} steps they have come "
                f"{creep.path:.1g} of their size at most, so the network is where it began."
            ),
            evidence=evidence,
            remedies=("optimizer=adam", *rates_that_fit(creep.ratio), "normalization=layer"),
            confidence=creep.episode.confidence(creep.margin),
        )
    ]


def _creep(case: Case, updates: LayerUpdates) -> _Creep | None:
    if not updates.sites:
        return None
    number = len(case.record.steps()["step"])
    path = float(np.nanmedian(updates.paths(number)))
    known = np.isfinite(updates.values).any(axis=0)
    typical = np.nanmedian(updates.values[:, known], axis=0)
    is_short = case.learning.losses >= FEW_LOSSES.value and path <= NO_WAY.value
    held = typical <= (USUAL_UPDATE if is_short else SMALL_UPDATE.value)
    episode = find_episode(updates.steps[known], held)
    # A run that moved and then stopped has another disease: it is dead, or its learning rate has run out.
    if episode is None or path > NO_WAY.value:
        return None
    return _Creep(updates, float(np.median(typical[held])), path, episode, number)


def _severity(case: Case, creep: _Creep) -> Severity | None:
    """Slow learning is harm enough here; a network whose loss is halved at a fine-tuning rate is healthy."""
    learning = case.learning
    if learning.state in ("settled", "diverging", "non-finite") or _warms_up(case):
        return None
    if learning.state == "slow" or (learning.state == "learning" and learning.fall < SETTLED.value):
        return "error" if creep.episode.ongoing else "note"
    if learning.harm is False:
        return None
    return case.severity(creep.episode, creep.margin)


def _warms_up(case: Case) -> bool:
    """Whether the run ends while its learning rate still rises."""
    rates = learning_rate(case.record)
    return rates is not None and rates[1] > 1.5 * rates[0]


def _ratios(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([np.nanmedian(layer) if np.isfinite(layer).any() else np.nan for layer in values])


def _cause(evidence: dict[str, float]) -> str:
    rate, fitting = evidence.get("learning_rate"), evidence.get("fitting_learning_rate", np.inf)
    if rate is None:
        return "the learning rate or the gradient is too small"
    if fitting > SANE_RATE:
        return f"the gradient is too small for the learning rate of {rate:.1g}"
    return f"the learning rate is too small: {rate:.1g}, about {fitting:.1g} would change the weights by 0.1%"


UPDATE_TOO_SMALL = Rule(
    code="update-too-small",
    examine=examine_small_updates,
    thresholds=(SMALL_UPDATE, NO_WAY, FEW_LOSSES, SETTLED),
    meaning="The optimizer's steps are so small beside the weights that the network stays where it began.",
    measured=(
        "rms(update)/rms(weight) of the typical layer (the median one), biases left out, and its sum over the steps of "
        "the run: how far the weights can have come. It counts only where the loss stalls or creeps, or has not been "
        "halved."
    ),
    helps="A larger learning rate, by the factor that brings the ratio near 0.001, or Adam.",
)
