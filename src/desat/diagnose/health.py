"""Health: one number from 0 to 1 for a layer and for a run, derived from the findings alone.

Each finding multiplies the health of its layers, and of the run, by 1 - weight x confidence. So a run without a finding
has a health of 1, a certain error leaves a tenth, and no number of notes makes a run look as sick as one error does.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from desat.diagnose.finding import Diagnosis, Finding, Severity
from desat.record.reader import Record

WEIGHTS: Mapping[Severity, float] = MappingProxyType({"error": 0.9, "warning": 0.4, "note": 0.05})
"""The share of its health that a certain finding of each severity takes."""

NO_LAYERS = ("input", "loss", "optimizer", "curvature")
"""Kinds of sites that belong to the run and to none of its layers."""


def health(diagnosis: Diagnosis) -> float:
    """Of the run, 0 to 1."""
    return _left(diagnosis.findings)


def health_of_layers(diagnosis: Diagnosis, names: Iterable[str]) -> dict[str, float]:
    """Of each layer by its module path, 0 to 1; one at a parameter or a gate counts for the layer that owns it."""
    return {name: _left(found) for name, found in findings_of_layers(diagnosis, names).items()}


def findings_of_layers(diagnosis: Diagnosis, names: Iterable[str]) -> dict[str, tuple[Finding, ...]]:
    """The findings that touch each layer, the gravest first. A site belongs to the innermost layer around it."""
    layers: dict[str, list[Finding]] = {name: [] for name in names}
    for finding in diagnosis.findings:
        for owner in {_owner(site, layers) for site in finding.sites} & layers.keys():
            layers[owner].append(finding)
    return {name: tuple(found) for name, found in layers.items()}


def layers_of(record: Record) -> tuple[str, ...]:
    """The names of a record's layers, in order of execution.

    They are its modules and nonlinearities, other measured places outside of these (attention, sums), and the modules
    that were never seen to run but have parameters.
    """
    sites = [site for site in record.sites() if site.kind not in NO_LAYERS]
    run = {site.name for site in sites if site.kind in ("module", "nonlinearity")}
    layers: dict[str, None] = {}
    for site in sites:
        if site.name in run or not _owner(site.name, run):
            layers[_module_of(site.name) if site.kind == "parameter" else site.name] = None
    return tuple(layers)


def _owner(site: str, layers: Collection[str]) -> str:
    """The layer that a site is or lies in; empty where there is none."""
    while site and site not in layers:
        site = site.rpartition(".")[0]
    return site


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _left(findings: Iterable[Finding]) -> float:
    left = 1.0
    for finding in findings:
        left *= 1.0 - WEIGHTS[finding.severity] * finding.confidence
    return left
