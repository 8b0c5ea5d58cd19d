"""The catalogue of faults: at least one for every finding code, each in two or three strengths."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.zoo.parts import ARCHITECTURES, Place
from benchmarks.zoo.recipe import Recipe

Strength = Literal["mild", "moderate", "severe"]
STRENGTHS: tuple[Strength, ...] = ("mild", "moderate", "severe")


@dataclass(frozen=True)
class Fault:
    """One way to spoil a training, in several strengths.

    code: the finding that names it. also: codes that name it as well, since they are its mechanism, or its direct
    consequence by definition. cause: a key in words. base: the healthy variant that it is done to, which without it is
    the twin. levels: the changed settings of each strength. place: where it sits. starts: "birth" (there from
    initialization on), "training" (made by the first updates), "jump" (at the recipe's jump), "unknown". suits: the
    recipes it makes sense for.
    """

    code: str
    cause: str
    base: str
    levels: Mapping[Strength, Mapping[str, Any]]
    place: Place
    suits: Callable[[Recipe], bool]
    starts: Literal["birth", "training", "jump", "unknown"] = "birth"
    also: tuple[str, ...] = ()

    @property
    def strengths(self) -> list[Strength]:
        """The strengths that it comes in, the mildest first."""
        return [strength for strength in STRENGTHS if strength in self.levels]

    @property
    def key(self) -> str:
        return f"{self.code}.{self.cause}"

    def changes(self, strength: Strength, recipe: Recipe) -> dict[str, Any]:
        """The settings of a strength, with what depends on the architecture filled in."""
        changes = dict(self.levels[strength])
        facts = ARCHITECTURES[recipe.architecture]
        for key in ("trained", "frozen"):
            if key in changes:
                changes[key] = {
                    "first": (facts.first,), "front": facts.front, "hidden": facts.hidden, "output": ("output",),
                }[changes[key]]  # fmt: skip
        if "gate" in changes:
            gate = {"lstm": "input", "gru": "update"}[recipe.architecture]
            changes["gate_bias"] = (gate, changes.pop("gate") * (-1.0 if gate == "input" else 1.0))
        if "narrow" in changes:
            width, middle = changes.pop("narrow"), len(recipe.widths) // 2
            narrow = [*recipe.widths]
            narrow[middle] = width
            changes["widths"] = tuple(narrow)
        return changes


def levels(setting: str, mild: Any, moderate: Any, severe: Any = None, **always: Any) -> dict[Strength, dict[str, Any]]:
    """Three strengths of one setting (two, where the last is None), with settings that all have."""
    values = (mild, moderate, severe) if severe is not None else (mild, severe, moderate)
    chosen = dict(zip(STRENGTHS, values, strict=True))
    return {strength: {setting: value, **always} for strength, value in chosen.items() if value is not None}


def one(strength: Strength, **settings: Any) -> dict[Strength, dict[str, Any]]:
    """A fault that comes in one strength."""
    return {strength: settings}


def families(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: ARCHITECTURES[recipe.architecture].family in names


def architectures(*names: str) -> Callable[[Recipe], bool]:
    return lambda recipe: recipe.architecture in names


def both(*conditions: Callable[[Recipe], bool]) -> Callable[[Recipe], bool]:
    return lambda recipe: all(condition(recipe) for condition in conditions)


def anything(recipe: Recipe) -> bool:
    return True


def is_binary(recipe: Recipe) -> bool:
    return recipe.loss == "binary"


def is_multiclass(recipe: Recipe) -> bool:
    return recipe.loss == "cross-entropy"


def is_classifier(recipe: Recipe) -> bool:
    return not recipe.is_autoencoder


def takes_numbers(recipe: Recipe) -> bool:
    return recipe.has_float_inputs
