"""The layers of a run with their health, and which of them are listed."""

from collections.abc import Sequence
from dataclasses import dataclass

from desat.diagnose.finding import Diagnosis, Severity
from desat.diagnose.health import findings_of_layers, health_of_layers, layers_of
from desat.record.reader import Record


@dataclass(frozen=True)
class Layer:
    """A layer's health, 0 to 1, and what it comes from: the codes of its findings and the gravest severity of them."""

    name: str
    health: float
    codes: tuple[str, ...]
    severity: Severity | None


def measure_layers(record: Record, diagnosis: Diagnosis) -> list[Layer]:
    """All layers of a record, in order of execution."""
    names = layers_of(record)
    healths = health_of_layers(diagnosis, names)
    return [
        Layer(name, healths[name], tuple(finding.code for finding in found), found[0].severity if found else None)
        for name, found in findings_of_layers(diagnosis, names).items()
    ]


def sickest(layers: Sequence[Layer], number: int) -> list[Layer]:
    """At most so many layers, those of the least health below 1, of equals the first; in the order of `layers`."""
    sick = sorted((layer for layer in layers if layer.health < 1.0), key=lambda layer: layer.health)
    chosen = {layer.name for layer in sick[:number]}
    return [layer for layer in layers if layer.name in chosen]
