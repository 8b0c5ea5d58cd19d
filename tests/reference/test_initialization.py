import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from desat.reference import initialization
from desat.reference.activations import ACTIVATIONS, relu, selu, sigmoid, tanh
from desat.reference.initialization import (
    RELU_GAIN,
    he_normal,
    he_std,
    he_uniform,
    lecun_normal,
    lecun_std,
    orthogonal,
    variance_through,
    xavier_normal,
    xavier_std,
    xavier_uniform,
)

SHAPE = (300, 500)
TORCH = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "he_uniform": lambda weights: nn.init.kaiming_uniform_(weights, nonlinearity="relu"),
    "he_normal": lambda weights: nn.init.kaiming_normal_(weights, nonlinearity="relu"),
    "lecun_normal": lambda weights: nn.init.kaiming_normal_(weights, nonlinearity="linear"),
    "orthogonal": nn.init.orthogonal_,
}
STD = {
    "xavier_uniform": xavier_std(500, 300),
    "xavier_normal": xavier_std(500, 300),
    "he_uniform": he_std(500),
    "he_normal": he_std(500),
    "lecun_normal": lecun_std(500),
    "orthogonal": 1.0 / math.sqrt(500),
}
NAMES = pytest.mark.parametrize("name", sorted(TORCH))


def largest_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov's distance of two samples: the largest difference of their distribution functions."""
    one, other = np.sort(one.ravel()), np.sort(other.ravel())
    everywhere = np.concatenate([one, other])
    shares = [np.searchsorted(sample, everywhere, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


@NAMES
def test_weights_are_distributed_as_those_of_torch(name: str) -> None:
    weights = getattr(initialization, name)(SHAPE, np.random.default_rng(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = TORCH[name](torch.empty(SHAPE, dtype=torch.float64)).numpy()
    assert weights.shape == SHAPE
    assert weights.dtype == np.float64
    # Of two samples of 150 000 the distance exceeds 0.0071 with a probability of 0.1 %.
    assert largest_distance(weights, expected) < 0.0071
    assert weights.std() == pytest.approx(STD[name], rel=0.01)


def test_the_distance_tells_a_wrong_distribution() -> None:
    rng = np.random.default_rng(0)
    assert largest_distance(xavier_normal(SHAPE, rng), xavier_uniform(SHAPE, rng)) > 0.0071
    assert largest_distance(he_normal(SHAPE, rng), he_normal(SHAPE, rng, 1.03 * RELU_GAIN)) > 0.0071


@NAMES
def test_gain_scales_and_a_seed_repeats(name: str) -> None:
    function = getattr(initialization, name)
    weights = function((7, 5), np.random.default_rng(3), 1.0)
    np.testing.assert_array_equal(function((7, 5), np.random.default_rng(3), 1.0), weights)
    np.testing.assert_allclose(function((7, 5), np.random.default_rng(3), 2.5), 2.5 * weights, rtol=1e-14)


@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0.1, 10))
@settings(deadline=None, max_examples=20)
def test_standard_deviations_follow_their_formulas(fan_in: int, fan_out: int, gain: float) -> None:
    assert xavier_std(fan_in, fan_out, gain) ** 2 * (fan_in + fan_out) / 2 == pytest.approx(gain**2)
    assert xavier_std(fan_in, fan_out) == xavier_std(fan_out, fan_in)
    assert he_std(fan_in) ** 2 * fan_in == pytest.approx(2.0)
    assert lecun_std(fan_in, gain) ** 2 * fan_in == pytest.approx(gain**2)


@pytest.mark.parametrize(
    ("function", "bound"), [(xavier_uniform, math.sqrt(6.0 / 800)), (he_uniform, math.sqrt(6.0 / 500))]
)
def test_uniform_weights_fill_their_bounds(function: Callable[..., np.ndarray], bound: float) -> None:
    weights = function(SHAPE, np.random.default_rng(0))
    assert weights.max() == pytest.approx(bound, rel=1e-3)
    assert weights.min() == pytest.approx(-bound, rel=1e-3)
    assert np.abs(weights).max() <= bound


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 10), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_orthogonal_weights_have_the_gain_as_every_singular_value(
    fan_out: int, fan_in: int, gain: float, seed: int
) -> None:
    weights = orthogonal((fan_out, fan_in), np.random.default_rng(seed), gain)
    assert weights.shape == (fan_out, fan_in)
    small = weights @ weights.T if fan_out <= fan_in else weights.T @ weights
    np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-11)


def test_orthogonal_weights_have_no_preferred_direction() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([orthogonal((2, 2), rng) for _ in range(4000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 0.0, atol=0.05)
    assert np.mean(np.linalg.det(drawn) > 0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["sigmoid", "relu", "tanh", "gelu"])
def test_variance_through_layers_is_that_of_torch(name: str) -> None:
    modules = {"sigmoid": torch.sigmoid, "relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}
    found = variance_through(6, 20, 30, ACTIVATIONS[name].function, xavier_normal, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    signal = torch.from_numpy(rng.standard_normal((30, 20)))
    expected = [signal.var(unbiased=False).item()]
    for _ in range(6):
        layer = nn.Linear(20, 20, bias=False, dtype=torch.float64)
        layer.weight.data = torch.from_numpy(xavier_normal((20, 20), rng))
        signal = modules[name](layer(signal)).detach()
        expected.append(signal.var(unbiased=False).item())
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_variance_is_kept_by_the_initialization_made_for_the_activation_and_lost_by_others() -> None:
    def after_twenty(activation: Callable[..., np.ndarray], init: initialization.Initialization) -> np.ndarray:
        return variance_through(20, 200, 400, activation, init, np.random.default_rng(0))

    assert 0.5 < after_twenty(np.asarray, orthogonal)[-1] < 1.5
    assert after_twenty(selu, lecun_normal)[-1] == pytest.approx(1.0, abs=0.25)
    kept, lost = after_twenty(relu, he_normal), after_twenty(relu, xavier_normal)
    assert 0.2 < kept[-1] / kept[1] < 5.0
    # The same draws, so that each of the layers halves the mean square exactly.
    np.testing.assert_allclose(lost, kept / 2.0 ** np.arange(21), rtol=1e-10)
    assert after_twenty(sigmoid, xavier_normal)[-1] < 0.05
    saturated = after_twenty(tanh, lambda shape, rng: rng.standard_normal(shape))
    assert saturated[-1] > 0.8


def test_shapes_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"shape \(fan_out, fan_in\), got \(3,\)"):
        he_normal((3,), rng)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got fan_out 0 and fan_in 3"):
        orthogonal((0, 3), rng)
    with pytest.raises(ValueError, match="got fan_out 1 and fan_in 0"):
        he_std(0)
    with pytest.raises(ValueError, match="at least 1, got 0, 3 and 4"):
        variance_through(0, 3, 4, tanh, he_normal, rng)
    with pytest.raises(ValueError, match=r"weights of shape \(3, 3\), got shape \(3,\)"):
        variance_through(1, 3, 4, tanh, lambda shape, rng: np.zeros(3), rng)
    with pytest.raises(ValueError, match=r"activations of shape \(4, 3\), got shape \(\)"):
        variance_through(1, 3, 4, np.sum, he_normal, rng)
