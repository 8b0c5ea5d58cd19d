import numpy as np
import pytest
import torch

from desat.deck.cliff import BEGIN, RATE, TARGET, Recurrence, descend, loss_and_slopes
from desat.deck.slides.clipping import LIMIT, SLIDE


def test_the_slopes_of_the_cliff_are_those_of_autograd() -> None:
    for weight, bias in ((5.0, -2.4), (4.0, -2.0), (6.0, -2.93)):
        model = Recurrence(weight, bias)
        (model(torch.tensor([BEGIN], dtype=torch.float64)) - TARGET).square().sum().backward()
        _, by_weight, by_bias = loss_and_slopes(np.array(weight), np.array(bias))
        for parameter, slope in ((model.weight, by_weight), (model.bias, by_bias)):
            assert parameter.grad is not None
            assert parameter.grad.item() == pytest.approx(float(slope), rel=1e-9)


def test_a_clipped_descent_goes_no_farther_than_the_limit_in_a_step() -> None:
    held = descend(np.array([5.0, 6.0]), np.array([-2.45, -2.95]), 100, LIMIT)
    ways = np.hypot(np.diff(held.weights, axis=0), np.diff(held.biases, axis=0))
    assert held.norms.max() > 10.0 * LIMIT
    assert ways.max() <= RATE * LIMIT


def test_clipping_by_norm_keeps_the_direction_and_by_value_does_not(fast_page) -> None:
    statement = fast_page(SLIDE).statements[0]
    assert statement.holds
    assert statement.values["before"] > 1000.0
    assert statement.values["after"] == pytest.approx(1.0, abs=1e-5)
    assert statement.values["error"] < 1e-6
    assert statement.values["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert statement.values["cosine_by_value"] < 0.8
    assert "`exploding-gradient`" in statement.sentence


def test_with_clipping_more_descents_arrive(fast_page) -> None:
    statement = fast_page(SLIDE).statements[1]
    assert statement.holds
    assert statement.values["arrived_clipped"] > 0.95 > 0.75 > statement.values["arrived_free"]
    assert statement.values["farthest_clipped"] < 10.0 < statement.values["farthest_free"]


def test_desat_finds_the_throw(fast_page) -> None:
    statement = fast_page(SLIDE).statements[2]
    assert statement.holds
    assert statement.values["largest_norm"] > 100.0 * statement.values["first_norm"]
    assert statement.values["weight_free"] == pytest.approx(statement.values["weight_by_formula"], rel=1e-4)
    assert 3.0 < statement.values["weight_clipped"] < 7.0
    assert "`update-too-large`" in statement.sentence.split("With")[0]


def test_a_limit_that_is_too_small_dominates(fast_page) -> None:
    statement = fast_page(SLIDE).statements[3]
    assert statement.holds
    assert statement.values["kept"] < 0.01
    assert statement.values["accuracy"] + 0.3 < statement.values["accuracy_without"]
    assert "`clipping-dominates`" in statement.sentence


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["histogram", "cliff", "losses"]
    assert f"from a norm of {page.statements[0].values['before']:.3g}" in page.figures[0].alt
