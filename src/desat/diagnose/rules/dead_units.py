"""dead-units: rectifier units that are off for every sample, so that they neither say nor learn anything."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.curves import nonlinearities
from desat.diagnose.episode import Episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.onset import RATE_JUMP, rate_jump
from desat.diagnose.rule import Case, Rule
from desat.diagnose.scale import BIAS_POWER, FAINT_INPUT, LARGE_BIAS, OFF_CENTRE, Scale, measure_scale
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import LARGE_UPDATE
from desat.record.rows import Site

DEAD_SHARE = Threshold(
    "dead share",
    0.5,
    "share of a layer's units",
    "dead units of one layer that make it a symptom",
    "desat: half of a layer; ReLU networks work with a good part of their units off (Glorot, Bordes and Bengio 2011)",
)
WINDOW = Threshold(
    "observation window",
    5,
    "sampled steps",
    "sampled steps on which a unit must be saturated for every sample to be called dead",
    "desat: one batch may miss a rare feature, five batches hardly do",
)
MOST = 0.9
"""Share of the dead units by which most of them are dead."""


@dataclass(frozen=True)
class _Death:
    """The dead units of one site: their share of the layer, and over which sampled steps they have been dead.

    settled: the sampled step from which on nearly all of them were.
    """

    site: Site
    share: float
    units: int
    episode: Episode
    settled: int

    @property
    def margin(self) -> float:
        return (self.share - DEAD_SHARE.value) / (1.0 - DEAD_SHARE.value)


def examine_dead_units(case: Case) -> list[Finding]:
    """One finding for all rectifiers half of whose units have been dead up to the end of the record."""
    deaths = [_death(site, *case.record.saturated_units(site)) for site in nonlinearities(case.record, "rectifier")]
    affected = [death for death in deaths if death is not None]
    if not affected:
        return []
    worst = max(affected, key=lambda death: death.share)
    killed, scale = _killing_update(case, worst), measure_scale(case.record, worst.site, worst.episode.first_step)
    evidence = {
        "dead_share": worst.share,
        "dead_units": float(round(worst.share * worst.units)),
        "units": float(worst.units),
        "window_samples": float(worst.episode.held),
    }
    if killed is not None:
        evidence["update_ratio"] = killed
    if scale is not None:
        evidence |= scale.evidence
    return [
        Finding(
            code="dead-units",
            severity=_severity(case, worst),
            site=worst.site.name,
            sites=tuple(death.site.name for death in affected),
            source=worst.site.source,
            first_step=min(death.episode.first_step for death in affected),
            last_step=max(death.episode.last_step for death in affected),
            cause=_cause(case, worst, killed, scale),
            message=(
                f"{evidence['dead_units']:.0f} of {worst.units} units of {worst.site.name} ({worst.site.operation}) "
                f"have been off for every sample {worst.episode.since}; in a sound layer hardly any are. "
                "A unit that is always off gets no gradient and cannot come back by itself."
            ),
            evidence=evidence,
            remedies=_remedies(worst),
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _death(site: Site, steps: NDArray[np.int64], saturated: NDArray[np.bool_]) -> _Death | None:
    """Looks back from the end: the earliest sampled step from which on enough units were saturated throughout."""
    if not saturated.size:
        return None
    always = np.logical_and.accumulate(saturated[::-1], axis=0)[::-1]
    share = always.mean(axis=1)
    window = min(int(WINDOW.value), len(steps))
    if share[-window] < DEAD_SHARE.value:
        return None
    first = int(np.argmax(share >= DEAD_SHARE.value))
    length = len(steps) - first
    episode = Episode(
        int(steps[first]), int(steps[-1]), length, length, first == 0, True, int(steps[first - 1]) if first else None
    )
    settled = int(steps[np.argmax(share >= MOST * share[-window])])
    return _Death(site, float(share[-window]), saturated.shape[1], episode, settled)


def _severity(case: Case, death: _Death) -> Severity:
    severity = case.severity(death.episode, death.margin)
    return "warning" if severity == "error" and death.episode.held < WINDOW.value else severity


def _killing_update(case: Case, death: _Death) -> float | None:
    """The largest update ratio of the layer before, at the sampled step before its units died; None where unknown."""
    before = death.episode.previous_step
    owners = [site for site in case.record.sites("parameter") if site.position <= death.site.position]
    if before is None or not owners:
        return None
    ratios = []
    for site in owners:
        is_bias = site.is_bias
        if site.position == owners[-1].position and not is_bias:
            series = case.record.parameter(site)
            at = (series["step"] == before) & (series["rms"] > 0.0) & np.isfinite(series["update_rms"])
            ratios += list(series["update_rms"][at] / series["rms"][at])
    return float(max(ratios)) if ratios else None


def _cause(case: Case, death: _Death, killed: float | None, scale: Scale | None) -> str:
    if scale is not None and scale.blame == "bias" and scale.mean is not None and scale.mean < 0.0:
        when = "since initialization" if _had_bias(case, scale) else f"since step {death.episode.first_step}"
        return f"biases hold every pre-activation below zero {when}: their rms is {scale.bias:.2g}, near 0 is usual"
    if scale is not None and (scale.input_is_faint or scale.weights_are_faint):
        since = "initialization" if death.episode.from_start else f"step {death.episode.first_step}"
        return f"biases alone switch the units on or off since {since}: {_faint(scale)}"
    if death.episode.from_start:
        return f"units are dead since initialization: {_at_birth(scale)}"
    jump = rate_jump(case.record, death.episode.previous_step, max(death.settled, death.episode.first_step))
    if jump is not None:
        return f"killed by step {death.settled}: {jump.words}"
    if killed is not None and killed >= LARGE_UPDATE.value:
        return f"killed by step {death.episode.first_step}: an update of {killed:.0%} of the weights, 0.1 % is usual"
    return f"units died by step {death.episode.first_step}: updates pushed every pre-activation below zero"


def _faint(scale: Scale) -> str:
    if scale.weights_are_faint:
        return f"the weights of {scale.layer.name} are too small, their gain is {scale.gain:.2g}, 1 to 1.4 is sound"
    what = "the network's input" if scale.input_is_the_networks else f"what goes into {scale.layer.name}"
    return f"{what} is next to nothing, its rms is {scale.incoming:.1g}, about 1 is sound"


def _had_bias(case: Case, scale: Scale) -> bool:
    """Whether the bias was as large at the first sampled step as it is where the units are dead."""
    steps = case.record.steps(sampled=True)["step"]
    first = measure_scale(case.record, scale.layer, int(steps[0])) if len(steps) else None
    return first is not None and (first.bias or 0.0) >= MOST * (scale.bias or 0.0)


def _at_birth(scale: Scale | None) -> str:
    if scale is not None and scale.gain == 0.0:
        return f"the weights of {scale.layer.name} are all zero"
    if scale is not None and scale.bias is not None:
        if scale.input_is_off_centre:
            return (
                f"what goes into {scale.layer.name} is off centre, its mean is {scale.incoming_mean:.2g}, and so each "
                "unit is on or off for all samples alike"
            )
        return f"the weights of {scale.layer.name} push every pre-activation below zero, and not its bias"
    return "biases or weights push every pre-activation below zero"


def _remedies(death: _Death) -> tuple[str, ...]:
    if death.episode.from_start:
        return ("activation=leaky_relu", "initialization=he", "normalization=batch")
    return ("optimizer=hold", "optimizer=rate:0.1", "activation=leaky_relu", "normalization=batch")


DEAD_UNITS = Rule(
    code="dead-units",
    examine=examine_dead_units,
    thresholds=(DEAD_SHARE, WINDOW, LARGE_UPDATE, BIAS_POWER, LARGE_BIAS, FAINT_INPUT, OFF_CENTRE, RATE_JUMP),
    meaning=(
        "Rectifier units are off for every sample: they say nothing, get no gradient, and cannot come back by "
        "themselves."
    ),
    measured=(
        "A unit is dead where its pre-activation lies in the flat part of its curve for every element of each "
        "of several sampled steps, up to the end of the record."
    ),
    helps=(
        "An activation with a slope on both sides (leaky ReLU, ELU), weights drawn for rectifiers, a smaller "
        "learning rate, or normalization."
    ),
)
