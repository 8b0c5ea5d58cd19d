import importlib.util
import os
from functools import partial

import pytest
import torch

from desat.deck.build import Outcome, build_page
from desat.deck.slide import MissingNeedError, Page, Settings, Slide
from desat.deck.slides.keras_digits import SLIDE, VARIABLES
from desat.deck.workers import made_side_by_side

with_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")


def state() -> tuple[object, ...]:
    return (
        {name: os.environ.get(name) for name in VARIABLES},
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist(),
    )  # fmt: skip


def made(slide: Slide, settings: Settings) -> tuple[Page, bool]:
    """The page, and whether making it left torch and the environment as they were."""
    os.environ.pop("KERAS_BACKEND", None)
    before = state()
    return build_page(slide, settings), state() == before


@pytest.fixture(scope="module")
def made_apart() -> tuple[Page, bool]:
    """In a process of its own: where any torch optimizer lives, as after other tests, a step is told by its steps."""
    silent = lambda *told: None  # noqa: E731
    (found,) = made_side_by_side(
        (SLIDE,), Settings(fast=True), 1, made, silent, silent, partial(Outcome, state="failed")
    )
    assert isinstance(found, tuple), "the process has died"
    return found


@pytest.fixture(scope="module")
def page(made_apart: tuple[Page, bool]) -> Page:
    return made_apart[0]


def test_without_keras_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingNeedError, match=r"needs keras: pip install 'desat\[deck\]'"):
        build_page(SLIDE, Settings(fast=True))


@with_keras
def test_it_leaves_torch_and_the_environment_as_they_were(made_apart: tuple[Page, bool]) -> None:
    assert made_apart[1]


@with_keras
def test_it_learns_to_read(page: Page) -> None:
    reads = page.statements[0]
    assert reads.holds
    assert reads.values["accuracy"] > 0.8


@with_keras
def test_desat_sees_each_step_and_the_loss_that_keras_reports(page: Page) -> None:
    seen = page.statements[1]
    assert seen.holds
    assert seen.values["steps"] == seen.values["expected_steps"] == 43 * 3  # 1348 of 1797 digits in batches of 32
    assert seen.values["apart"] < 0.02


@with_keras
def test_it_is_sound_with_a_note_on_its_loss(page: Page) -> None:
    judged = page.statements[2]
    assert judged.holds
    assert judged.values == {"healthy": 1.0, "noted": 1.0}


@with_keras
def test_the_pictures_tell_the_history(page: Page) -> None:
    assert [figure.name for figure in page.figures] == ["loss", "accuracy"]
    assert "3 epochs" in page.figures[0].alt
