from functools import cache
from pathlib import Path

import pytest
import torch

from desat.deck.build import build_page
from desat.deck.slide import Page, Settings
from desat.deck.slides.sentiment import PADDING, SLIDE, Classifier, reach_of

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "rt-polarity"
with_reviews = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reviews at {FOLDER}")


@cache
def real_page() -> Page:
    return build_page(SLIDE, Settings(fast=True, data=FOLDER))


def test_padding_has_no_vector_of_its_own() -> None:
    model = Classifier(5)
    assert torch.count_nonzero(model.embedding.weight[PADDING]) in (0, model.embedding.embedding_dim)
    assert model(torch.tensor([[PADDING, 3, 4]])).shape == (1, 2)


def test_reach_is_the_first_step_below_a_hundredth() -> None:
    assert reach_of((-60.0, -41.0, -39.0, 0.0)) == 2
    assert reach_of((-10.0, -5.0, 0.0)) == 3


def test_without_reviews_they_are_generated_and_the_page_says_so(fast_page) -> None:
    page = fast_page(SLIDE)
    assert "generated" in page.words[0]
    learned, gates, long = page.statements
    assert learned.holds
    assert max(learned.values["last_step"], learned.values["pooled"]) > 0.55
    assert gates.holds
    assert long.holds


@with_reviews
def test_real_reviews_are_learned_a_little_even_at_the_fast_size() -> None:
    learned = real_page().statements[0]
    assert "of your own" in real_page().words[0]
    assert learned.holds
    assert max(learned.values["last_step"], learned.values["pooled"]) > 0.55


@with_reviews
def test_no_gate_is_blocked() -> None:
    gates = real_page().statements[1]
    assert gates.holds
    assert 0.0 <= max(gates.values[f"{gate}_gate"] for gate in ("input", "forget", "output")) <= gates.values["most"]
    assert gates.values["most"] < 0.4


def test_attention_brings_the_gradient_to_the_first_word(fast_page) -> None:
    long = fast_page(SLIDE).statements[2]
    assert long.values["last_step_db"] < -100.0 < -20.0 < long.values["pooled_db"]
    assert long.values["reach"] == pytest.approx(long.values["by_autograd"], abs=4)
    # Far down, too, where squares of float32 are zeros: word vectors and states differ by a few decibels.
    assert long.values["first_state_db"] == pytest.approx(long.values["last_step_db"], abs=15.0)
    assert long.values["first_state_db"] < -400.0
    # A fresh LSTM's forget gates stand near one half, 6 dB a step: a hundredth, 40 dB, is left after about seven.
    assert 5 <= long.values["reach"] <= 10


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["history", "gates", "words"]
    assert f"{page.statements[2].values['last_step_db']:.0f} dB at the first word" in page.figures[2].alt
