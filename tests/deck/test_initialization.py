import math

import numpy as np
import pytest

from desat.deck.slides.initialization import DEPTH, SIZES, SLIDE


def test_the_weights_have_the_deviations_of_the_papers(fast_page) -> None:
    sizes = fast_page(SLIDE).statements[0]
    width = SIZES[True][0]
    assert sizes.holds
    assert sizes.values["xavier"] == pytest.approx(math.sqrt(1.0 / width), rel=0.01)
    assert sizes.values["he"] == pytest.approx(math.sqrt(2.0 / width), rel=0.01)
    assert 0.99 * math.sqrt(3.0 / width) < sizes.values["largest_of_xavier"] <= math.sqrt(3.0 / width)


def test_desat_measures_in_pytorch_what_the_formula_gives(fast_page) -> None:
    same = fast_page(SLIDE).statements[1]
    assert same.holds
    assert 0.0 < same.values["largest_difference"] < 1e-4


def test_relu_halves_what_xavier_draws_and_keeps_what_he_draws(fast_page) -> None:
    halved = fast_page(SLIDE).statements[2]
    assert halved.holds
    assert halved.values["allowed"] < 0.15
    assert halved.values["xavier_factor"] == pytest.approx(0.5, abs=0.06)
    assert halved.values["he_factor"] == pytest.approx(1.0, abs=0.12)
    assert halved.values["xavier_last"] < 1e-7


def test_tanh_fades_slowly_with_xavier_and_settles_with_he(fast_page) -> None:
    faded = fast_page(SLIDE).statements[3]
    assert faded.holds
    # In a wide network the variance of tanh(sqrt(q) u), u standard normal, is the next layer's q over that of weights.
    assert faded.values["xavier_first"] == pytest.approx(_wide_tanh(1.0, 1), rel=0.05)
    assert faded.values["xavier_last"] == pytest.approx(_wide_tanh(1.0, DEPTH), rel=0.6)
    assert faded.values["he_last"] == pytest.approx(_wide_tanh(2.0, DEPTH), rel=0.15)
    assert faded.values["he_gradient_db"] > faded.values["xavier_gradient_db"] + 6.0


def _wide_tanh(weights: float, depth: int) -> float:
    """Variance of the activations after `depth` layers of infinite width, by quadrature."""
    u = np.linspace(-9.0, 9.0, 4001)
    density = np.exp(-0.5 * u**2)
    variance = 1.0
    for _ in range(depth):
        values = np.tanh(math.sqrt(weights * variance) * u) ** 2
        variance = float((values * density).sum() / density.sum())
    return variance


def test_the_remedies_keep_the_signal(fast_page) -> None:
    kept = fast_page(SLIDE).statements[4]
    assert kept.holds
    assert len(kept.values) == 6
    assert all(0.9 < kept.values[f"tanh_{kind}"] < 1.1 for kind in ("xavier", "he", "critical"))


def test_desat_finds_three_wrong_starts(fast_page) -> None:
    found = fast_page(SLIDE).statements[5]
    assert found.holds
    assert all(f"`{code}`" in found.sentence for code in SLIDE.rules)


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["weights", "variance", "remedies"]
    assert f"ReLU with Xavier {page.statements[2].values['xavier_last']:.1e}" in page.figures[1].alt
