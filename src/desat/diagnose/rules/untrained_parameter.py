"""untrained-parameter: weights that the training does not reach: not in the optimizer, cut off, or never changed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.learning import FEW_LOSSES, SETTLED
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.rows import Site

UNTRAINED_SHARE = Threshold(
    "untrained share",
    0.1,
    "share of the weights",
    "weights of the network that are not trained, of all by number, above which that explains a harm",
    "desat: one odd weight of many does not keep a network from learning",
)
FROZEN_SHARE = Threshold(
    "frozen share",
    0.5,
    "share of the weights",
    "weights that are frozen on purpose, above which a network that does not learn is warned about",
    "desat: half of them; a frozen network with a new head is customary (Yosinski et al. 2014) and learns",
)
FEW_SAMPLES = Threshold(
    "samples to tell",
    3,
    "sampled steps",
    "below this a weight without a gradient or an update may just be waiting for its turn",
    "desat: adversarial networks and gates that start at zero train a part at every second step or later",
)
AT_GUESSING = 0.9
"""Share of the loss of guessing from which on a network is said to begin there; it is drawn 2 % around it."""


@dataclass(frozen=True)
class _Weights:
    """What the record tells of the parameters, each list in order of execution. all: how many weights there are.

    left_out: in no optimizer, with a gradient. cut_off: in one, but no gradient comes though the layer ran. unmoved: a
    gradient but never a change, while others change. silent: a gradient of exactly zero, always. unused: its layer
    never ran. frozen: requires_grad is False, or neither a gradient nor an optimizer, and never a change.
    """

    all: int
    left_out: tuple[Site, ...]
    cut_off: tuple[Site, ...]
    unmoved: tuple[Site, ...]
    silent: tuple[Site, ...]
    unused: tuple[Site, ...]
    frozen: tuple[Site, ...]


@dataclass(frozen=True)
class _Reason:
    """Why parameters are not trained: in words with `{site}` and `{owner}`, whether it can be meant, what fits."""

    name: str
    cause: str
    message: str
    meant: bool = False
    remedies: tuple[str, ...] = ()


REASONS: tuple[tuple[_Reason, Callable[[_Weights], tuple[Site, ...]]], ...] = (
    (
        _Reason(
            "left_out", "they get gradients but are in no optimizer",
            "get gradients, but no optimizer was given them, so they stay as they were drawn. "
            "Hand all of model.parameters() to the optimizer, or freeze them with requires_grad_(False) if so meant.",
            remedies=("optimizer=missing",),
        ),
        lambda weights: weights.left_out,
    ),
    (
        _Reason(
            "cut_off", "no gradient comes back to them: a detach(), no_grad() or rebuilt tensor cuts them off the loss",
            "run in every step, but no gradient comes back to them, so they stay as they were drawn. "
            "Look for detach(), .data, .item(), torch.no_grad() or torch.tensor(...) between there and the loss.",
        ),
        lambda weights: weights.cut_off,
    ),
    (
        _Reason(
            "unmoved", "they have gradients, but the optimizer never changes them: their learning rate is zero",
            "have gradients and are in the optimizer, but no step has changed them by a bit, while others move. "
            "Look at the learning rate of their parameter group.",
        ),
        lambda weights: weights.unmoved,
    ),
    (
        _Reason(
            "silent", "their gradients are exactly zero at every sampled step",
            "have gradients of exactly zero at every sampled step, so nothing ever moves them. "
            "Something behind them passes no gradient: a factor of zero, dead units, or weights that are all zero.",
        ),
        lambda weights: weights.silent,
    ),
    (
        _Reason(
            "unused", "their layers never run in a training step",
            "are in the optimizer, but their layers never run in a training step. "
            "Call them in forward(), or take them out.", meant=True,
        ),
        lambda weights: weights.unused,
    ),
    (
        _Reason(
            "frozen", "they are frozen: without a gradient, and not meant to be trained",
            "are frozen (requires_grad is False, or under no_grad() and in no optimizer) and stay as they are. "
            "That is right for layers that were trained before; drawn ones need training.", meant=True,
        ),
        lambda weights: weights.frozen,
    ),
)  # fmt: skip
"""The gravest first."""


LEAST_CHANGE = 2.0**-24
"""Share of a float32 number below which what is added to it is rounded away (IEEE 754, half of its last place)."""


def examine_untrained(case: Case) -> list[Finding]:
    """One finding, for the gravest reason that there is; biases count where no weight is affected."""
    steps = case.record.steps(sampled=True)["step"]
    if len(steps) < FEW_SAMPLES.value:
        return []
    weights = _weights(case)
    found = [(reason, select(weights)) for reason, select in REASONS if select(weights)]
    if not found:
        return []
    reason, sites = next(((reason, sites) for reason, sites in found if _without_biases(sites)), found[0])
    affected = _without_biases(sites)
    share = len(affected) / max(weights.all, 1)
    names = [site.name for site in affected or sites]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    episode = Episode(int(steps[0]), int(steps[-1]), len(steps), len(steps), True, True, None)
    return [
        Finding(
            code="untrained-parameter",
            severity=_severity(case, reason, share, bool(affected)),
            site=names[0],
            sites=tuple(site.name for site in sites),
            source=None,
            first_step=episode.first_step,
            last_step=episode.last_step,
            cause=reason.cause,
            message=f"{names[0]}{more} ({share:.0%} of the weights) {reason.message}",
            evidence={"untrained_share": share, "untrained_weights": float(len(affected))}
            | {other.name: float(len(_without_biases(of_it))) for other, of_it in found},
            remedies=reason.remedies,
            confidence=episode.confidence(1.0 if not reason.meant else share),
        )
    ]


def _severity(case: Case, reason: _Reason, share: float, has_weights: bool) -> Severity:
    harm = case.learning.harm
    if not has_weights:
        return "note"
    if reason.name == "frozen" and share >= FROZEN_SHARE.value and _knew_nothing(case):
        return "error"
    if reason.meant:
        return "warning" if harm is not False and share >= FROZEN_SHARE.value else "note"
    if reason.name == "silent":
        # A network that learns may have a part that is not asked yet.
        grave = harm and share >= UNTRAINED_SHARE.value
        return "error" if grave else "warning" if harm is not False else "note"
    if reason.name == "cut_off" and share >= UNTRAINED_SHARE.value:
        return "error"
    # What an optimizer holds is meant to be trained; what it does not may be left out in a careless fine-tuning.
    learning = case.learning
    suffers = harm or learning.state == "slow" or (case.has_learned_little and reason.name != "left_out")
    return "error" if suffers and share >= UNTRAINED_SHARE.value else "warning"


def _knew_nothing(case: Case) -> bool:
    """Whether the loss began at that of guessing, and has hardly left it.

    Weights that were trained before and are handed on whole begin below it, and a new head on such features soon
    leaves it: these stay frozen as they were drawn, or are of no use for the task.
    """
    learning = case.learning
    if learning.guessing is None or not case.has_learned_little or not (learning.harm or learning.state == "slow"):
        return False
    return learning.start >= AT_GUESSING * learning.guessing


def _weights(case: Case) -> _Weights:
    record = case.record
    gradient, update = record.grid("parameter", "gradient_rms"), record.grid("parameter", "update_rms")
    sites = record.sites("parameter")
    if not gradient.sites:
        return _Weights(0, (), (), (), (), (), ())
    ran = {site.name for site in record.sites() if site.kind not in ("parameter", "optimizer")}
    silent, unmoved = [], []
    moving = np.nan_to_num(update.values).max(axis=1, initial=0.0) > 0.0
    for index, site in enumerate(gradient.sites):
        known = np.isfinite(gradient.values[index])
        # The gradient of a bias may be zero but for rounding, before a normalization say.
        if known.sum() < FEW_SAMPLES.value or _is_bias(site):
            continue
        if not gradient.values[index, known].any():
            silent.append(site)
        elif (
            not moving[index]
            and moving.any()
            and np.isfinite(update.values[index, known]).all()
            and _could_be_seen(case, site, float(gradient.values[index, known].max()))
        ):
            unmoved.append(site)
    measured = {site.id for site in gradient.sites}
    groups: dict[str, list[Site]] = {"left_out": [], "cut_off": [], "unused": [], "frozen": []}
    for site in sites:
        if site.id not in measured and (group := _group(case, site, ran)):
            groups[group].append(site)
    return _Weights(
        all=len(_without_biases(sites)), silent=tuple(silent), unmoved=tuple(unmoved),
        **{name: tuple(members) for name, members in groups.items()},
    )  # fmt: skip


def _could_be_seen(case: Case, site: Site, gradient: float) -> bool:
    """Whether a plain step along a gradient of that rms, at the run's rate, would change a bit of the weights.

    Where it would not, the gradient has vanished, and the rate need not be zero.
    """
    rates = case.record.steps()["learning_rate"]
    sizes = case.record.parameter(site)["rms"]
    known, weights = rates[np.isfinite(rates)], sizes[np.isfinite(sizes)]
    rate = float(known.max()) if len(known) else 1.0
    return not len(weights) or rate * gradient >= LEAST_CHANGE * float(weights.max())


def _group(case: Case, site: Site, ran: set[str]) -> str | None:
    """Of a parameter that never had a gradient at an optimizer's step: which group of `_Weights` it belongs to."""
    readings = case.record.readings(site)
    if "frozen" in readings:
        return "frozen"
    owner = site.name.rpartition(".")[0]
    if "in_optimizer" in readings:
        changed = readings.get("changed")
        if changed is None or changed["value"].any():
            return None  # something else than an optimizer trains it, or it was looked at but once
        if readings["has_gradient"]["value"].any():
            return "left_out"
        return "frozen" if owner in ran else None
    return "cut_off" if owner in ran else "unused"


def _without_biases(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    return tuple(site for site in sites if not _is_bias(site))


def _is_bias(site: Site) -> bool:
    return "bias" in site.name.rpartition(".")[2]


UNTRAINED_PARAMETER = Rule(
    code="untrained-parameter",
    examine=examine_untrained,
    thresholds=(UNTRAINED_SHARE, FROZEN_SHARE, FEW_SAMPLES, SETTLED, FEW_LOSSES),
    meaning="Weights stay as they were drawn: no optimizer has them, or no gradient reaches them.",
    measured=(
        "Which parameters of the network have a gradient at the sampled steps, which of them an optimizer holds, and "
        "whether their values ever change."
    ),
    helps="All parameters in the optimizer, no detach() on the way to the loss; or frozen by requires_grad_(False).",
)
