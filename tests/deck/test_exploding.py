import math

import pytest

from desat.deck.slides.exploding import SLIDE


def test_a_tower_of_cubes_multiplies_the_gradient_as_the_chain_rule_says(fast_page) -> None:
    tower = fast_page(SLIDE).statements[0]
    assert tower.holds
    # The derivative of x^(3^6) at 1.1, in decibels.
    power = 3.0**6
    assert tower.values["total_db"] == pytest.approx(
        20.0 * (math.log10(power) + (power - 1.0) * math.log10(1.1)), abs=0.01
    )
    assert 0.0 < tower.values["largest_difference_db"] < 0.01
    assert math.isinf(tower.values["seventh"])


def test_the_first_gradient_grows_as_the_weights_variance_says(fast_page) -> None:
    depth = fast_page(SLIDE).statements[1]
    assert depth.holds
    # Each of 7 square layers by 1.5; the last has 10 outputs for 64 inputs, and there is a ReLU more than such layers.
    by_hand = 20.0 * (8.0 * math.log10(1.5) + 0.5 * math.log10(10.0 / 64.0))
    assert depth.values["expected_db"] == pytest.approx(by_hand, abs=1e-9)
    assert depth.values["first_db"] == pytest.approx(by_hand, abs=4.0)
    assert depth.values["last_db"] > 100.0


def test_loss_and_gradient_overflow_and_the_record_has_the_norm_that_was_computed_beside(fast_page) -> None:
    overflow = fast_page(SLIDE).statements[2]
    assert overflow.holds
    assert 2 <= overflow.values["overflow_step"] <= 6
    assert overflow.values["last_norm"] > 1e6 * overflow.values["first_norm"] > 1e6
    assert overflow.values["largest_difference"] < 1e-5


def test_desat_finds_it(fast_page) -> None:
    found = fast_page(SLIDE).statements[3]
    assert found.holds
    assert found.sentence.startswith("`desat diagnose` says `exploding-gradient`")


def test_clipping_scales_to_its_limit_and_weights_of_the_right_size_learn_better(fast_page) -> None:
    cured = fast_page(SLIDE).statements[4]
    assert cured.holds
    assert cured.values["largest_norm_after_clipping"] == pytest.approx(1.0, rel=1e-4)
    assert cured.values["largest_clipped_norm"] > 10.0 * cured.values["largest_redrawn_norm"]
    assert cured.values["redrawn_accuracy"] > 0.7
    assert cured.values["redrawn_accuracy"] > cured.values["clipped_accuracy"] > 0.4


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["cubes", "norms", "layers"]
    assert "11, 15, 24, 54, 144, 412" in page.figures[0].alt
    assert f"{page.statements[2].values['first_norm']:.0e}" in page.figures[1].alt
