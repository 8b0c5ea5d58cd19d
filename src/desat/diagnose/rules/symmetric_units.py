"""symmetric-units: the units of a layer are copies of each other, and stay so: they all get the same gradient."""

from dataclasses import dataclass

import numpy as np

from desat.diagnose.episode import Episode, find_episode
from desat.diagnose.finding import Finding, Severity
from desat.diagnose.layer_updates import BORN_RATIO, BORN_SMALL
from desat.diagnose.link_budget import share_of
from desat.diagnose.reading_series import typical
from desat.diagnose.rule import Case, Rule
from desat.diagnose.scale import measure_scale
from desat.diagnose.threshold import Threshold
from desat.record.rows import Site

ALIKE_SHARE = Threshold(
    "alike share",
    0.9,
    "share of a layer's units",
    "units that equal another unit of their layer, above which the layer is symmetric",
    "desat: units that are drawn at random have no double, those of a constant layer all have "
    "(Goodfellow, Bengio and Courville 2016, section 8.4: initialization must break symmetry)",
)
UNIT_SPREAD = Threshold(
    "unit spread",
    0.5,
    "rms(weights - mean over units) / rms(weights)",
    "spread of a recurrent layer's weights over its units, below which they are nearly copies of one another",
    "desat: half of what units that are drawn have; of 24 healthy recurrent networks none came below 0.89",
)
LASTING = Threshold(
    "lasting symmetry",
    3,
    "sampled steps",
    "sampled steps from the first on over which symmetry must last",
    "desat: layers that start at zero on purpose (a last layer, the last one of a residual branch: Zhang, Dauphin and "
    "Ma 2019, Fixup) have left it after the first or second step",
)


@dataclass(frozen=True)
class _Symmetry:
    """A symmetric layer: by the share of its units that are alike, or since its weights are all zero.

    spread: of a recurrent layer whose units are nearly alike, see `unit_spread` in the record; None of the others.
    """

    site: Site
    share: float
    zero: bool
    episode: Episode
    spread: float | None = None

    @property
    def margin(self) -> float:
        if self.spread is not None:
            return 2.0 * (1.0 - self.spread / UNIT_SPREAD.value)  # no doubt at half of it
        return (self.share - ALIKE_SHARE.value) / (1.0 - ALIKE_SHARE.value)


def examine_symmetry(case: Case) -> list[Finding]:
    """One finding for all layers whose units have been copies of each other up to the end of the record."""
    layers = [site for site in case.record.sites("module") if share_of(site) == "weight"]
    found = [*_alike(case, layers), *_all_zero(case, layers), *_nearly_alike(case, layers)]
    affected = sorted((one for one in found if one.episode.ongoing), key=lambda one: one.site.position)
    if not affected:
        return []
    candidates = [one for one in affected if one.zero] or [one for one in affected if one.spread is None] or affected
    worst = max(candidates, key=lambda one: one.episode.held)
    born_zero = worst.zero or (worst.episode.from_start and _was_zero(case, worst.site))
    scale = measure_scale(case.record, worst.site, worst.episode.first_step)
    what = "zero" if born_zero else "constant"
    steps = f"{worst.episode.since}" if worst.episode.from_start else f"since step {worst.episode.first_step}"
    return [
        Finding(
            code="symmetric-units",
            severity=_severity(case, worst),
            site=worst.site.name,
            sites=tuple(dict.fromkeys(one.site.name for one in affected)),
            source=worst.site.source,
            first_step=min(one.episode.first_step for one in affected),
            last_step=max(one.episode.last_step for one in affected),
            cause=_cause(worst, born_zero, scale is not None and scale.incoming == 0.0),
            message=f"{_told(worst, steps)} Draw its weights at random, and not {what}.",
            evidence=_evidence(worst) | {"layers": float(len(affected)), "zero": float(born_zero)},
            remedies=("initialization=torch", "initialization=he"),
            confidence=worst.episode.confidence(worst.margin),
        )
    ]


def _told(worst: _Symmetry, steps: str) -> str:
    if worst.spread is not None:
        return (
            f"The weights of {worst.site.name} ({worst.site.operation}) differ from unit to unit by {worst.spread:.1%} "
            f"of their size, {steps}; in a sound layer it is about 100%. Units that are nearly alike get nearly the "
            "same gradient, so the layer is worth a few units."
        )
    return (
        f"{worst.share:.0%} of the units of {worst.site.name} ({worst.site.operation}) are copies of one another, "
        f"{steps}; in a sound layer none are. Units that are alike get the same gradient and stay alike, so the layer "
        "is worth one unit."
    )


def _evidence(worst: _Symmetry) -> dict[str, float]:
    return {"duplicate_units": worst.share} if worst.spread is None else {"unit_spread": worst.spread}


def _alike(case: Case, layers: list[Site]) -> list[_Symmetry]:
    found = []
    for site in layers:
        series = case.record.readings(site).get("duplicate_units")
        if series is None:
            continue
        episode = find_episode(series["step"], series["value"] >= ALIKE_SHARE.value)
        if episode is not None:
            during = (series["step"] >= episode.first_step) & (series["step"] <= episode.last_step)
            found.append(_Symmetry(site, float(np.median(series["value"][during])), False, episode))
    return found


def _nearly_alike(case: Case, layers: list[Site]) -> list[_Symmetry]:
    """Recurrent layers whose units differ by little in their weights: what they hand on tells them apart too soon."""
    found = []
    for state in case.record.sites("recurrent"):
        series = case.record.readings(state).get("unit_spread")
        site = next((one for one in layers if f"{state.name}.".startswith(f"{one.name}.")), None)
        if series is None or site is None:
            continue
        episode = find_episode(series["step"], series["value"] <= UNIT_SPREAD.value)
        if episode is not None and episode.from_start:
            spread = typical(series["step"], series["value"], episode) or 0.0
            found.append(_Symmetry(site, 1.0, False, episode, spread))
    return found


def _all_zero(case: Case, layers: list[Site]) -> list[_Symmetry]:
    """Layers all of whose weights are zero, biases aside, and get no gradient that would change it."""
    size, update = case.record.grid("parameter", "rms"), case.record.grid("parameter", "update_rms")
    by_name = {site.name: site for site in layers}
    weights: dict[str, list[int]] = {}
    for index, site in enumerate(size.sites):
        owner, _, name = site.name.rpartition(".")
        if owner in by_name and not name.startswith("bias"):
            weights.setdefault(owner, []).append(index)
    found = []
    for owner, rows in weights.items():
        known = np.isfinite(size.values[rows]).all(axis=0)
        zero = (size.values[rows] == 0.0).all(axis=0) & (np.nan_to_num(update.values[rows]) == 0.0).all(axis=0)
        episode = find_episode(size.steps[known], zero[known])
        if episode is not None:
            found.append(_Symmetry(by_name[owner], 1.0, True, episode))
    return found


def _severity(case: Case, symmetry: _Symmetry) -> Severity:
    severity = case.severity(symmetry.episode, symmetry.margin)
    return "warning" if severity == "error" and symmetry.episode.held < LASTING.value else severity


def _was_zero(case: Case, layer: Site) -> bool:
    """Whether the first step, if it was sampled, made all weights of a layer from nothing, biases aside."""
    found = []
    for site in case.record.sites("parameter"):
        owner, _, name = site.name.rpartition(".")
        if owner == layer.name and not name.startswith("bias"):
            series = case.record.parameter(site)
            at = np.flatnonzero(series["step"] == 0)
            if not len(at) or not np.isfinite(series["rms"][at[0]]):
                return False
            size, update = series["rms"][at[0]], series["update_rms"][at[0]]
            found.append(bool(BORN_RATIO * size <= update and size < BORN_SMALL))
    return bool(found) and all(found)


def _cause(symmetry: _Symmetry, born_zero: bool, silent: bool) -> str:
    if symmetry.zero:
        return "the weights are all zero, and no gradient changes them"
    if born_zero:
        return "the weights were all zero at first, so nothing tells the units apart"
    if silent:
        return "nothing comes into the layer, so that its units are told apart by their biases alone"
    if symmetry.episode.from_start:
        return "the weights were set to one constant, so nothing tells the units apart"
    return f"the units became alike by step {symmetry.episode.first_step}: the weights have shrunk or collapsed"


SYMMETRIC_UNITS = Rule(
    code="symmetric-units",
    examine=examine_symmetry,
    thresholds=(ALIKE_SHARE, UNIT_SPREAD, LASTING),
    meaning="The units of a layer are copies of each other and stay so, so that the layer is worth a single unit.",
    measured=(
        "The share of a layer's units whose outputs equal those of another unit to 0.1 %, over a sample of 64 samples "
        "and 64 units; whether a layer's weights are all zero and stay so; and, of recurrent layers, how much "
        "the weights differ from unit to unit beside their size."
    ),
    helps="Weights that are drawn at random (initialization); constants for biases and scales only.",
)
