"""What a slide is: how it is made, and what is on it when it is made."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from desat.errors import DesatError

Progress = Callable[[str, float], None]
"""Told what is being done, in a few words, and which share of the slide is done, 0 to 1."""


class MissingNeedError(DesatError):
    """Something that a slide needs is not here; the message is one line on how to get it."""


def _silent(what: str, share: float) -> None:
    pass


@dataclass(frozen=True)
class Settings:
    """How the slides are built.

    fast: smaller networks and fewer steps, for the whole deck in under a minute. seed: of everything that is drawn at
    random. data: the folder that holds data sets of the user's. progress: see `Progress`.
    """

    fast: bool = False
    seed: int = 0
    data: Path | None = None
    progress: Progress = field(default=_silent, compare=False, repr=False)


@dataclass(frozen=True)
class Figure:
    """A picture, made by desat.deck.drawing.picture.

    name: one word, unlike those of the slide's other figures; it ends the PNG's name. alt: what is to be seen, for
    those who do not see it. caption: a line below it. svg: the text of an SVG element; png: the same picture as a file.
    """

    name: str
    alt: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Statement:
    """One thing that the slide says, and whether it is so.

    claim: what is said, in general. sentence: the same as it was measured, with the numbers in it. holds: whether the
    numbers bear the claim out. values: the numbers by name, so that a test can hold them against an oracle.
    """

    claim: str
    sentence: str
    holds: bool
    values: dict[str, float]

    def __post_init__(self) -> None:
        # NumPy's own kinds of truth and numbers cannot be kept as JSON.
        object.__setattr__(self, "holds", bool(self.holds))
        object.__setattr__(self, "values", {name: float(value) for name, value in self.values.items()})


def listed(texts: Iterable[str]) -> str:
    """Texts, such as the codes of findings, as a sentence of the page lists them; `nothing` where there are none."""
    return ", ".join(f"`{text}`" for text in texts) or "nothing"


@dataclass(frozen=True)
class Reading:
    """Where to read on: author, year, title; address: a web page, which opens only when asked for."""

    citation: str
    address: str = ""

    def __post_init__(self) -> None:
        if self.address and not self.address.startswith("https://"):
            raise ValueError(f"address of {self.citation!r}: expected https://..., got {self.address!r}")


@dataclass(frozen=True)
class Page:
    """A slide that has been made.

    words: two or three sentences; what stands between backticks is shown as code. readings: where to read on.
    """

    words: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    statements: tuple[Statement, ...] = ()
    readings: tuple[Reading, ...] = ()


@dataclass(frozen=True)
class Slide:
    """One slide.

    number, key, title: its place, its name in file names and links, and its heading. build: makes the page; it may
    raise MissingNeedError. rules: the finding codes that detect what the slide is about. remedies: what cures it, as
    `--apply` takes it. uses_data: whether the page depends on Settings.data. length: how long it takes to make, in
    slides of the usual length; of several that are made side by side the longest are begun first.
    """

    number: int
    key: str
    title: str
    build: Callable[[Settings], Page]
    rules: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    uses_data: bool = False
    length: int = 1


def require(module: str, how: str) -> None:
    """Raises MissingNeedError, with `how` to get it, where a module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingNeedError(f"needs {module}: {how}")
