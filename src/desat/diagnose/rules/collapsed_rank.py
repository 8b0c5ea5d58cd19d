"""collapsed-rank: deep in the network all samples look alike, or a bottleneck is too narrow for what they differ in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.link_budget import share_of
from desat.diagnose.rule import Case, Rule
from desat.diagnose.scale import BIAS_POWER, LARGE_BIAS, Scale, measure_scale
from desat.diagnose.threshold import Threshold
from desat.record.rows import Site

COLLAPSED = Threshold(
    "collapsed rank",
    1.5,
    "directions",
    "effective rank of a layer's output, below which all samples lie along one direction",
    "desat: in 42 healthy networks of the proving ground no hidden layer began or ended below 2.0, zeros aside; "
    "Daneshmand et al. 2020, section 2, call a rank of one collapsed",
)
LOST_DIRECTIONS = Threshold(
    "lost directions",
    2.0,
    "ratio",
    "effective rank that a layer before had, over that of the collapsed one, from which on it was lost in between",
    "desat: below it the input has no more directions itself",
)
FALL = Threshold(
    "fall of the rank",
    3.0,
    "ratio",
    "effective rank of what a layer takes in over that of what it puts out, above which its input was not that",
    "desat: where features were copies it was 5 to 13 in the proving ground",
)
NARROW = Threshold(
    "narrow layer",
    3,
    "units",
    "width of a hidden layer up to which it is a bottleneck for a network that does not learn",
    "desat: what has more directions than that before it loses most of them",
)
LASTING_COLLAPSE = Threshold(
    "lasting collapse",
    2,
    "samples of the rank",
    "samples over which a layer must be collapsed",
    "desat: the rank of one batch is a matter of chance; the next is taken some sampled steps later",
)
MOST = 8.0
"""Directions before a bottleneck over its width, beyond which most of them are lost without a doubt."""
COPIES = 10.0
"""Fall of the rank beyond which features that were copied are the cause without a doubt."""
SMALL_POWER = 0.25
"""Part of an output's mean square that is the bias's, below which the bias does not make the samples alike."""
DISTANCES = ("MseLoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
"""Losses of regressions and autoencoders, as autograd calls them."""
SHRUNK = 0.3
"""A weight this small, of what it was drawn as, passes a tenth of the power."""


@dataclass(frozen=True)
class _Collapse:
    """A layer's collapse. rank: median over the episode; before: the largest rank of a layer before, likewise.

    width: units of a bottleneck, which is narrow by its make; None of a layer that could have more directions.
    """

    site: Site
    rank: float
    before: float
    width: int | None
    episode: Episode

    @property
    def margin(self) -> float:
        if self.width is not None:
            return float(
                np.log(self.before / self.width / LOST_DIRECTIONS.value) / np.log(MOST / LOST_DIRECTIONS.value)
            )
        return (COLLAPSED.value - self.rank) / (COLLAPSED.value - 1.0)


def examine_rank(case: Case) -> list[Finding]:
    """One finding for the network: the bottleneck they lie behind, else layers that have collapsed."""
    steps, sites, ranks = _ranks(case)
    found = [one for row in range(len(sites)) if (one := _collapse(case, steps, sites, ranks, row)) is not None]
    bottlenecks = _bottlenecks(case, steps, sites, ranks)
    if found:  # what collapses behind a bottleneck does so by it
        bottlenecks = [one for one in bottlenecks if one.site.position < found[0].site.position]
    found = bottlenecks or found
    if not found:
        return []
    worst = max(found, key=lambda one: (one.episode.ongoing, one.margin))
    first = found[0]
    just_before = _rank_just_before(steps, sites, ranks, first)
    margin = max(worst.margin, _margin_of_copies(case, first, just_before))
    evidence = {"effective_rank": worst.rank, "rank_before": worst.before, "layers": float(len(found))}
    if just_before is not None:
        evidence["rank_just_before"] = just_before
    if worst.width is not None:
        evidence["width"] = float(worst.width)
    return [
        Finding(
            code="collapsed-rank",
            severity=_severity(case, worst, margin),
            site=first.site.name if worst.width is None else worst.site.name,
            sites=tuple(one.site.name for one in found),
            source=first.site.source,
            first_step=min(one.episode.first_step for one in found),
            last_step=max(one.episode.last_step for one in found),
            cause=_cause(case, worst, first, just_before),
            message=_message(worst, first),
            evidence=evidence,
            remedies=("normalization=batch", "initialization=he") if worst.width is None else (),
            confidence=worst.episode.confidence(margin),
        )
    ]


def _ranks(case: Case) -> tuple[NDArray[np.int64], list[Site], NDArray[np.float64]]:
    """Steps, sites in order of execution, and the effective rank of their outputs, shape (sites, steps)."""
    series = []
    for site in case.record.sites():
        if site.kind in ("module", "nonlinearity"):
            found = case.record.readings(site).get("effective_rank")
            if found is not None:
                series.append((site, found))
    steps = np.unique(np.concatenate([found["step"] for _, found in series])) if series else np.array([])
    ranks = np.full((len(series), len(steps)), np.nan)
    for row, (_, found) in enumerate(series):
        ranks[row, np.searchsorted(steps, found["step"])] = found["value"]
    return steps.astype(np.int64), [site for site, _ in series], ranks


def _collapse(
    case: Case, steps: NDArray[np.int64], sites: list[Site], ranks: NDArray[np.float64], row: int
) -> _Collapse | None:
    """Of a hidden layer; of the last one only if it was born so: a network that guesses says one thing of all."""
    if not row:
        return None
    before = np.where(np.isfinite(ranks[:row]), ranks[:row], 0.0).max(axis=0)
    with np.errstate(invalid="ignore"):
        # A rank of zero is that of an output of zeros, which is another disease.
        held = (ranks[row] > 0.0) & (ranks[row] <= COLLAPSED.value) & (before >= LOST_DIRECTIONS.value * ranks[row])
    known = np.isfinite(ranks[row])
    episode = find_episode(steps[known], held[known])
    if episode is None:
        return None
    is_last = sites[row].position >= _last_position(case)
    if is_last and not (episode.from_start and episode.ongoing):
        return None
    during = held & (steps >= episode.first_step) & (steps <= episode.last_step)
    return _Collapse(sites[row], float(np.median(ranks[row, during])), float(np.median(before[during])), None, episode)


def _bottlenecks(
    case: Case, steps: NDArray[np.int64], sites: list[Site], ranks: NDArray[np.float64]
) -> list[_Collapse]:
    """Hidden layers of very few units behind one with many directions. Their width is that of their bias."""
    bias = case.record.grid("parameter", "elements")
    widths = {
        site.name.rpartition(".")[0]: int(np.nanmax(values))
        for site, values in zip(bias.sites, bias.values, strict=True)
        if site.name.endswith(".bias")
    }
    last, found = _last_position(case), []
    for site in case.record.sites("module"):
        width = widths.get(site.name)
        if width is None or width > NARROW.value or site.position >= last or share_of(site) != "weight":
            continue
        earlier = [row for row, other in enumerate(sites) if other.position < site.position]
        before = float(np.nanmedian(ranks[earlier])) if earlier and np.isfinite(ranks[earlier]).any() else 0.0
        if before >= LOST_DIRECTIONS.value * width:
            episode = Episode(int(steps[0]), int(steps[-1]), len(steps), len(steps), True, True, None)
            found.append(_Collapse(site, float(width), before, width, episode))
    return found


def _last_position(case: Case) -> int:
    """The place of the last layer with weights."""
    return max((site.position for site in case.record.sites("module") if share_of(site) == "weight"), default=-1)


def _severity(case: Case, worst: _Collapse, margin: float) -> Severity:
    severity = case.severity(worst.episode, margin)
    if severity == "error" and worst.width is not None and not case.learning.harm and _is_regression(case):
        # A narrow code is customary there (Hinton and Salakhutdinov 2006): it must cost half of what is to be told.
        severity = "error" if case.has_learned_little else "warning"
    return "warning" if severity == "error" and worst.episode.held < LASTING_COLLAPSE.value else severity


def _is_regression(case: Case) -> bool:
    """Whether the loss is a distance, as an autoencoder's is."""
    return any(site.operation.split(" <- ")[0] in DISTANCES for site in case.record.sites("loss"))


def _rank_just_before(
    steps: NDArray[np.int64], sites: list[Site], ranks: NDArray[np.float64], first: _Collapse
) -> float | None:
    """The rank of what runs last before the first collapsed layer, at the first sample of the collapse."""
    place = sites.index(first.site) if first.site in sites else 0
    at = np.flatnonzero(steps == first.episode.first_step)
    rank = float(ranks[place - 1, at[0]]) if place and len(at) else float("nan")
    return rank if np.isfinite(rank) else None


def _margin_of_copies(case: Case, first: _Collapse, just_before: float | None) -> float:
    """How far features that are copies are beyond the threshold of a fall; 0 where they are none."""
    if just_before is None or not first.episode.from_start or not _are_copies(case, first, just_before):
        return 0.0
    return float(np.log(just_before / first.rank / FALL.value) / np.log(COPIES / FALL.value))


def _are_copies(case: Case, first: _Collapse, just_before: float) -> bool:
    """Whether a layer takes in all that the one before puts out, and gets far fewer directions of it."""
    scale = measure_scale(case.record, first.site, first.episode.first_step)
    if scale is None or first.width is not None or scale.layer != first.site or scale.blame == "bias":
        return False
    falls = just_before >= FALL.value * first.rank
    return falls and _takes_all(case, scale, first) and not scale.input_is_off_centre and scale.bias_power < SMALL_POWER


def _since_birth(case: Case, first: _Collapse, just_before: float | None) -> str | None:
    """What makes the first collapsed layer collapse; None where nothing stands out."""
    scale = measure_scale(case.record, first.site, first.episode.first_step)
    if scale is None:
        return None
    if scale.blame == "bias":
        return (
            f"the bias of {scale.layer.name} outweighs what the samples differ in since initialization, its rms is "
            f"{scale.bias:.2g}, near 0 is usual"
        )
    if just_before is not None and _are_copies(case, first, just_before):
        return (
            f"the features that go into {first.site.name} are copies of one another: {scale.layer.name} gets one "
            f"direction, where the layer before puts out {just_before:.0f}; look at what is done in between"
        )
    return None


def _takes_all(case: Case, scale: Scale, first: _Collapse) -> bool:
    """Whether a layer takes in as many numbers as the layer before puts out, so that none were left out or pooled."""
    step, before = first.episode.first_step, scale.origin
    if before is None or scale.units is None or scale.fan_in is None:
        return False
    numbers = []
    for site in (before, first.site):
        series = case.record.tensor(site, "output")
        numbers.append(series["elements"][series["step"] == step])
    return all(len(one) for one in numbers) and numbers[0][0] == numbers[1][0] / scale.units * scale.fan_in


def _cause(case: Case, worst: _Collapse, first: _Collapse, just_before: float | None) -> str:
    if worst.width is not None:
        return f"a layer of {worst.width} unit{'s' if worst.width > 1 else ''} is narrower than what it has to pass on"
    if worst.episode.from_start:
        told = _since_birth(case, first, just_before) if first.episode.from_start else None
        return told or (
            "from initialization on each layer makes the samples more alike: biases or means outweigh what they differ "
            "in, and nothing normalizes it"
        )
    lost = f"the layers have lost what samples differ in since step {worst.episode.first_step}"
    shrunk = _largest_shrinkage(case)
    if shrunk <= SHRUNK:
        return f"{lost}: weights have shrunk to {shrunk:.0%} of what they were, look at the weight decay"
    return f"{lost}: updates have made what is the same in all samples outweigh what they differ in"


def _largest_shrinkage(case: Case) -> float:
    """Of all weights the smallest rms at the end over that at the start."""
    size = case.record.grid("parameter", "rms")
    ratios = [1.0]
    for site, values in zip(size.sites, size.values, strict=True):
        known = values[np.isfinite(values) & (values > 0.0)]
        if len(known) and "bias" not in site.name.rpartition(".")[2]:
            ratios.append(float(known[-1] / known[0]))
    return min(ratios)


def _message(worst: _Collapse, first: _Collapse) -> str:
    if worst.width is not None:
        return (
            f"{worst.site.name} has {worst.width} unit{'s' if worst.width > 1 else ''}, and the layers before it tell "
            f"samples apart in about {worst.before:.0f} directions: the rest is lost there. Make it wider, unless it "
            "is meant to be so narrow."
        )
    return (
        f"From {first.site.name} on the outputs of all samples lie along {_directions(worst.rank)}, "
        f"{worst.episode.since}, where a layer before had {worst.before:.0f}: the layers behind it can hardly tell "
        f"samples apart. More than {COLLAPSED.value:g} would be sound."
    )


def _directions(rank: float) -> str:
    return "one direction" if f"{rank:.2g}" == "1" else f"{rank:.2g} directions"


COLLAPSED_RANK = Rule(
    code="collapsed-rank",
    examine=examine_rank,
    thresholds=(COLLAPSED, LOST_DIRECTIONS, FALL, NARROW, LASTING_COLLAPSE, BIAS_POWER, LARGE_BIAS),
    meaning="Deeper in the network all samples look alike: their outputs lie along one direction.",
    measured=(
        "The effective rank (Roy and Vetterli 2007) of each layer's output over a sample of the batch, not centred, "
        "against the layers before it. The last layer counts only if it was collapsed from the start."
    ),
    helps="Normalization or residual connections, weights drawn for the nonlinearity, less weight decay, wider layers.",
)
