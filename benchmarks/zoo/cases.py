"""All cases of the zoo: healthy ones, and faulty ones with their twins."""

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.zoo.catalogue import FAULTS
from benchmarks.zoo.faults import Fault, Strength
from benchmarks.zoo.parts import ARCHITECTURES, DATA_SETS, SPLIT, Place, Split
from benchmarks.zoo.recipe import Recipe, changed
from benchmarks.zoo.variants import SEEDED, SEEDS, VARIANTS

PAIRS_PER_FAULT = 2
"""Pairs of architecture and data, of each split, that a fault is done to, as far as there are any that suit."""


@dataclass(frozen=True)
class Case:
    """One script to run.

    fault: None for a healthy one. strength: of the fault. sites: patterns (fnmatch) of the module paths at which it
    sits; none where it is the whole network's. begins: the optimizer step from which it is there; None where that
    depends on the run. twin: the name of the case that is the same without the fault; its own for a healthy one.
    """

    name: str
    recipe: Recipe
    variant: str
    twin: str
    split: Split
    fault: Fault | None = None
    strength: Strength | None = None
    sites: tuple[str, ...] = ()
    begins: int | None = None

    @property
    def code(self) -> str | None:
        return self.fault.code if self.fault else None

    @property
    def folder(self) -> str:
        """The folder of real data that the script needs; empty for none."""
        return DATA_SETS[self.recipe.data].folder

    def describe(self) -> dict[str, Any]:
        """The case as JSON values; README.md says what each means."""
        return {
            "name": self.name,
            "architecture": self.recipe.architecture,
            "data": self.recipe.data,
            "variant": self.variant,
            "seed": self.recipe.seed,
            "split": self.split,
            "code": self.code,
            "also": list(self.fault.also) if self.fault else [],
            "cause": self.fault.cause if self.fault else None,
            "strength": self.strength,
            "place": self.fault.place if self.fault else None,
            "sites": list(self.sites),
            "begins": self.begins,
            "starts": self.fault.starts if self.fault else None,
            "steps": self.recipe.steps,
            "twin": self.twin,
        }


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every case: first the healthy ones, then the faulty ones, fault by fault. Names and scripts are unique."""
    healthy: dict[Recipe, Case] = {}
    for case in _healthy_cases():
        healthy.setdefault(case.recipe, case)
    faulty: dict[Recipe, Case] = {}
    for case in _faulty_cases(healthy):
        faulty.setdefault(case.recipe, case)
    twins = {case.recipe for case in healthy.values()}
    return (*healthy.values(), *(case for recipe, case in faulty.items() if recipe not in twins))


def case_named(name: str) -> Case:
    """The case of this name. Raises KeyError where there is none."""
    return {case.name: case for case in all_cases()}[name]


def sample_of(cases: tuple[Case, ...], size: int) -> tuple[Case, ...]:
    """A fixed pseudo-random sample, with the twins of its faulty cases on top, in the order of all cases."""
    chosen = sorted(cases, key=lambda case: zlib.crc32(f"sample {case.name}".encode()))[:size]
    return with_twins(tuple(chosen))


def with_twins(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """The cases and the twins of those that are faulty, in the order of all cases."""
    names = {case.name for case in cases} | {case.twin for case in cases}
    return tuple(case for case in all_cases() if case.name in names)


def _healthy_cases() -> Iterator[Case]:
    for (architecture, data), split in SPLIT.items():
        for number, variant in enumerate(VARIANTS.values()):
            seeds = SEEDS if variant.name in SEEDED else (SEEDS[number % len(SEEDS)],)
            for seed in seeds:
                if recipe := variant.recipe(architecture, data, seed):
                    yield _healthy_case(recipe, variant.name, split)


def _healthy_case(recipe: Recipe, variant: str, split: Split) -> Case:
    name = f"{recipe.architecture}_{recipe.data}_{variant}_s{recipe.seed}"
    return Case(name, recipe, variant, twin=name, split=split)


def _faulty_cases(healthy: dict[Recipe, Case]) -> Iterator[Case]:
    """Where the twin is not among the healthy cases yet, it is added to them."""
    for fault in FAULTS:
        for split in ("tune", "held-out"):
            for place, (architecture, data) in enumerate(_pairs(fault, split)):
                for number, strength in enumerate(fault.strengths):
                    seed = SEEDS[(place + number) % len(SEEDS)]
                    base = VARIANTS[fault.base].recipe(architecture, data, seed)
                    assert base is not None
                    twin = healthy.setdefault(base, _healthy_case(base, fault.base, split))
                    yield _faulty_case(base, twin, fault, strength)


def _faulty_case(base: Recipe, twin: Case, fault: Fault, strength: Strength) -> Case:
    recipe = changed(base, fault.changes(strength, base))
    begins = {"birth": 0, "training": 0, "jump": recipe.jump_step, "unknown": None}[fault.starts]
    return Case(
        f"{recipe.architecture}_{recipe.data}_{fault.code}_{fault.cause}_{strength}_s{recipe.seed}",
        recipe, twin.variant, twin.name, twin.split, fault, strength,
        _sites(recipe.architecture, fault.place), begins,
    )  # fmt: skip


def _sites(architecture: str, place: Place) -> tuple[str, ...]:
    places = ARCHITECTURES[architecture].places
    if place == "body":  # everything but the output
        return tuple(dict.fromkeys(places["first"] + places["front"] + places["hidden"]))
    return places.get(place, ())


def _pairs(fault: Fault, split: str) -> list[tuple[str, str]]:
    """The pairs that a fault is done to: the suitable ones in turn, starting at one that its name picks.

    Different architectures are preferred to different data.
    """
    suitable = []
    for (architecture, data), where in SPLIT.items():
        base = VARIANTS[fault.base].recipe(architecture, data, 0) if where == split else None
        if base is not None and fault.suits(base):
            suitable.append((architecture, data))
    if not suitable:
        return []
    start = zlib.crc32(fault.key.encode()) % len(suitable)
    turned = suitable[start:] + suitable[:start]
    first = [pair for number, pair in enumerate(turned) if pair[0] not in {other[0] for other in turned[:number]}]
    rest = [pair for pair in turned if pair not in first]
    return (first + rest)[:PAIRS_PER_FAULT]
