"""saturated-output: the network is sure, and wrong: its last nonlinearity is flat where its inputs lie."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.curves import nonlinearities
from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding
from desat.diagnose.link_budget import share_of
from desat.diagnose.onset import RATE_JUMP, rate_jump
from desat.diagnose.rule import Case, Rule
from desat.diagnose.scale import BIAS_POWER, EXCESS, LARGE_BIAS, Scale, trace_scale
from desat.diagnose.threshold import Threshold
from desat.record.rows import Site

SATURATED_OUTPUT_SHARE = Threshold(
    "saturated output",
    0.5,
    "share of the outputs",
    "saturated share of the last nonlinearity that is called a symptom where the loss is not falling",
    "desat: half of them; an output that is right may be saturated, so harm is asked for as well",
)
WIDE_LOGITS = Threshold(
    "wide logits",
    5.0,
    "standard deviation",
    "spread of the logits above which a softmax or sigmoid in the loss is saturated",
    "desat: a sigmoid has lost 95 % of its slope 4.4 from its middle; drawn logits have about 1",
)
WRONG_LOGITS = Threshold(
    "wrong logits",
    0.3,
    "loss / standard deviation",
    "loss over the spread of the logits above which the network is as often wrong as it is sure",
    "desat: chance gives 0.4 with two classes and 1.5 with ten; a network that is right has less than 0.1",
)
LOGIT_LOSSES = ("LogSoftmax", "BinaryCrossEntropyWithLogits")


@dataclass(frozen=True)
class _Saturation:
    """value: saturated share of a nonlinearity, or the logits' standard deviation; loss_ratio: only of the latter."""

    site: Site
    value: float
    loss_ratio: float | None
    episode: Episode

    @property
    def margin(self) -> float:
        if self.loss_ratio is None:
            return (self.value - SATURATED_OUTPUT_SHARE.value) / (1.0 - SATURATED_OUTPUT_SHARE.value)
        return float(np.log10(self.value / WIDE_LOGITS.value))


def examine_output(case: Case) -> list[Finding]:
    """One finding, for the last nonlinearity of a network that does not learn, else for logits inside of the loss."""
    found = [*_flat_outputs(case), *_wide_logits(case)]
    if not found:
        return []
    worst = max(found, key=lambda one: (one.episode.ongoing, one.margin))
    scale = trace_scale(case.record, worst.site, worst.episode.first_step) if worst.episode.from_start else None
    evidence = (
        {"saturated_share": worst.value}
        if worst.loss_ratio is None
        else {"logit_deviation": worst.value, "loss_over_deviation": worst.loss_ratio}
    )
    return [
        Finding(
            code="saturated-output",
            severity=case.severity(worst.episode, worst.margin),
            site=worst.site.name,
            sites=(worst.site.name,),
            source=worst.site.source,
            first_step=worst.episode.first_step,
            last_step=worst.episode.last_step,
            cause=_cause(case, worst, scale),
            message=_message(worst),
            evidence=evidence if scale is None else evidence | scale.evidence,
            remedies=("initialization=torch", "initialization=xavier"),
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _last_layer(case: Case) -> Site | None:
    layers = [site for site in case.record.sites("module") if share_of(site) == "weight"]
    return layers[-1] if layers else None


def _flat_outputs(case: Case) -> list[_Saturation]:
    """Nonlinearities behind the last weights; where the network learns, one that is sure is right."""
    last = _last_layer(case)
    if last is None or case.learning.harm is False:
        return []
    found = []
    for site in nonlinearities(case.record, "bounded"):
        series = case.record.tensor(site, "input")
        share = np.nan_to_num(series["saturated_low"]) + np.nan_to_num(series["saturated_high"])
        episode = find_episode(series["step"], share >= SATURATED_OUTPUT_SHARE.value)
        if site.position > last.position and episode is not None:
            during = (series["step"] >= episode.first_step) & (series["step"] <= episode.last_step)
            found.append(_Saturation(site, float(np.median(share[during])), None, episode))
    return found


def _wide_logits(case: Case) -> list[_Saturation]:
    """The last layer, if the loss applies a softmax or sigmoid right behind it."""
    last = _last_layer(case)
    chains = [site.operation.split(" <- ") for site in case.record.sites("loss")]
    if last is None or not any(len(chain) > 1 and chain[-2] in LOGIT_LOSSES for chain in chains):
        return []
    output, run = case.record.tensor(last, "output"), case.record.steps(sampled=True)
    loss_at = dict(zip(run["step"].tolist(), run["loss"].tolist(), strict=True))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        deviation = np.sqrt(np.maximum(output["rms"] ** 2 - output["mean"] ** 2, 0.0))
        ratio = np.array([loss_at.get(step, np.nan) for step in output["step"].tolist()]) / deviation
    known = np.isfinite(deviation) & np.isfinite(ratio)
    held = known & (deviation >= WIDE_LOGITS.value) & (ratio >= WRONG_LOGITS.value)
    episode = find_episode(output["step"], held)
    if episode is None:
        return []
    during = held & (output["step"] >= episode.first_step) & (output["step"] <= episode.last_step)
    return [_Saturation(last, float(np.median(deviation[during])), float(np.median(ratio[during])), episode)]


def _cause(case: Case, worst: _Saturation, scale: Scale | None) -> str:
    what = "what goes into the output is too large" if worst.loss_ratio is None else "the logits are too large"
    if worst.episode.from_start:
        return f"{what} from initialization on: {_since_birth(case, scale)}"
    since = f"{what} since step {worst.episode.first_step}, not before"
    jump = rate_jump(case.record, worst.episode.previous_step, worst.episode.first_step)
    return f"{since}: {jump.words}" if jump is not None else f"{since}: updates drove the last layer's weights up"


def _since_birth(case: Case, scale: Scale | None) -> str:
    if scale is None or scale.words is None:
        return "the last layer's weights, or what comes to it, are scaled too large"
    if scale.blame == "weights" and scale.layer == _last_layer(case):
        return f"the last layer's weights are too large, their gain is {scale.gain:.2g}, 1 to 1.4 is sound"
    return scale.words


def _message(worst: _Saturation) -> str:
    if worst.loss_ratio is None:
        return (
            f"{worst.value:.0%} of what goes into the output {worst.site.name} ({worst.site.operation}) lies where its "
            f"curve is flat, {worst.episode.since}, and the loss does not fall: the network is sure and wrong, and no "
            f"gradient passes to correct it. Below {SATURATED_OUTPUT_SHARE.value:.0%} would be sound."
        )
    return (
        f"The logits of {worst.site.name} have a standard deviation of {worst.value:.3g}, {worst.episode.since}, and "
        "the loss is as large as they are: the network is sure and wrong. Logits of about 1 would be sound before the "
        "network knows more."
    )


SATURATED_OUTPUT = Rule(
    code="saturated-output",
    examine=examine_output,
    thresholds=(SATURATED_OUTPUT_SHARE, WIDE_LOGITS, WRONG_LOGITS, BIAS_POWER, LARGE_BIAS, EXCESS, RATE_JUMP),
    meaning="The network's output is sure and wrong: it lies where its curve is flat, and passes no gradient.",
    measured=(
        "The saturated share of a bounded nonlinearity behind the last weights; where the softmax or sigmoid is part "
        "of the loss, the standard deviation of the logits, and the loss over it."
    ),
    helps="Weights of the last layer drawn for unit logits, a normalized input to it, or smaller steps.",
)
