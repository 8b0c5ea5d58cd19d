"""unscaled-input: the input is far from zero mean and unit size, or its features are of different scale."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.link_budget import share_of
from desat.diagnose.rule import WRONG_START, Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.rows import Site

LARGE_INPUT = Threshold(
    "large input",
    10.0,
    "rms",
    "size of the input batch above which it is not scaled; 1 is sound",
    "AUTOTRAINER (Zhang et al., ICSE 2021), abnormal data: mean of the inputs of 10 or more",
)
SMALL_INPUT = Threshold(
    "small input",
    0.02,
    "rms",
    "size of the input batch below which it is not scaled; 1 is sound",
    "desat: sparse word counts scaled to unit length have 0.03 with a thousand words (LeCun et al. 1998, Efficient "
    "BackProp, section 4.3, ask for a variance of one)",
)
UNEVEN_FEATURES = Threshold(
    "uneven features",
    100.0,
    "ratio",
    "rms of the largest feature over that of the median one, above which features are of different scale",
    "desat: two orders of magnitude; of standardized features 1, of pixels and counts below 20",
)
REACHES = Threshold(
    "reaches the network",
    0.02,
    "ratio",
    "rms(first layer's output) / rms(input), below which a large input is taken for scaled inside of the network",
    "desat: a layer as torch draws it has 0.58, and with bytes divided by 255 before it a 255th of that",
)

ABOVE_BIASES = 3.0
"""A first layer that puts out so many times its biases passes something else on."""
RECURRENT = ("lstm", "gru", "rnn")
"""Parts of the names of layers whose output is bounded, so that it does not tell how large the input was."""

Kind = Literal["large", "small", "uneven"]


@dataclass(frozen=True)
class _Scale:
    """How far the input is from what it should be. value: rms, or the ratio of features; margin: in decades."""

    kind: Kind
    value: float
    episode: Episode

    @property
    def margin(self) -> float:
        limit = {"large": LARGE_INPUT, "small": SMALL_INPUT, "uneven": UNEVEN_FEATURES}[self.kind].value
        return float(abs(np.log10(max(self.value, 1e-30) / limit)))


def examine_input(case: Case) -> list[Finding]:
    """One finding for the first input of the network, unless the first layer normalizes it."""
    inputs = [site for site in case.record.sites("input") if not site.operation.startswith(("int", "uint", "bool"))]
    layers = [site for site in case.record.sites("module") if share_of(site) != "other"]
    if not inputs or not layers or share_of(layers[0]) == "normalization" or "embedding" in layers[0].operation.lower():
        return []
    site, first = inputs[0], layers[0]
    scales = [scale for scale in (*_sizes(case, site, first), _unevenness(case, site)) if scale is not None]
    if not scales:
        return []
    worst = max(scales, key=lambda scale: (scale.episode.ongoing, scale.margin))
    return [
        Finding(
            code="unscaled-input",
            severity=_severity(case, worst),
            site=site.name,
            sites=(site.name, first.name),
            source=site.source,
            first_step=worst.episode.first_step,
            last_step=worst.episode.last_step,
            cause=_cause(worst),
            message=_message(worst, first),
            evidence=_evidence(case, site, worst.episode) | {scale.kind: scale.value for scale in scales},
            remedies=("input=standardize", "normalization=batch"),
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _severity(case: Case, scale: _Scale) -> Severity:
    """A large input is what makes a network sure and wrong; a small one does not."""
    if scale.kind == "small":
        return case.severity(scale.episode, scale.margin)
    return case.severity_from_birth(scale.episode, scale.margin)


def _sizes(case: Case, site: Site, first: Site) -> list[_Scale | None]:
    batch, output = case.record.tensor(site, "output"), case.record.tensor(first, "output")
    steps, size = batch["step"], batch["rms"]
    after = dict(zip(output["step"].tolist(), output["rms"].tolist(), strict=True))
    arriving = np.array([after.get(step, np.nan) for step in steps.tolist()])
    with np.errstate(divide="ignore", invalid="ignore"):
        passed = arriving / size
    # A network that scales its input itself makes it smaller before the first layer; unknown counts as not scaled.
    is_bounded = any(name in first.operation.lower() for name in RECURRENT)
    arrives = ~(passed < REACHES.value) | is_bounded
    # And one that scales it up puts out more than its biases alone.
    beyond = arriving > ABOVE_BIASES * _size_of_biases(case, first)
    is_scaled_up = (passed > 1.0 / SMALL_INPUT.value) & beyond & (not is_bounded)
    return [
        _scale("large", steps, size, (size >= LARGE_INPUT.value) & arrives),
        _scale("small", steps, size, (size <= SMALL_INPUT.value) & (size > 0.0) & ~is_scaled_up),
    ]


def _size_of_biases(case: Case, layer: Site) -> float:
    """The largest rms of a bias of the layer at any sample; 0 where none is recorded."""
    size = case.record.grid("parameter", "rms")
    own = [
        float(np.nanmax(values))
        for site, values in zip(size.sites, size.values, strict=True)
        if site.name.rpartition(".")[0] == layer.name
        and "bias" in site.name.rpartition(".")[2]
        and np.isfinite(values).any()
    ]
    return max(own, default=0.0)


def _unevenness(case: Case, site: Site) -> _Scale | None:
    series = case.record.readings(site).get("feature_rms_largest_over_median")
    if series is None:
        return None
    return _scale("uneven", series["step"], series["value"], series["value"] >= UNEVEN_FEATURES.value)


def _scale(
    kind: Kind, steps: NDArray[np.float64], values: NDArray[np.float64], held: NDArray[np.bool_]
) -> _Scale | None:
    held = held & np.isfinite(values)
    episode = find_episode(steps, held)
    if episode is None:
        return None
    during = values[held & (steps >= episode.first_step) & (steps <= episode.last_step)]
    return _Scale(kind, float(np.median(during)), episode)


def _evidence(case: Case, site: Site, episode: Episode) -> dict[str, float]:
    batch = case.record.tensor(site, "output")
    during = (batch["step"] >= episode.first_step) & (batch["step"] <= episode.last_step)
    names = {"mean": "input_mean", "rms": "input_rms", "minimum": "input_minimum", "maximum": "input_maximum"}
    evidence = {}
    for name, key in names.items():
        known = batch[name][during & np.isfinite(batch[name])]
        if len(known):
            evidence[key] = float(np.median(known))
    constant = case.record.readings(site).get("constant_features")
    if constant is not None and len(constant["value"]):
        evidence["constant_features"] = float(np.median(constant["value"]))
    return evidence


def _cause(scale: _Scale) -> str:
    if scale.kind == "large":
        return f"inputs are {scale.value:.3g} in size where about 1 is sound: they were not scaled"
    if scale.kind == "small":
        return f"inputs are {scale.value:.1g} in size where about 1 is sound: they were scaled down too far"
    return f"the largest feature is {scale.value:,.0f} times the median one: features were not scaled one by one"


def _message(scale: _Scale, first: Site) -> str:
    if scale.kind == "uneven":
        return (
            f"The largest feature of the input is {scale.value:,.0f} times as large as the median one, "
            f"{scale.episode.since}; below {UNEVEN_FEATURES.value:.0f} would be sound. "
            f"{first.name} sees little but that one. Give each feature zero mean and unit variance."
        )
    return (
        f"The numbers that go into {first.name} have an rms of {scale.value:.3g}, {scale.episode.since}; about 1 "
        "would be sound, since weights are drawn for that. Subtract the mean of the training data, and divide by its "
        "standard deviation."
    )


UNSCALED_INPUT = Rule(
    code="unscaled-input",
    examine=examine_input,
    thresholds=(LARGE_INPUT, SMALL_INPUT, UNEVEN_FEATURES, REACHES, WRONG_START),
    meaning="The input is far from zero mean and unit size, for which weights and learning rates are chosen.",
    measured=(
        "rms of the input batch, and the rms of its largest feature over that of the median one. A network whose first "
        "layer normalizes or embeds, or that scales the input itself, is left out."
    ),
    helps="Zero mean and unit variance, feature by feature, by the training data; or a normalization in front.",
)
