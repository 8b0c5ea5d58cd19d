import math

import pytest

from desat.deck.slides.rectifiers import SLIDE


def test_the_classes_come_from_the_derivative(fast_page) -> None:
    classes = fast_page(SLIDE).statements[0]
    assert classes.holds
    assert classes.values["elu_low"] == pytest.approx(math.log(0.05), abs=1e-6)
    assert classes.values["relu_low"] == classes.values["leaky_relu_low"] == 0.0
    assert [classes.values[f"{key}_is_open"] for key in ("relu", "leaky_relu", "elu")] == [0.0, 1.0, 0.0]


def test_a_layer_that_was_born_off_learns_with_a_slope_and_not_without(fast_page) -> None:
    born = fast_page(SLIDE).statements[1]
    assert born.holds
    assert born.values["relu_gain"] == 0.0
    assert born.values["relu_off"] == 1.0
    assert born.values["leaky_relu_gain"] == pytest.approx(0.01, rel=0.05)
    assert born.values["elu_gain"] == pytest.approx(born.values["elu_expected_gain"], rel=0.2)
    assert born.values["relu_accuracy"] < 0.2
    assert born.values["leaky_relu_accuracy"] > 0.25
    assert born.values["elu_accuracy"] > 0.6


def test_desat_finds_dead_units_of_relu_alone(fast_page) -> None:
    found = fast_page(SLIDE).statements[2]
    assert found.holds
    assert found.values["relu_found"] == 1.0
    assert found.values["leaky_relu_found"] == 0.0
    assert "`dead-units`" in found.sentence


def test_a_large_learning_rate_kills_units_of_relu_and_makes_elu_diverge(fast_page) -> None:
    killed = fast_page(SLIDE).statements[3]
    assert killed.holds
    assert killed.values["relu_off_at_fast"] > 3.0 * killed.values["largest_off_at_slow"] > 0.0
    for key in ("relu", "leaky_relu", "elu"):
        assert killed.values[f"{key}_accuracy_at_slow"] > 0.8
        assert killed.values[f"{key}_accuracy_at_fast"] < killed.values[f"{key}_accuracy_at_slow"]
    assert "ELU diverges" in killed.sentence


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["curves", "slopes", "born", "rates"]
    assert "-3.00" in page.figures[1].alt
    assert f"{page.statements[3].values['relu_off_at_fast']:.0%} at 1." in page.figures[3].alt
