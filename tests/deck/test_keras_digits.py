import importlib.util
import os

import pytest
import torch

from desat.deck.build import build_page
from desat.deck.slide import MissingNeedError, Settings
from desat.deck.slides.keras_digits import SLIDE, VARIABLES

with_keras = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")


def state() -> tuple[object, ...]:
    return (
        {name: os.environ.get(name) for name in VARIABLES},
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist(),
    )  # fmt: skip


def test_without_keras_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingNeedError, match=r"needs keras: pip install 'desat\[deck\]'"):
        build_page(SLIDE, Settings(fast=True))


@with_keras
def test_it_leaves_torch_and_the_environment_as_they_were(fast_page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    before = state()
    fast_page(SLIDE)
    assert state() == before


@with_keras
def test_it_learns_to_read(fast_page) -> None:
    reads = fast_page(SLIDE).statements[0]
    assert reads.holds
    assert reads.values["accuracy"] > 0.8


@with_keras
def test_desat_sees_each_step_and_the_loss_that_keras_reports(fast_page) -> None:
    seen = fast_page(SLIDE).statements[1]
    assert seen.holds
    assert seen.values["steps"] == seen.values["expected_steps"] == 43 * 4  # 1348 of 1797 digits in batches of 32
    assert seen.values["apart"] < 0.02


@with_keras
def test_it_is_sound_with_a_note_on_its_loss(fast_page) -> None:
    judged = fast_page(SLIDE).statements[2]
    assert judged.holds
    assert judged.values == {"healthy": 1.0, "noted": 1.0}


@with_keras
def test_the_pictures_tell_the_history(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["loss", "accuracy"]
    assert "4 epochs" in page.figures[0].alt
