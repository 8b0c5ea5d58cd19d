"""Remedies: parsed from `family=value`, applied in place to a live model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from desat.cure.family import Change, Family
from desat.errors import DesatError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Remedy:
    """One change: a family and its value, such as activation=relu."""

    family: str
    value: str

    def __str__(self) -> str:
        return f"{self.family}={self.value}"


def parse(text: str) -> Remedy:
    """A remedy from `family=value`. Raises DesatError, saying what there is, for one that does not exist."""
    name, equals, value = text.partition("=")
    families = {family.name: family for family in _families()}
    if not equals or name not in families:
        known = ", ".join(f"{family.name}={{{'|'.join(family.values)}}}" for family in families.values())
        raise DesatError(f"no remedy {text!r}: expected FAMILY=VALUE with one of {known}")
    if value not in families[name].values:
        raise DesatError(f"no {name} {value!r}: expected one of {', '.join(families[name].values)}")
    return Remedy(name, value)


def parse_all(texts: Sequence[str]) -> list[Remedy]:
    """Several remedies. Raises DesatError for one that does not exist, and for two of one family."""
    remedies = [parse(text) for text in texts]
    families = [remedy.family for remedy in remedies]
    for remedy in remedies:
        if families.count(remedy.family) > 1:
            asked = ", ".join(str(other) for other in remedies if other.family == remedy.family)
            raise DesatError(f"one {remedy.family} at a time: {asked} were asked for")
    return remedies


def apply(model: "nn.Module", remedies: Sequence[Remedy]) -> tuple[Change, ...]:
    """Apply remedies to a live model, in place, and report every change and every refusal.

    The order is that of the families, whatever order they are asked for in. Parameters stay the objects they are, so an
    optimizer made before keeps training them; torch's global random state is not touched.
    """
    wanted = {(remedy.family, remedy.value) for remedy in remedies}
    plain = getattr(model, "_orig_mod", model)
    changes: list[Change] = []
    for family in _families():
        for value in family.values:
            if (family.name, value) in wanted:
                changes += family.apply(plain, value)
    return tuple(changes)


def _families() -> tuple[Family, ...]:
    from desat.cure.remedies import FAMILIES  # torch is imported with them, not for parsing alone

    return FAMILIES
