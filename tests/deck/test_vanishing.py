import pytest

from desat.deck.slides.vanishing import SLIDE

QUARTER_DB = -12.0412
LAYERS = 8


def test_no_sigmoid_passes_more_than_a_quarter(fast_page) -> None:
    quarter = fast_page(SLIDE).statements[0]
    assert quarter.holds
    assert quarter.values["best"] == 0.25
    assert 0.2 < quarter.values["smallest_mean_slope"] <= quarter.values["largest_mean_slope"] <= 0.25


def test_the_nonlinearities_take_at_least_12_decibels_each(fast_page) -> None:
    lost = fast_page(SLIDE).statements[1]
    assert lost.holds
    assert lost.values["nonlinearities"] == LAYERS
    assert lost.values["bound_db"] == pytest.approx(LAYERS * QUARTER_DB, abs=0.01)
    assert lost.values["total_db"] < lost.values["nonlinearity_db"] <= LAYERS * QUARTER_DB


def test_desat_finds_it(fast_page) -> None:
    found = fast_page(SLIDE).statements[2]
    assert found.holds
    assert "`vanishing-gradient`" in found.sentence


def test_the_remedies_let_the_gradient_through_and_the_network_learn(fast_page) -> None:
    cured = fast_page(SLIDE).statements[3]
    assert cured.holds
    assert cured.values["sick_total_db"] < -100.0
    assert abs(cured.values["cured_total_db"]) < 20.0
    assert cured.values["cured_accuracy"] > 0.85
    assert cured.values["sick_accuracy"] < 0.2


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["slope", "layers", "budget"]
    decibels = page.statements[1].values["nonlinearity_db"]
    assert f"nonlinearities {decibels:+.0f} dB" in page.figures[2].alt
