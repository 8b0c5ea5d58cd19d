"""Building: slides one after another, from the cache where they are there already, each on its own."""

import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from desat.deck import cache
from desat.deck.slide import MissingNeedError, Page, Settings, Slide
from desat.deck.workers import made_side_by_side

State = Literal["built", "cached", "missing", "failed", "left out"]
"""missing: something that the slide needs is not here; left out: not asked for, or not reached."""

NOT_ASKED = "not asked for"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """What became of a slide. page: None where there is none, and `reason` says why in one line."""

    slide: Slide
    state: State
    page: Page | None = None
    reason: str = ""


@dataclass(frozen=True)
class Deck:
    """All slides in order, with what became of them."""

    outcomes: tuple[Outcome, ...]
    settings: Settings
    interrupted: bool = False


class Watcher(Protocol):
    """Is told how the building goes on."""

    def begin(self, slide: Slide) -> None: ...
    def tell(self, slide: Slide, what: str, share: float) -> None: ...
    def end(self, outcome: Outcome) -> None: ...


def build_deck(
    slides: Sequence[Slide],
    settings: Settings,
    folder: Path,
    watcher: Watcher,
    *,
    wanted: Collection[int] | None = None,
    force: bool = False,
    jobs: int = 1,
) -> Deck:
    """Make the slides whose numbers are `wanted` (None: all), from the cache in `folder` unless `force`.

    The others are taken from the cache where they are there. A slide that fails is left out with the reason. Ctrl-C
    ends the building; what is done by then is in the cache and in the result. jobs: slides at a time, each in a process
    of its own; one is made in this process.
    """
    asked = [slide for slide in slides if wanted is None or slide.number in wanted]
    known = {slide.number: _known(slide, settings, folder) for slide in slides if slide not in asked or not force}
    outcomes = {number: outcome for number, outcome in known.items() if outcome is not None}
    missing = [slide for slide in asked if slide.number not in outcomes]
    interrupted = False
    try:
        for slide in asked:
            if slide.number in outcomes:
                watcher.begin(slide)
                watcher.end(outcomes[slide.number])
        for outcome in _made(missing, settings, watcher, jobs):
            if outcome.page is not None:
                cache.store(cache.entry_of(outcome.slide, settings, folder), outcome.page)
            outcomes[outcome.slide.number] = outcome
            watcher.end(outcome)
    except KeyboardInterrupt:
        interrupted = True
    left = {slide.number: Outcome(slide, "left out", reason=NOT_ASKED) for slide in slides}
    left |= {slide.number: Outcome(slide, "left out", reason=INTERRUPTED) for slide in missing}
    return Deck(tuple(outcomes.get(slide.number, left[slide.number]) for slide in slides), settings, interrupted)


def _made(slides: Sequence[Slide], settings: Settings, watcher: Watcher, jobs: int) -> Iterator[Outcome]:
    if min(jobs, len(slides)) > 1:
        longest_first = sorted(slides, key=lambda slide: -slide.length)
        yield from made_side_by_side(longest_first, settings, jobs, make, watcher.begin, watcher.tell, _lost)
        return
    for slide in slides:
        watcher.begin(slide)
        yield make(slide, replace(settings, progress=partial(watcher.tell, slide)))


def _lost(slide: Slide) -> Outcome:
    return Outcome(slide, "failed", reason="the process that made it has died")


def build_page(slide: Slide, settings: Settings) -> Page:
    """Make one slide: seeded, on one thread, with the state of random numbers and threads as it was afterwards."""
    with _seeded(settings.seed):
        return slide.build(settings)


def make(slide: Slide, settings: Settings) -> Outcome:
    """Make one slide; whatever goes wrong is in the outcome."""
    try:
        return Outcome(slide, "built", build_page(slide, settings))
    except MissingNeedError as need:
        return Outcome(slide, "missing", reason=str(need))
    except Exception as fault:  # one slide's fault does not take the others with it
        return Outcome(slide, "failed", reason=f"{type(fault).__name__}: {' '.join(str(fault).split())}")


def _known(slide: Slide, settings: Settings, folder: Path) -> Outcome | None:
    page = cache.load(cache.entry_of(slide, settings, folder))
    return None if page is None else Outcome(slide, "cached", page)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Small networks are slower on several threads, and their sums would depend on how many there are."""
    threads = torch.get_num_threads()
    before, numpy_before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(before)
        np.random.set_state(numpy_before)
