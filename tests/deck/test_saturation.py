import math
import re

import pytest

from desat.deck.slides.saturation import SLIDE


def test_the_limits_are_where_the_sigmoid_s_slope_is_5_percent_of_a_quarter(fast_page) -> None:
    where, _ = fast_page(SLIDE).statements
    assert where.holds
    assert where.values["low"] == pytest.approx(-where.values["high"], abs=1e-6)
    value = 1.0 / (1.0 + math.exp(-where.values["high"]))
    assert value * (1.0 - value) == pytest.approx(0.05 * 0.25, rel=1e-6)
    assert where.values["steepest_slope"] == pytest.approx(0.25)


def test_the_saturated_share_of_a_watched_layer_is_that_of_the_normal_distribution(fast_page) -> None:
    _, how_much = fast_page(SLIDE).statements
    assert how_much.holds
    for width in (1, 2, 4, 8):
        outside = math.erfc(4.3567 / width / math.sqrt(2.0))
        assert how_much.values[f"saturated_share_at_{width}"] == pytest.approx(outside, abs=0.01)
    assert how_much.values["largest_difference"] > 0.0


def test_the_pictures_shade_what_was_computed(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["curve", "slope", "share"]
    assert all("-4.36" in figure.alt for figure in page.figures[:2])
    assert all(
        len(re.findall(r"fill: var\(--vermilion\); opacity: 0.16", figure.svg)) == 3 for figure in page.figures[:2]
    )
