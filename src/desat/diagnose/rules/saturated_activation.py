"""saturated-activation: a bounded nonlinearity works where its curve is flat, so that no gradient passes."""

import numpy as np

from desat.diagnose.curves import nonlinearities
from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.link_budget import share_of
from desat.diagnose.onset import RATE_JUMP, rate_jump, update_at_onset
from desat.diagnose.rule import Case, Rule
from desat.diagnose.scale import BIAS_POWER, EXCESS, LARGE_BIAS, Scale, layer_before, trace_scale
from desat.diagnose.threshold import Threshold
from desat.diagnose.updates import LARGE_UPDATE
from desat.record.rows import Site

SATURATED_SHARE = Threshold(
    "saturated share",
    0.3,
    "share of the pre-activations",
    "saturated share of a bounded nonlinearity that is called a symptom",
    "desat: with pre-activations of unit variance a sigmoid or tanh has less than 5 %; Glorot and Bengio 2010, section "
    "3, ask for activations off the saturated ends, Rakitianskaia and Engelbrecht 2015 measure it",
)
BIAS_SHIFT = Threshold(
    "bias shift",
    1.0,
    "abs(mean) / standard deviation",
    "beyond it the pre-activations are off centre rather than too wide",
    "desat: then most of them lie at one side",
)
DEEP = 4
"""Bounded nonlinearities from which on keeping the function and mending its scale is not enough (Glorot and Bengio
2010, section 3.1: a sigmoid network of four layers saturates again)."""


def examine_saturation(case: Case) -> list[Finding]:
    """One finding for all bounded nonlinearities that are saturated, the output of a network that learned left out."""
    affected: list[tuple[float, Site, Episode]] = []
    for site in _hidden_or_harmed(case):
        series = case.record.tensor(site, "input")
        share = np.nan_to_num(series["saturated_low"]) + np.nan_to_num(series["saturated_high"])
        episode = find_episode(series["step"], share >= SATURATED_SHARE.value)
        if episode:
            during = (series["step"] >= episode.first_step) & (series["step"] <= episode.last_step)
            affected.append((float(np.median(share[during])), site, episode))
    if not affected:
        return []
    lasting = [entry for entry in affected if entry[2].ongoing] or affected
    share, site, episode = max(lasting, key=lambda entry: entry[0])
    margin = (share - SATURATED_SHARE.value) / (1.0 - SATURATED_SHARE.value)
    evidence = _evidence(case, site, episode) | {"saturated_share": share, "saturated_sites": float(len(lasting))}
    scale = trace_scale(case.record, site, episode.first_step) if episode.from_start else None
    came = _since_birth(scale) if episode.from_start else _later(case, site, episode)
    if scale is not None:
        evidence |= scale.evidence
    return [
        Finding(
            code="saturated-activation",
            severity=case.severity(episode, margin),
            site=site.name,
            sites=tuple(entry[1].name for entry in lasting),
            source=site.source,
            first_step=min(entry[2].first_step for entry in lasting),
            last_step=max(entry[2].last_step for entry in lasting),
            cause=f"{_what(evidence)} {came}",
            message=(
                f"{share:.0%} of what goes into {site.name} ({site.operation}) lies where its curve is flat, "
                f"{episode.since}; below {SATURATED_SHARE.value:.0%} would be sound. "
                "A flat curve passes no gradient, so the layers before it cannot learn."
            ),
            evidence=evidence,
            remedies=_remedies(len(nonlinearities(case.record, "bounded")), episode, scale),
            confidence=episode.confidence(margin),
        )
    ]


def _hidden_or_harmed(case: Case) -> tuple[Site, ...]:
    """The bounded nonlinearities; without those behind the last weights if the network learned: it may be sure."""
    sites = nonlinearities(case.record, "bounded")
    if case.learning.harm is not False:
        return sites
    last = max((site.position for site in case.record.sites("module") if share_of(site) == "weight"), default=-1)
    return tuple(site for site in sites if site.position < last)


def _evidence(case: Case, site: Site, episode: Episode) -> dict[str, float]:
    """Medians over the episode; what was not measured is left out."""
    series = case.record.tensor(site, "input")
    during = (series["step"] >= episode.first_step) & (series["step"] <= episode.last_step)
    names = {
        "rms": "input_rms", "mean": "input_mean", "saturated_low": "saturated_low_share",
        "saturated_high": "saturated_high_share", "gain": "mean_gain",
    }  # fmt: skip
    evidence = {}
    for name, key in names.items():
        known = series[name][during & np.isfinite(series[name])]
        if len(known):
            evidence[key] = float(np.median(known))
    steps, stuck = case.record.saturated_units(site)
    window = stuck[(steps >= episode.first_step) & (steps <= episode.last_step)]
    if window.size:
        evidence["stuck_unit_share"] = float(window.all(axis=0).mean())
    return evidence


def _what(evidence: dict[str, float]) -> str:
    rms, mean = evidence.get("input_rms"), evidence.get("input_mean")
    if rms is None or mean is None:
        return "pre-activations are too large"
    spread = float(np.sqrt(max(rms**2 - mean**2, 0.0)))
    if abs(mean) > BIAS_SHIFT.value * spread:
        return f"pre-activations are shifted to a mean of {mean:.2g}"
    return f"pre-activations are too large (rms {rms:.2g}, about 1 is sound)"


def _since_birth(scale: Scale | None) -> str:
    if scale is None or scale.words is None:
        return "since initialization: weights or inputs are scaled too large"
    return f"since initialization: {scale.words}"


def _later(case: Case, site: Site, episode: Episode) -> str:
    since = f"since step {episode.first_step}, not before"
    jump, layer = rate_jump(case.record, episode.previous_step, episode.first_step), layer_before(case.record, site)
    if jump is not None:
        return f"{since}: {jump.words}"
    ratio = update_at_onset(case.record, layer, episode) if layer is not None else None
    if ratio is not None and ratio >= LARGE_UPDATE.value:
        return f"{since}: an update of {ratio:.0%} of the weights, 0.1% is usual"
    return f"{since}: updates drove the weights up"


def _remedies(depth: int, episode: Episode, scale: Scale | None) -> tuple[str, ...]:
    if scale is not None and scale.blame == "input" and scale.input_is_the_networks:
        return ("input=standardize", "normalization=batch", "activation=relu")
    if depth >= DEEP:
        return ("activation=relu", "initialization=he", "normalization=batch")
    if episode.from_start:
        return ("initialization=xavier", "activation=relu", "normalization=batch")
    return ("optimizer=hold", "optimizer=rate:0.1", "activation=relu", "normalization=batch")


SATURATED_ACTIVATION = Rule(
    code="saturated-activation",
    examine=examine_saturation,
    thresholds=(SATURATED_SHARE, BIAS_SHIFT, BIAS_POWER, LARGE_BIAS, EXCESS, RATE_JUMP, LARGE_UPDATE),
    meaning=(
        "A bounded nonlinearity works where its curve is flat, so that no gradient passes and the layers "
        "before it cannot learn."
    ),
    measured=(
        "The share of pre-activations at which abs(f') is below 5 % of its maximum, found from the derivative "
        "and not from the function's name; medians over sampled steps."
    ),
    helps=(
        "A rectifier instead, weights drawn for the curve in use (initialization), or normalization before "
        "the nonlinearity."
    ),
)
