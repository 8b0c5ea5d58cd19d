"""non-finite: nan or infinity, and the first place that made one."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.rule import Case, Rule
from desat.diagnose.threshold import Threshold
from desat.record.reader import Record
from desat.record.rows import Site

BAD_DATA_REMEDIES = ("clipping=finite",)
"""The samples stay bad, but no longer take the weights with them."""

MOSTLY = Threshold(
    "mostly non-finite",
    0.5,
    "share of a tensor",
    "non-finite share that is an error even where the loss looks well",
    "desat: masks put minus infinity into part of a tensor on purpose, never into most of everything",
)

QUANTITIES = (
    ("input", "nonfinite"),
    ("output", "nonfinite"),
    ("gradient", "nonfinite"),
    ("parameter", "gradient_nonfinite"),
)
"""What is looked at, in the order in which a step computes it."""
SOUND_CRITERIA = ("NllLoss", "BinaryCrossEntropyWithLogits", "MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
"""Losses that are finite for finite numbers; a logarithm or exponential by hand is not."""
BEFORE = 20
"""Losses before the first that is not finite, by which it is told whether they were growing."""


@dataclass(frozen=True)
class _Place:
    """One site's tensor with non-finite values at the step where they were first seen."""

    site: Site
    quantity: str
    share: float

    @property
    def order(self) -> tuple[int, int]:
        """Forward quantities in order of execution, then backward ones against it."""
        if self.quantity in ("input", "output"):
            return (0, 2 * self.site.position + (self.quantity == "output"))
        return (1 + (self.quantity == "parameter"), -self.site.position)


def examine_nonfinite(case: Case) -> list[Finding]:
    """One finding for the network: at the first sampled step with a non-finite value, the first place that had one."""
    steps, share = _worst_share(case.record)
    episode = find_episode(steps, share > 0.0)
    since = case.learning.nonfinite_since
    if episode is None:
        return [] if since is None else [_loss_finding(case, since)]
    places = sorted(_places(case.record, episode.first_step), key=lambda place: place.order)
    first, worst = places[0], max(place.share for place in places)
    what = f"{_named(first.quantity)} of {first.site.name} ({first.site.operation})"
    if first.site.kind == "input":
        what = f"network's {first.site.name} ({first.site.operation})"
    evidence = {"nonfinite_share": worst, "sampled_steps": float(episode.held)}
    bad_data = _bad_data(case, first, episode)
    cause = bad_data or _cause(case.record, first, episode)
    if since is not None:
        evidence["loss_nonfinite_since"] = float(since)
    return [
        Finding(
            code="non-finite",
            severity=_severity(case, episode, worst),
            site=first.site.name,
            sites=tuple(place.site.name for place in _by_position(places)),
            source=first.site.source,
            first_step=episode.first_step,
            last_step=episode.last_step,
            cause=cause,
            message=(
                f"The {what} holds nan or infinity, {episode.since}: "
                f"{first.share:.0%} of its values, it should be none. What is computed from them is lost as well."
            ),
            evidence=evidence,
            remedies=BAD_DATA_REMEDIES
            if bad_data
            else ("optimizer=rate:0.1", "initialization=he", "clipping=1.0", "normalization=batch"),
            confidence=episode.confidence(1.0),
        )
    ]


def _named(quantity: str) -> str:
    return "gradient" if quantity == "parameter" else quantity


def _worst_share(record: Record) -> tuple[list[int], np.ndarray]:
    """Sampled steps, and at each the largest non-finite share of any tensor."""
    worst: dict[int, float] = {}
    for quantity, statistic in QUANTITIES:
        grid = record.grid(quantity, statistic)
        largest = np.nan_to_num(grid.values).max(axis=0, initial=0.0)
        for step, value in zip(grid.steps, largest, strict=True):
            worst[int(step)] = max(worst.get(int(step), 0.0), float(value))
    steps = sorted(worst)
    return steps, np.array([worst[step] for step in steps])


def _places(record: Record, step: int) -> list[_Place]:
    places = []
    for quantity, statistic in QUANTITIES:
        grid = record.grid(quantity, statistic)
        at = grid.values[:, grid.steps == step].reshape(-1)
        places += [
            _Place(site, quantity, float(value)) for site, value in zip(grid.sites, at, strict=False) if value > 0
        ]
    return places


def _by_position(places: list[_Place]) -> list[_Place]:
    """One place for each site, in order of execution."""
    unique = {place.site.id: place for place in places}
    return sorted(unique.values(), key=lambda place: (place.site.position, place.site.id))


def _severity(case: Case, episode: Episode, worst: float) -> Severity:
    if not episode.ongoing:
        return "note"
    if case.learning.state == "non-finite" or worst >= MOSTLY.value:
        return "error"
    return case.severity(episode, worst)


def _bad_data(case: Case, first: _Place, episode: Episode) -> str | None:
    """The cause where it is the data: seen in the network's input, or told by a first layer that was lost at once."""
    if first.site.kind == "input":
        return f"the data holds nan or infinity: {first.share:.2g} of {first.site.name} at step {episode.first_step}"
    if first.quantity not in ("input", "output") or first.site.position > _first_position(case.record):
        return None
    if episode.previous_step is None or not _was_sound_before(case):
        return None
    later = _bad_inputs(case.record)
    if later is not None:
        return f"the data holds nan or infinity: {later[1]:.2g} of the network's input at step {later[0]}"
    return None


def _bad_inputs(record: Record) -> tuple[int, float] | None:
    """The first sampled step at which the network's input was not finite, and its non-finite share."""
    for site in record.sites("input"):
        series = record.tensor(site, "output")
        at = np.flatnonzero(np.nan_to_num(series["nonfinite"]) > 0.0)
        if len(at):
            return int(series["step"][at[0]]), float(series["nonfinite"][at[0]])
    return None


def _was_sound_before(case: Case) -> bool:
    """Whether the loss went from no unusual value to none at all, of a criterion that is finite for finite numbers."""
    chains = [site.operation.split(" <- ") for site in case.record.sites("loss")]
    if not chains or any(chain[0] not in SOUND_CRITERIA or {"Log", "Exp"} & set(chain) for chain in chains):
        return False
    losses = case.record.steps()["loss"]
    bad = np.flatnonzero(~np.isfinite(losses))
    if not len(bad) or bad[0] < 3:
        return False
    before = losses[max(0, int(bad[0]) - BEFORE) : int(bad[0])]
    return bool(before[-1] <= before[:-1].max())


def _is_narrow_or_recurrent(record: Record) -> bool:
    """Whether values may overflow from one step to the next: in half precision, or through the steps of a sequence."""
    dtypes = {dtype for site in record.sites("module") for dtype in record.dtypes(site, "output")}
    return bool(record.sites("recurrent")) or "float16" in dtypes


def _first_position(record: Record) -> int:
    """The place of the first module or nonlinearity of the network."""
    return min((site.position for site in record.sites() if site.kind in ("module", "nonlinearity")), default=0)


def _cause(record: Record, first: _Place, episode: Episode) -> str:
    if first.quantity == "gradient":
        by_hand = _by_hand(record) if first.site.position >= _last_position(record) else None
        if by_hand is not None:
            return by_hand
        return f"the backward pass overflowed: its first non-finite gradient arrives at {first.site.name}"
    if first.quantity == "parameter":
        return f"the gradient of {first.site.name} overflowed, while what flows between the layers was finite"
    if first.quantity == "output" and first.site.kind == "nonlinearity":
        return f"{first.site.operation} turned finite inputs into non-finite values"
    if first.site.position > _first_position(record):
        return f"values grow from layer to layer until they overflow in {first.site.name}"
    if episode.previous_step is None:
        return "the data or the initial weights are not finite, or overflow there"
    between = f"between steps {episode.previous_step} and {episode.first_step}"
    return f"an update {between} spoiled the weights, or a batch of data was bad"


def _by_hand(record: Record) -> str | None:
    """What the loss computes by hand that is not finite for all finite numbers."""
    for site in record.sites("loss"):
        chain = site.operation.split(" <- ")
        if "Log" in chain:
            behind = chain[chain.index("Log") :]
            if "Exp" in behind:
                return "a logarithm of exponentials is computed by hand in the loss, and they overflow"
            if {"Softmax", "Sigmoid"} & set(behind):
                return "the logarithm of a softmax or sigmoid is taken by hand in the loss, of one that is rounded to 0"
    return None


def _last_position(record: Record) -> int:
    """The place of the last module or nonlinearity of the network."""
    return max((site.position for site in record.sites() if site.kind in ("module", "nonlinearity")), default=0)


def _loss_finding(case: Case, since: int) -> Finding:
    """The loss alone: the network's values were finite wherever they were sampled."""
    steps = case.record.steps()["step"]
    last = int(steps[-1]) if len(steps) else since
    bad_data = _was_sound_before(case) and not _is_narrow_or_recurrent(case.record)
    return Finding(
        code="non-finite",
        severity="error",
        site=None,
        sites=(),
        source=None,
        first_step=since,
        last_step=last,
        cause=f"the loss was sound up to step {since}, and lost at once: most likely the batch holds nan or infinity"
        if bad_data
        else "the loss itself overflows, or the network did so after its last sampled step",
        message=(
            f"The loss is nan or infinite since step {since}; it should be a finite number. "
            "Look for nan or infinity in the data, for a logarithm or a division of zero in the loss, and for a "
            "learning rate that is too large."
        ),
        evidence={"loss_nonfinite_since": float(since)},
        remedies=BAD_DATA_REMEDIES if bad_data else ("optimizer=rate:0.1", "clipping=1.0", "optimizer=adam"),
        confidence=float((last - since + 2) / (last - since + 3)),
    )


NON_FINITE = Rule(
    code="non-finite",
    examine=examine_nonfinite,
    thresholds=(MOSTLY,),
    meaning=("Somewhere a value became nan or infinite, and whatever is computed from it is lost."),
    measured=(
        "The share of non-finite values in each site's input, output and gradient and in each parameter's "
        "gradient; the first place in the order of computation that had one is named. A loss that ends in nan "
        "counts, too."
    ),
    helps=(
        "Look at the first place: a logarithm or division of zero, a learning rate that is too large, half "
        "precision that overflows, or bad data."
    ),
)
