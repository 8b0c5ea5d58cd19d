import math

import pytest

from desat.deck.slides.activations import SLIDE
from desat.reference.activations import ACTIVATIONS, saturated_intervals


@pytest.mark.parametrize(("place", "name", "steepest"), [(0, "sigmoid", 0.25), (1, "tanh", 1.0), (2, "relu", 1.0)])
def test_each_function_saturates_where_the_formula_says(fast_page, place: int, name: str, steepest: float) -> None:
    statement = fast_page(SLIDE).statements[place]
    intervals = saturated_intervals(ACTIVATIONS[name].derivative)
    assert statement.holds
    assert statement.values["low"] == pytest.approx(intervals[0][1], abs=1e-6)
    high = intervals[1][0] if len(intervals) == 2 else math.inf
    assert statement.values["high"] == pytest.approx(high, abs=1e-6)
    assert statement.values["steepest_slope"] == steepest
    assert statement.values["largest_error"] < 1e-12


def test_each_function_is_told_by_its_class(fast_page) -> None:
    claims = [statement.claim for statement in fast_page(SLIDE).statements]
    assert ["bounded" in claim for claim in claims] == [True, True, False]
    assert "a rectifier" in claims[2]


def test_a_picture_shows_each(fast_page) -> None:
    assert [figure.name for figure in fast_page(SLIDE).figures] == ["sigmoid", "tanh", "relu"]
