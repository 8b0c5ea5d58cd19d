"""low-precision-range: numbers too small or too large for float16 or bfloat16, where the network is held in these."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import SEVERITIES, Finding, Severity
from desat.diagnose.learning import FEW_LOSSES, SETTLED
from desat.diagnose.reading_series import typical
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.precision import CASTS, FORMATS, low_precision
from desat.record.reader import Record
from desat.record.rows import Site

UNCHANGED_SHARE = Threshold(
    "unchanged share",
    0.8,
    "share of a weight's entries",
    "share of the entries with a gradient that a step leaves as they were, above which training stands still",
    "desat: bfloat16 rounds off what is below 0.2 % of a weight, so that steps of the customary 0.1 % lose a half",
)
FROZEN_SHARE = Threshold(
    "frozen by rounding",
    0.25,
    "share of the weights",
    "share of all weights in layers of which no step changes anything, that does harm where the loss falls little",
    "desat: a quarter of the network",
)
SUBNORMAL_SHARE = Threshold(
    "subnormal share",
    0.5,
    "share of the gradients other than zero",
    "share of float16 gradients below its smallest normal number, above which others are lost as zeros",
    "Micikevicius et al. 2018, section 3.2: gradients below 2**-24 become zero in float16",
)
NEAR_OVERFLOW = Threshold(
    "near overflow",
    1e-3,
    "share of the values",
    "share of float16 values one doubling from infinity that is a symptom",
    "desat: two of the 2048 that a sample looks at",
)
SKIPPED_SHARE = Threshold(
    "skipped share",
    0.5,
    "share of the steps",
    "share of the later steps left out by the loss scaler, above which it finds no scale",
    "desat; a scaler doubles its scale each 2000 steps and so leaves out one of them (torch.amp.GradScaler)",
)
FEW_SKIPPED = 10
"""Steps left out that are still the search for the first scale, from 65536 down by halves."""
HIGH = 2.0**12
"""Values beyond it, a sixteenth of float16's largest, tell that an infinity after them was an overflow."""
ALL = 0.999
"""Share that counts as all."""
ADAPTIVE = ("Adam", "AdamW", "NAdam", "RMSprop", "Adagrad", "Adamax", "RAdam")


@dataclass(frozen=True)
class _Symptom:
    """One way in which the numbers do not fit their format; margin: as in `Episode.confidence`."""

    severity: Severity
    episode: Episode
    margin: float
    sites: tuple[Site, ...]
    cause: str
    message: str
    evidence: dict[str, float]
    remedies: tuple[str, ...]


Telling = Callable[[Case, float, Episode], tuple[str, str, dict[str, float], tuple[str, ...]]]
"""Makes cause, message, evidence and remedies of the worst share and its episode."""


def examine_precision(case: Case) -> list[Finding]:
    """At most one finding: the gravest symptom, of equals the first one below. The worst site comes first."""
    symptoms = [
        symptom
        for symptom in (_overflowed(case), _unchanged(case), _flushed(case), _near_overflow(case), _skipped(case))
        if symptom is not None
    ]
    if not symptoms:
        return []
    worst = min(symptoms, key=lambda symptom: SEVERITIES.index(symptom.severity))
    first = worst.sites[0]
    return [
        Finding(
            code="low-precision-range",
            severity=worst.severity,
            site=first.name,
            sites=tuple(site.name for site in sorted(worst.sites, key=lambda site: (site.position, site.id))),
            source=first.source,
            first_step=worst.episode.first_step,
            last_step=worst.episode.last_step,
            cause=worst.cause,
            message=worst.message,
            evidence=worst.evidence,
            remedies=worst.remedies,
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def weights_dtype(record: Record) -> str | None:
    """`float16` or `bfloat16` where the weights themselves are held in it; None where not, or where it is not known.

    Told by what goes into the network, since autocast casts in front of each layer and leaves inputs in float32; of a
    network that is given integers, by its first output, since autocast does not cast embeddings. A loss scaler
    refuses gradients of weights in float16.
    """
    if any("loss_scale" in record.readings(site) for site in record.sites("optimizer")):
        return None
    inputs = [site.operation for site in record.sites("input") if site.operation in FORMATS]
    if not inputs:
        first = next((site for site in record.sites() if site.kind in ("module", "nonlinearity")), None)
        inputs = [dtype for dtype in record.dtypes(first, "output")[:1] if dtype] if first is not None else []
    return inputs[0] if inputs and set(inputs) <= set(CASTS) else None


def _overflowed(case: Case) -> _Symptom | None:
    """A network in float16 whose numbers are no longer finite, where float16 is to blame."""
    record = case.record
    if case.learning.state != "non-finite":
        return None
    sites = [site for site in record.sites("module") if "float16" in record.dtypes(site, "output")]
    grid = record.grid("output", "nonfinite")
    steps, sick = grid.steps, (np.nan_to_num(grid.values) > 0.0).any(axis=0)
    episode = find_episode(steps, sick)
    if not sites or episode is None:
        return None
    largest, place = _largest(record, sites, episode.first_step)
    adaptive = next((site for site in record.sites("optimizer") if site.operation in ADAPTIVE), None)
    if largest >= HIGH and place is not None:
        site, evidence = place, {"largest": largest}
        cause = f"values grew to {largest:.3g} and then beyond 65504, the largest number of float16"
        remedies = ("loss=bfloat16", "loss=float32-weights", "normalization=layer")
    elif adaptive is not None and weights_dtype(record) == "float16":
        site, evidence = adaptive, {"smallest": 2.0 ** FORMATS["float16"].smallest}
        cause = (
            f"{adaptive.operation} on float16 weights divides by zero: its epsilon of 1e-8 and the squares of small "
            "gradients are below 6e-8, the smallest number of float16"
        )
        remedies = ("loss=float32-weights", "loss=bfloat16")
    else:
        return None
    return _Symptom(
        "error" if episode.ongoing else "note",
        episode,
        1.0,
        (site,),
        cause,
        (
            f"The network is computed in float16, and its numbers are nan or infinite {episode.since}; they should be "
            "finite. Weights in float32 and autocast with a loss scaler, or bfloat16, have the range."
        ),
        evidence,
        remedies,
    )


def _largest(record: Record, sites: list[Site], before: int) -> tuple[float, Site | None]:
    """The largest magnitude of any output before a step, and where it was."""
    found: tuple[float, Site | None] = (0.0, None)
    for site in sites:
        series = record.tensor(site, "output")
        at = series["step"] <= before
        extremes = np.abs(np.concatenate([series["minimum"][at], series["maximum"][at]]))
        extremes = extremes[np.isfinite(extremes)]
        if len(extremes) and extremes.max() > found[0]:
            found = (float(extremes.max()), site)
    return found


def _unchanged(case: Case) -> _Symptom | None:
    """Weights in half precision that most steps leave as they are, since what they add is rounded off."""
    record = case.record
    dtype = weights_dtype(record)
    grid, elements = record.grid("parameter", "unchanged"), record.grid("parameter", "elements").values
    weights = [index for index, site in enumerate(grid.sites) if not site.is_bias]
    if dtype is None or not weights or _has_no_rate(record):
        return None
    values, sizes = grid.values[weights], elements[weights]
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        whole = np.where(known, values * sizes, 0.0).sum(axis=0) / np.where(known, sizes, 0.0).sum(axis=0)
    episode = find_episode(grid.steps, whole >= UNCHANGED_SHARE.value)
    if episode is None:
        return None
    of_each = [typical(grid.steps.astype(np.float64), row, episode) or 0.0 for row in values]
    share = typical(grid.steps.astype(np.float64), whole, episode) or 0.0
    order = [int(index) for index in np.argsort(-np.array(of_each), kind="stable")]
    sites = tuple(grid.sites[weights[index]] for index in order if of_each[index] >= UNCHANGED_SHARE.value)
    margin = (share - UNCHANGED_SHARE.value) / (1.0 - UNCHANGED_SHARE.value)
    lost = {"float16": "0.05 %", "bfloat16": "0.4 %"}[dtype]
    frozen = float(sizes[:, -1][np.array(of_each) >= ALL].sum() / sizes[:, -1].sum())
    does_harm = case.learning.state == "slow" or (
        case.learning.losses >= FEW_LOSSES.value and case.learning.fall < SETTLED.value and frozen >= FROZEN_SHARE.value
    )
    return _Symptom(
        "error" if does_harm and episode.ongoing else case.severity(episode, margin),
        episode,
        margin,
        sites or (grid.sites[weights[order[0]]],),
        f"the steps are smaller than what {dtype} tells from nothing, about {lost} of a weight, and are rounded off",
        (
            f"A step leaves {share:.0%} of the weights as they were, {episode.since}, though they have a gradient; "
            f"less than {UNCHANGED_SHARE.value:.0%} would be sound. Keep the weights in float32 and compute in {dtype} "
            "(autocast), so that small steps add up."
        ),
        {"unchanged_share": share, "worst_unchanged_share": of_each[order[0]], "frozen_share": frozen},
        ("loss=float32-weights", "optimizer=adam"),
    )


def _has_no_rate(record: Record) -> bool:
    rates = record.steps()["learning_rate"]
    known = rates[np.isfinite(rates)]
    return len(known) > 0 and not known.any()


def _flushed(case: Case) -> _Symptom | None:
    """Gradients in float16 most of which have lost digits: those that are smaller still became zero."""
    return _worst_tensor(case, "gradient", SUBNORMAL_SHARE, _flushing)


def _near_overflow(case: Case) -> _Symptom | None:
    return _worst_tensor(case, "output", NEAR_OVERFLOW, _overflowing)


def _flushing(case: Case, share: float, episode: Episode) -> tuple[str, str, dict[str, float], tuple[str, ...]]:
    scale = _loss_scale(case.record)
    told = "without a loss scale" if scale is None else f"with a loss scale of {scale:.3g}"
    return (
        f"gradients are too small for float16 {told}: what is below 6e-8 becomes zero",
        (
            f"{share:.0%} of the gradients are below 6e-5, where float16 loses digits, {episode.since}; less than "
            f"{SUBNORMAL_SHARE.value:.0%} would be sound. The smallest are zero, and teach nothing."
        ),
        {"subnormal_share": share} | ({} if scale is None else {"loss_scale": scale}),
        ("loss=bfloat16", "loss=float32-weights"),
    )


def _overflowing(case: Case, share: float, episode: Episode) -> tuple[str, str, dict[str, float], tuple[str, ...]]:
    return (
        "values are too large for float16, whose largest number is 65504",
        (
            f"{share:.1%} of the values are above 32768, one doubling from infinity in float16, {episode.since}; "
            "none should be."
        ),
        {"overflow_share": share},
        ("loss=bfloat16", "normalization=layer", "input=standardize"),
    )


def _worst_tensor(case: Case, quantity: str, limit: Threshold, told: Telling) -> _Symptom | None:
    found = sorted(_tensors(case.record, quantity, limit), key=lambda one: -one[0])
    lasting = [one for one in found if one[2].ongoing] or found
    if not lasting:
        return None
    share, _, episode = lasting[0]
    margin = float(np.clip((share - limit.value) / (1.0 - limit.value), 0.0, 1.0))
    cause, message, evidence, remedies = told(case, share, episode)
    sites = tuple(site for _, site, _ in lasting)
    return _Symptom(case.severity(episode, margin), episode, margin, sites, cause, message, evidence, remedies)


def _tensors(record: Record, quantity: str, limit: Threshold) -> Iterator[tuple[float, Site, Episode]]:
    modules = [site for site in record.sites("module") if "float16" in record.dtypes(site, quantity)]
    for site in modules:
        shares = low_precision(record, site, quantity)
        values = shares["subnormal" if quantity == "gradient" else "overflow"]
        values = np.where(np.array(record.dtypes(site, quantity)) == "float16", values, np.nan)
        if quantity == "gradient" and site is modules[-1]:
            values = _with_all_lost(record, site, values)
        episode = find_episode(shares["step"], values >= limit.value)
        share = None if episode is None else typical(shares["step"], values, episode)
        if episode is not None and share is not None:
            yield share, site, episode


def _with_all_lost(record: Record, site: Site, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At the network's last output a gradient of nothing but zeros was lost: no dead unit is after it."""
    zeros = record.tensor(site, "gradient")["zeros"]
    return np.where((zeros >= ALL) & np.isnan(values), 1.0, values)


def _loss_scale(record: Record) -> float | None:
    for site in record.sites("optimizer"):
        series = record.readings(site).get("loss_scale")
        if series is not None and np.isfinite(series["value"]).any():
            return float(np.nanmedian(series["value"]))
    return None


def _skipped(case: Case) -> _Symptom | None:
    """A loss scaler that finds no scale at which the gradients are finite, and leaves out most steps."""
    for site in case.record.sites("optimizer"):
        series = case.record.readings(site).get("skipped")
        if series is None:
            continue
        skipped = series["value"] > 0.0
        share = float(skipped[len(skipped) // 2 :].mean())
        episode = find_episode(series["step"], skipped)
        if episode is None or not episode.ongoing or skipped.sum() <= FEW_SKIPPED or share < SKIPPED_SHARE.value:
            continue
        margin = (share - SKIPPED_SHARE.value) / (1.0 - SKIPPED_SHARE.value)
        scale = _loss_scale(case.record)
        return _Symptom(
            case.severity(episode, margin),
            episode,
            margin,
            (site,),
            "gradients overflow float16 at any loss scale: they are not finite, or far apart in size",
            (
                f"The loss scaler leaves out {share:.0%} of the steps, {episode.since}, since gradients overflow; less "
                f"than {SKIPPED_SHARE.value:.0%} would be sound, and one in 2000 is usual."
            ),
            {"skipped_share": share} | ({} if scale is None else {"loss_scale": scale}),
            ("loss=bfloat16", "clipping=1.0", "normalization=layer"),
        )
    return None


LOW_PRECISION_RANGE = Rule(
    code="low-precision-range",
    examine=examine_precision,
    thresholds=(UNCHANGED_SHARE, FROZEN_SHARE, SUBNORMAL_SHARE, NEAR_OVERFLOW, SKIPPED_SHARE),
    meaning=(
        "Numbers are too small or too large for the half-width format they are held in: gradients become zero, values "
        "infinite, or steps too small to change a weight."
    ),
    measured=(
        "Of tensors in float16 the share below the smallest normal number and near the largest one, from a histogram "
        "of magnitudes; of weights held in float16 or bfloat16 the share of entries that a step leaves as they were "
        "though they have a gradient; and the steps that a loss scaler leaves out."
    ),
    helps="Weights in float32 with autocast, a loss scaler for float16 gradients, or bfloat16, which has the range.",
)
