"""Remedies: parsed from `family=value`, applied in place to a live model and its optimizers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from desat.cure.family import Change, Choice, Family
from desat.errors import DesatError

if TYPE_CHECKING:
    from desat.cure.patient import Patient


@dataclass(frozen=True)
class Remedy:
    """One change: a family, a choice of it, and its number, such as activation=relu or clipping=norm:1."""

    family: str
    choice: str
    number: float | None = None

    def __str__(self) -> str:
        number = "" if self.number is None else f":{self.number:g}"
        return f"{self.family}={self.choice}{number}"


def parse(text: str) -> Remedy:
    """A remedy from `family=value` or `family=value:number`.

    Raises DesatError, saying what there is, for one that does not exist and for a number out of its range.
    """
    name, equals, value = text.partition("=")
    family = next((family for family in _families() if family.name == name), None)
    if not equals or family is None:
        known = ", ".join(f"{family.name}={{{'|'.join(_spelled(family))}}}" for family in _families())
        raise DesatError(f"no remedy {text!r}: expected FAMILY=VALUE with one of {known}")
    asked, colon, number = value.partition(":")
    if family.bare is not None and not colon and _number(value) is not None:
        asked, colon, number = family.bare, ":", value
    choice = next((choice for choice in family.choices if choice.name == asked), None)
    if choice is None:
        raise DesatError(f"no {name} {value!r}: expected one of {', '.join(_spelled(family))}")
    return Remedy(name, asked, _checked(text, choice, number if colon else None))


def _checked(text: str, choice: Choice, number: str | None) -> float | None:
    if number is None:
        if choice.number == "needed":
            raise DesatError(f"{text!r} lacks its number: expected {choice.name}:NUMBER ({choice.meaning})")
        return None
    value = _number(number)
    if choice.number == "none":
        raise DesatError(f"{text!r} takes no number: expected {choice.name}")
    if value is None or not choice.low < value < choice.high:
        high = "" if math.isinf(choice.high) else f" and below {choice.high:g}"
        raise DesatError(f"{number!r} in {text!r}: expected a number above {choice.low:g}{high}")
    return value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _spelled(family: Family) -> list[str]:
    marks = {"none": "", "optional": "[:NUMBER]", "needed": ":NUMBER"}
    return [f"{choice.name}{marks[choice.number]}" for choice in family.choices]


def parse_all(texts: Sequence[str]) -> list[Remedy]:
    """Several remedies. Raises DesatError for one that does not exist, and for two of one family."""
    remedies = [parse(text) for text in texts]
    families = [remedy.family for remedy in remedies]
    for remedy in remedies:
        if families.count(remedy.family) > 1:
            asked = ", ".join(str(other) for other in remedies if other.family == remedy.family)
            raise DesatError(f"one {remedy.family} at a time: {asked} were asked for")
    return remedies


def apply(
    patient: "Patient", remedies: Sequence[Remedy], on: Literal["model", "optimizer"] | None = None
) -> tuple[Change, ...]:
    """Apply remedies to a live model and its optimizers, in place, and report every change and every refusal.

    on: those alone that work on the model, or on the optimizers. The order is that of the families, whatever order they
    are asked for in. Parameters stay the objects they are, so an optimizer made before keeps training them; torch's
    global random state is not touched.
    """
    changes: list[Change] = []
    for family in _families():
        for remedy in remedies:
            if remedy.family == family.name and on in (None, family.on):
                choice = next(choice for choice in family.choices if choice.name == remedy.choice)
                number = choice.default if remedy.number is None else remedy.number
                changes += family.apply(patient, remedy.choice, number)
                patient.look_again()
    return tuple(changes)


def wants_optimizer(remedies: Sequence[Remedy]) -> bool:
    """Whether one of the remedies works on the optimizers."""
    on_optimizer = {family.name for family in _families() if family.on == "optimizer"}
    return any(remedy.family in on_optimizer for remedy in remedies)


def _families() -> tuple[Family, ...]:
    from desat.cure.remedies import FAMILIES  # torch is imported with them

    return FAMILIES
