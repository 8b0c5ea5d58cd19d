"""saturated-gate: a gate of a recurrent layer stands at the end where it blocks, or no gradient comes back in time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import SEVERITIES, Finding, Severity
from desat.diagnose.reading_series import together, typical
from desat.diagnose.recurrent_layer import input_size, owner, weight_scales
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.reader import Record
from desat.record.rows import Site

BLOCKED_GATE = Threshold(
    "blocked gate",
    0.4,
    "share of a gate's values",
    "share of a gate's values, over units, sequences and time, at the end where it blocks, that is a symptom",
    "desat: fresh layers of PyTorch's have none, an LSTM that learned the rows of MNIST has 17 % in its worst gate",
)
GATE_OPENING = Threshold(
    "gate opening",
    0.05,
    "mean of a gate",
    "mean opening below which a gate lets nothing through, flat part of its curve or not",
    "desat: a tenth of the one half at which gates of a fresh network stand",
)
SHORT_REACH = Threshold(
    "short reach",
    0.1,
    "share of the sequence",
    "part of a long sequence over which a hundredth of the gradient comes back, below which it learns no long relation",
    "desat; Pascanu, Mikolov and Bengio 2013, section 2, on gradients that vanish through time",
)
LONG_SEQUENCE = Threshold(
    "long sequence", 20, "steps", "length of a sequence from which on the reach counts", "desat: short ones fit anyhow"
)
LARGE_BIAS = Threshold(
    "large gate bias",
    1.0,
    "rms",
    "biases beyond it are what holds a gate at its end",
    "PyTorch draws them below 1/sqrt(units); a forget gate's customary bias is 1 (Jozefowicz et al. 2015, section 2.2)",
)
LARGE_GATE_WEIGHT = Threshold(
    "large gate weight",
    3.0,
    "rms / that of PyTorch's initialization",
    "recurrent weights beyond it are what drives gates to their ends",
    "desat: three times the 1/sqrt(3 units) of a uniform draw below 1/sqrt(units)",
)
DRIVEN_GATE = Threshold(
    "driven gate",
    0.2,
    "share of a gate's values",
    "share of a gate's values at its ends that is a symptom where too large recurrent weights drive it there",
    "desat: half of what is one by itself",
)
LARGE_LAYER_INPUT = Threshold(
    "large layer input",
    10.0,
    "rms",
    "input of a recurrent layer beyond which it is what drives gates to their ends",
    "AUTOTRAINER (Zhang et al., ICSE 2021) calls data abnormal from a mean of 10 on",
)

SHUT_AT = {"input": "low", "output": "low", "forget": "low", "update": "high"}
"""The end at which a gate blocks. PyTorch's update gate at 1 keeps the old state. At its other end a gate is healthy: a
forget gate near 1 remembers, and that is what it is for (Gers, Schmidhuber and Cummins 2000, section 3)."""
EFFECTS = {
    "input": "nothing new gets into the memory",
    "output": "nothing gets out of the memory",
    "forget": "the memory is lost at each step",
    "update": "the state never changes",
    "reset": "no gradient passes through it",
    "cell": "what could be remembered is plus or minus one, and no gradient passes",
    "new": "what could be remembered is plus or minus one, and no gradient passes",
    "hidden": "the state is plus or minus one, and no gradient passes",
}
NO_DOUBT = 10.0
"""Times a threshold at which there is no doubt."""
CANDIDATES = ("cell", "new", "hidden")
"""These go through a tanh, flat at both ends."""


@dataclass(frozen=True)
class _Blocked:
    """A gate while it is blocked: medians over the episode. both_ends: it jumps from end to end."""

    site: Site
    episode: Episode
    share: float
    low: float
    high: float
    mean: float
    both_ends: bool

    @property
    def gate(self) -> str:
        return _gate_of(self.site)

    @property
    def opening(self) -> float:
        return 1.0 - self.mean if self.gate == "update" else self.mean

    @property
    def margin(self) -> float:
        by_share = (self.share - BLOCKED_GATE.value) / (1.0 - BLOCKED_GATE.value)
        by_opening = 1.0 - self.opening / GATE_OPENING.value if self.gate in SHUT_AT else -1.0
        return float(np.clip(max(by_share, by_opening), 0.0, 1.0))


def examine_gates(case: Case) -> list[Finding]:
    """One finding: for all blocked gates, else for the layer whose gradient reaches back the least."""
    found = [blocked for site in case.record.sites("gate") if (blocked := _blocked(case.record, site)) is not None]
    blocked = _gate_finding(case, [one for one in found if one.episode.ongoing] or found) if found else None
    driven = _driven_finding(case)
    if driven is not None and (blocked is None or _rank(driven) < _rank(blocked)):
        return [driven]
    return [blocked] if blocked is not None else _reach_findings(case)


def _rank(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _blocked(record: Record, site: Site) -> _Blocked | None:
    series = together(record, site, "saturated_low", "saturated_high", "mean")
    if series is None:
        return None
    steps, low, high, mean = (series[name] for name in ("step", "saturated_low", "saturated_high", "mean"))
    gate = _gate_of(site)
    share = _blocked_share(gate, low, high, mean)
    opening = 1.0 - mean if gate == "update" else mean if gate in SHUT_AT else np.full(len(mean), np.inf)
    episode = find_episode(steps, (share >= BLOCKED_GATE.value) | (opening <= GATE_OPENING.value))
    if episode is None:
        return None
    low, high, mean, share = (typical(steps, values, episode) or 0.0 for values in (low, high, mean, share))
    return _Blocked(site, episode, share, low, high, mean, 2.0 * min(low, high) >= 0.5 * BLOCKED_GATE.value)


def _blocked_share(
    gate: str, low: NDArray[np.float64], high: NDArray[np.float64], mean: NDArray[np.float64]
) -> NDArray[np.float64]:
    # At both ends alike a gate is a switch that passes no gradient, whichever end would be healthy.
    switching = 2.0 * np.minimum(low, high)
    if gate in CANDIDATES:
        # A ReLU network's state is never negative, has no upper end, and is half off when it is well.
        is_rectifier = (gate == "hidden") & (high == 0.0) & (mean >= 0.0)
        return np.where(is_rectifier, 0.0, low + high)
    end = SHUT_AT.get(gate)
    return switching if end is None else np.maximum(low if end == "low" else high, switching)


def _gate_finding(case: Case, blocked: list[_Blocked]) -> Finding:
    worst = max(blocked, key=lambda one: one.margin)
    evidence = {
        "saturated_share": worst.share, "saturated_low_share": worst.low, "saturated_high_share": worst.high,
        "gate_mean": worst.mean, "saturated_sites": float(len(blocked)),
    }  # fmt: skip
    evidence |= _layer_evidence(case.record, worst.site, worst.episode)
    kind = f"{worst.site.operation.removesuffix(' gate')}, {worst.gate} gate"
    stands = (
        f"{worst.share:.0%} of the values of {worst.site.name} ({kind}) stand at the end of its curve"
        if worst.share >= BLOCKED_GATE.value
        else f"{worst.site.name} ({kind}) lets through {worst.opening:.1%}"
    )
    sound = (
        f"less than {BLOCKED_GATE.value:.0%} would be sound"
        if worst.share >= BLOCKED_GATE.value
        else f"more than {GATE_OPENING.value:.0%} would be sound"
    )
    cause, remedies = _cause(worst, evidence)
    return Finding(
        code="saturated-gate",
        severity=case.severity(worst.episode, worst.margin),
        site=worst.site.name,
        sites=tuple(one.site.name for one in blocked),
        source=worst.site.source,
        first_step=min(one.episode.first_step for one in blocked),
        last_step=max(one.episode.last_step for one in blocked),
        cause=cause,
        message=f"{stands}, {worst.episode.since}; {sound}. So {EFFECTS.get(worst.gate, 'no gradient passes')}.",
        evidence=evidence,
        remedies=remedies,
        confidence=worst.episode.confidence(worst.margin),
    )


def _driven_finding(case: Case) -> Finding | None:
    """Gates halfway to being blocked, in a layer whose recurrent weights were drawn far too large; an error or none.

    Such a layer learns a little, since some of its units are left, and a sound one has no such weights at first.
    """
    found: list[tuple[float, Site, Site, Episode, float]] = []
    for state in case.record.sites("recurrent"):
        steps, scales = weight_scales(case.record, state.name)
        episode = find_episode(steps, scales >= LARGE_GATE_WEIGHT.value)
        scale = None if episode is None else typical(steps, scales, episode)
        if episode is None or scale is None or not episode.from_start:
            continue
        margin = float(np.clip(np.log(scale / LARGE_GATE_WEIGHT.value) / np.log(NO_DOUBT), 0.0, 1.0))
        shares = {
            site: share
            for site in case.record.sites("gate")
            if site.name.startswith(f"{state.name}.") and (share := _share_during(case.record, site, episode))
        }
        gate = max(shares, key=lambda site: shares[site], default=None)
        if gate is not None and shares[gate] >= DRIVEN_GATE.value and case.severity(episode, margin) == "error":
            found.append((margin, state, gate, episode, shares[gate]))
    if not found:
        return None
    margin, state, gate, episode, share = max(found, key=lambda one: one[0])
    evidence = {"saturated_share": share} | _layer_evidence(case.record, gate, episode)
    weight = evidence.get("weight_scale", 0.0)
    return Finding(
        code="saturated-gate",
        severity="error",
        site=gate.name,
        sites=tuple(dict.fromkeys(one[2].name for one in found)),
        source=gate.source,
        first_step=episode.first_step,
        last_step=episode.last_step,
        cause=f"the recurrent weights are too large since initialization: {weight:.2g} times what they are drawn with",
        message=(
            f"{share:.0%} of the values of {gate.name} ({gate.operation.removesuffix(' gate')}, {_gate_of(gate)} gate) "
            f"stand at the end of its curve, driven there by recurrent weights {weight:.2g} times as large as usual, "
            f"{episode.since}; less than {LARGE_GATE_WEIGHT.value:g} would be sound."
        ),
        evidence=evidence,
        remedies=("initialization=torch", "initialization=orthogonal"),
        confidence=episode.confidence(margin),
    )


def _share_during(record: Record, site: Site, episode: Episode) -> float:
    series = together(record, site, "saturated_low", "saturated_high", "mean")
    if series is None:
        return 0.0
    share = _blocked_share(_gate_of(site), series["saturated_low"], series["saturated_high"], series["mean"])
    return typical(series["step"], share, episode) or 0.0


def _cause(worst: _Blocked, evidence: dict[str, float]) -> tuple[str, tuple[str, ...]]:
    came = (
        "since initialization"
        if worst.episode.from_start
        else f"since step {worst.episode.first_step}, driven there by updates"
    )
    bias, weight = evidence.get("bias_rms", 0.0), evidence.get("weight_scale", 0.0)
    inputs = evidence.get("input_rms", 0.0)
    later = () if worst.episode.from_start else ("clipping=1.0",)
    if not worst.both_ends and bias > LARGE_BIAS.value:
        first = "initialization=forget-bias" if worst.gate == "forget" else "initialization=xavier"
        return (
            f"biases hold it there {came}: their rms is {bias:.2g}, about 0.1 is usual",
            (*later, first, "normalization=layer"),
        )
    if inputs > LARGE_LAYER_INPUT.value and inputs > weight:
        return (
            f"the layer's inputs are too large {came}: their rms is {inputs:.2g}, about 1 is sound",
            (*later, "input=standardize", "normalization=layer"),
        )
    if weight > LARGE_GATE_WEIGHT.value:
        return (
            f"the recurrent weights are too large {came}: {weight:.2g} times what they are drawn with",
            (*later, "initialization=orthogonal", "normalization=layer"),
        )
    first = "initialization=forget-bias" if worst.gate == "forget" else "initialization=orthogonal"
    return f"weights and biases push it there {came}", (*later, first, "normalization=layer")


def _layer_evidence(record: Record, gate: Site, episode: Episode) -> dict[str, float]:
    """What may hold a gate at its end, when that began; and how far back the gradient reaches."""
    state_name = gate.name.rpartition(".")[0]
    module, suffix = owner(state_name)
    parameters = {site.name: site for site in record.sites("parameter")}
    evidence: dict[str, float] = {}
    state = next((site for site in record.sites("recurrent") if site.name == state_name), None)
    sizes = [("weight_scale", *weight_scales(record, state_name))]
    for kind in ("bias_ih", "bias_hh"):
        site = parameters.get(f"{module}.{kind}{suffix}")
        if site is not None:
            series = record.parameter(site)
            sizes.append(("bias_rms", series["step"], series["rms"]))
    for key, steps, values in sizes:
        if not len(values):
            continue
        size = float(values[np.clip(np.searchsorted(steps, episode.first_step), 0, len(values) - 1)])
        if np.isfinite(size):
            evidence[key] = max(size, evidence.get(key, 0.0))
    inputs = input_size(record, gate, module, episode)
    if inputs is not None:
        evidence["input_rms"] = inputs
    reach = None if state is None else together(record, state, "gradient_reach_steps", "steps")
    if reach is not None:
        for name, key in (("gradient_reach_steps", "gradient_reach_steps"), ("steps", "sequence_steps")):
            value = typical(reach["step"], reach[name], episode)
            if value is not None:
                evidence[key] = value
    return evidence


def _reach_findings(case: Case) -> list[Finding]:
    """Reach alone is a disease only where the network does not learn: many tasks need no long memory."""
    if case.learning.harm is False:
        return []
    short: list[tuple[float, Site, Episode, float]] = []
    for site in case.record.sites("recurrent"):
        series = together(case.record, site, "gradient_reach_steps", "steps")
        if series is None:
            continue
        length, reach = series["steps"], series["gradient_reach_steps"]
        episode = find_episode(series["step"], (length >= LONG_SEQUENCE.value) & (reach <= SHORT_REACH.value * length))
        steps_back = None if episode is None else typical(series["step"], reach, episode)
        steps = None if episode is None else typical(series["step"], length, episode)
        if episode is not None and steps_back is not None and steps:
            short.append((steps_back / steps, site, episode, steps))
    if not short:
        return []
    share, site, episode, steps = min(short, key=lambda one: one[0])
    margin = 1.0 - share / SHORT_REACH.value
    severity: Severity = case.severity(episode, margin) if case.learning.harm else "note"
    cause, evidence, remedies = _reach_cause(case.record, site, episode)
    return [
        Finding(
            code="saturated-gate",
            severity=severity,
            site=site.name,
            sites=tuple(one[1].name for one in short),
            source=site.source,
            first_step=episode.first_step,
            last_step=episode.last_step,
            cause=cause,
            message=(
                f"Through time, a hundredth of the gradient of {site.name} is left after {share * steps:.0f} of "
                f"{steps:.0f} steps, {episode.since}; more than {SHORT_REACH.value:.0%} of the sequence would be "
                "sound. What came earlier cannot be learned."
            ),
            evidence={"gradient_reach_steps": share * steps, "sequence_steps": steps} | evidence,
            remedies=remedies,
            confidence=episode.confidence(margin),
        )
    ]


def _reach_cause(record: Record, state: Site, episode: Episode) -> tuple[str, dict[str, float], tuple[str, ...]]:
    for site in record.sites("gate"):
        if site.name not in (f"{state.name}.forget", f"{state.name}.update"):
            continue
        series = together(record, site, "mean")
        mean = None if series is None else typical(series["step"], series["mean"], episode)
        if mean is not None:
            return (
                f"the {_gate_of(site)} gate keeps {mean:.0%} of the memory at each step, near 100% would keep it",
                {"gate_mean": mean},
                ("initialization=forget-bias", "attention=pooling", "normalization=layer"),
            )
    return (
        "the recurrent weights shrink the gradient at each step, and there is no gate to keep it",
        {},
        ("initialization=orthogonal", "attention=pooling", "normalization=layer"),
    )


def _gate_of(site: Site) -> str:
    return site.name.rpartition(".")[2]


SATURATED_GATE = Rule(
    code="saturated-gate",
    examine=examine_gates,
    thresholds=(
        BLOCKED_GATE, GATE_OPENING, SHORT_REACH, LONG_SEQUENCE, LARGE_BIAS, LARGE_GATE_WEIGHT, DRIVEN_GATE,
        LARGE_LAYER_INPUT,
    ),
    meaning=(
        "A gate of a recurrent layer stands at the end of its curve where it lets nothing through, so that the layer "
        "neither takes in nor remembers anything; a forget gate that stands open is meant to."
    ),
    measured=(
        "The gates are computed again from a few sequences of the batch: the share of their values where the "
        "derivative is below 5 % of its maximum, at each end, and their mean; and how many steps back through time a "
        "hundredth of the gradient still arrives, which counts only where the network does not learn. Recurrent "
        "weights drawn far too large count as well where they drive a gate half as far."
    ),
    helps=(
        "Weights and biases drawn anew (orthogonal, a forget-gate bias of 1), inputs brought to unit size, "
        "normalization, or clipping where updates drove the gates there."
    ),
)  # fmt: skip
