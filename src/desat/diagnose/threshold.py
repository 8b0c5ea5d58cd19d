"""A number that a rule goes by, with where it comes from; the docs list these."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """A limit: its default value, its unit, what it limits, and its source (paper and section, or how it was found)."""

    name: str
    value: float
    unit: str
    meaning: str
    source: str
