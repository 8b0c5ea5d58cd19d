"""Slides made side by side: the same pages as one after another, and what a fault or a death leaves."""

import os
import time
from pathlib import Path

import torch

from desat.deck.build import build_deck, build_page
from desat.deck.drawing import picture
from desat.deck.slide import MissingNeedError, Page, Settings, Slide, Statement
from tests.deck.test_build import Told


def drawn(settings: Settings) -> Page:
    settings.progress("drawing lots", 0.5)
    lot = float(torch.rand(()))
    figure = picture("lot", lambda canvas: canvas.add_subplot().plot([0.0, lot]), alt="a line")
    return Page(("Words.",), (figure,), (Statement("A lot.", f"It is {lot}.", True, {"lot": lot}),))


def lacking(settings: Settings) -> Page:
    raise MissingNeedError("needs a thing: get it")


def broken(settings: Settings) -> Page:
    raise ValueError("broken\nin two")


def deadly(settings: Settings) -> Page:
    os._exit(9)


def slow(settings: Settings) -> Page:
    time.sleep(600)
    return Page(())


SLIDES = tuple(
    Slide(number, f"slide-{number}", f"Slide {number}", build)
    for number, build in enumerate((drawn, lacking, broken, deadly, drawn, drawn), start=1)
)


def test_pages_are_the_same_and_a_fault_or_a_death_stays_alone(tmp_path: Path) -> None:
    told = Told()
    made = build_deck(SLIDES, Settings(seed=3), tmp_path, told, jobs=3)
    assert [one.state for one in made.outcomes] == ["built", "missing", "failed", "failed", "built", "built"]
    assert [one.reason for one in made.outcomes[1:4]] == [
        "needs a thing: get it",
        "ValueError: broken in two",
        "the process that made it has died",
    ]
    assert made.outcomes[0].page == build_page(SLIDES[0], Settings(seed=3))
    assert ("tell", 1, "drawing lots 0.5") in told.lines
    assert sorted(number for kind, number, _ in told.lines if kind == "end") == [1, 2, 3, 4, 5, 6]
    again = build_deck(SLIDES[4:], Settings(seed=3), tmp_path, Told(), jobs=3)
    assert [one.state for one in again.outcomes] == ["cached", "cached"]


class Impatient(Told):
    """Presses Ctrl-C when the first slide is done."""

    def end(self, outcome) -> None:
        super().end(outcome)
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_processes_and_keeps_what_is_done(tmp_path: Path) -> None:
    slides = (SLIDES[0], Slide(7, "slow", "Slow", slow), SLIDES[4])
    began = time.monotonic()
    made = build_deck(slides, Settings(), tmp_path, Impatient(), jobs=2)
    assert made.interrupted
    assert [one.state for one in made.outcomes] == ["built", "left out", "left out"]
    assert [one.reason for one in made.outcomes[1:]] == ["interrupted", "interrupted"]
    assert time.monotonic() - began < 300
    assert [one.state for one in build_deck(slides[:1], Settings(), tmp_path, Told()).outcomes] == ["cached"]
