"""Health: one number from 0 to 1 for a layer and for a run, derived from the findings alone.

Each finding multiplies the health of its sites, and of the run, by 1 - weight x confidence. So a run without a finding
has a health of 1, a certain error leaves a tenth, and no number of notes makes a run look as sick as one error does.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from desat.diagnose.finding import Diagnosis, Finding, Severity

WEIGHTS: Mapping[Severity, float] = MappingProxyType({"error": 0.9, "warning": 0.4, "note": 0.05})
"""The share of its health that a certain finding of each severity takes."""


def health(diagnosis: Diagnosis) -> float:
    """Of the run, 0 to 1."""
    return _left(diagnosis.findings)


def health_of_layers(diagnosis: Diagnosis, names: Iterable[str]) -> dict[str, float]:
    """Of each layer by its module path, 0 to 1; a finding at a parameter counts for the module that owns it."""
    layers = {}
    for name in names:
        here = [
            finding
            for finding in diagnosis.findings
            if any(site == name or site.startswith(f"{name}.") for site in finding.sites)
        ]
        layers[name] = _left(here)
    return layers


def _left(findings: Iterable[Finding]) -> float:
    left = 1.0
    for finding in findings:
        left *= 1.0 - WEIGHTS[finding.severity] * finding.confidence
    return left
