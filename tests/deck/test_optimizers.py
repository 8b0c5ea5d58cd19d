import numpy as np
import pytest

from desat.deck.slides.optimizers import CURVATURES, METHODS, SLIDE, TURN, descend

SGD = METHODS[0]


def test_sgd_without_noise_shrinks_by_the_same_factor_at_each_step(monkeypatch) -> None:
    monkeypatch.setattr("desat.deck.slides.optimizers.NOISE", 0.0)
    losses = descend(SGD, 0.005, 0.0, 0).losses
    expected = 0.5 * sum(c * (1.0 - 0.005 * c) ** (2 * np.arange(len(losses))) for c in CURVATURES)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    np.testing.assert_allclose(descend(SGD, 0.005, TURN, 0).losses, losses, rtol=1e-10)


def test_a_rate_beyond_the_stable_one_ends_nowhere() -> None:
    assert descend(SGD, 0.05, 0.0, 0).end == np.inf


def test_adaptive_steps_win_in_a_valley_along_the_axes(fast_page) -> None:
    statement = fast_page(SLIDE).statements[0]
    assert statement.holds
    assert statement.values["apart"] < 1e-12
    # The best that SGD can do along the flat direction, at the largest rate that is stable along the steep one.
    assert statement.values["end_SGD"] > 0.5 * (1.0 - 0.02) ** 200
    for name in ("Adagrad", "RMSprop", "Adam"):
        assert statement.values[f"end_{name}"] < 0.3 * statement.values["end_SGD"]


def test_the_turn_takes_what_the_scaling_gained(fast_page) -> None:
    straight, turned = (statement.values for statement in fast_page(SLIDE).statements[:2])
    assert fast_page(SLIDE).statements[1].holds
    assert turned["end_SGD"] == pytest.approx(straight["end_SGD"], rel=0.25)
    assert turned["end_Adagrad"] > 3.0 * straight["end_Adagrad"]
    assert turned["end_RMSprop"] > 3.0 * straight["end_RMSprop"]
    assert turned["end_Adam"] == pytest.approx(turned["end_momentum"], rel=0.5)


def test_adaptive_optimizers_take_a_saturated_network_off_the_plateau(fast_page) -> None:
    statement = fast_page(SLIDE).statements[2]
    assert statement.holds
    assert statement.values["accuracy_SGD"] < 0.2
    assert min(statement.values[f"accuracy_{name}"] for name in ("Adagrad", "RMSprop", "Adam")) > 0.45
    assert statement.values["ratio_SGD"] < 1e-4 < 1e-3 < statement.values["ratio_Adam"]
    assert "`update-too-small`" in statement.sentence


def test_they_end_at_a_rate_too_large_and_at_a_gradient_below_epsilon(fast_page) -> None:
    statement = fast_page(SLIDE).statements[3]
    assert statement.holds
    assert statement.values["gradient_deep"] < 1e-8 < statement.values["gradient_shallow"]
    assert statement.values["ratio_deep"] < 1e-3
    assert max(statement.values["accuracy_deep"], statement.values["accuracy_too_large"]) < 0.3
    assert "`update-too-large`" in statement.sentence
    assert "`degenerate-optimizer`" in statement.sentence


def test_the_pictures_say_what_was_measured(fast_page) -> None:
    page = fast_page(SLIDE)
    assert [figure.name for figure in page.figures] == ["paths", "valley", "digits"]
    assert f"SGD ends at {page.statements[0].values['end_SGD']:.2g}" in page.figures[1].alt
