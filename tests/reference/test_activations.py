import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from desat.nonlinearity import measure_curve
from desat.reference import activations
from desat.reference.activations import ACTIVATIONS, saturated_intervals, sigmoid, sigmoid_derivative

TORCH = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softsign": F.softsign,
    "softplus": F.softplus,
}
NAMES = pytest.mark.parametrize("name", sorted(ACTIVATIONS))
SMOOTH = pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "softsign", "softplus"])
VALUES = arrays.arrays(
    np.float64, arrays.array_shapes(min_dims=0, max_dims=3, max_side=5), elements=st.floats(-1e4, 1e4)
)
NUMBERS = st.floats(-30, 30)
EXTREMES = np.array([-1e4, -1000.0, -50.0, -1e-300, 0.0, 1e-300, 50.0, 1000.0, 1e4])


def compare_with_torch(name: str, values: np.ndarray) -> None:
    points = torch.from_numpy(values.copy()).requires_grad_()
    expected = TORCH[name](points)
    (slope,) = torch.autograd.grad(expected.sum(), points)
    function, derivative = ACTIVATIONS[name]
    for found, wanted in ((function(values), expected.detach()), (derivative(values), slope)):
        assert found.shape == values.shape
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-8, atol=1e-8)


def test_every_function_has_an_oracle() -> None:
    assert set(TORCH) == set(ACTIVATIONS)


@NAMES
@given(values=VALUES)
@settings(deadline=None, max_examples=15)
def test_function_and_derivative_are_those_of_torch(name: str, values: np.ndarray) -> None:
    compare_with_torch(name, values)


@NAMES
def test_extreme_inputs_and_kinks_are_those_of_torch(name: str) -> None:
    compare_with_torch(name, EXTREMES)
    compare_with_torch(name, np.linspace(-9.0, 9.0, 181))


@NAMES
def test_the_largest_numbers_neither_overflow_nor_warn(name: str) -> None:
    function, derivative = ACTIVATIONS[name]
    assert np.isfinite(function([-1e300, 1e300])).all()
    assert np.isfinite(derivative([-1e300, 1e300])).all()


@NAMES
def test_input_is_not_changed_and_numbers_are_taken(name: str) -> None:
    values = np.linspace(-2.0, 2.0, 5)
    for function in ACTIVATIONS[name]:
        results = function(values)
        assert values.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
        assert float(function(-1)) == results[1]


@NAMES
@given(z=NUMBERS)
@settings(deadline=None, max_examples=25)
def test_derivative_is_the_slope_of_the_function(name: str, z: float) -> None:
    step = 1e-5
    if name not in ("sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "softplus") and abs(z) < 2 * step:
        z = 1.0  # at their kink these have no slope
    function, derivative = ACTIVATIONS[name]
    slope = (function(z + step) - function(z - step)) / (2 * step)
    assert float(derivative(z)) == pytest.approx(float(slope), abs=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.5])
def test_alpha_is_that_of_torch(alpha: float) -> None:
    values = np.linspace(-5.0, 5.0, 41)
    points = torch.from_numpy(values)
    for name, oracle in (("leaky_relu", F.leaky_relu), ("elu", F.elu)):
        given = points.clone().requires_grad_()
        expected = oracle(given, alpha)
        (slope,) = torch.autograd.grad(expected.sum(), given)
        found, derivative = getattr(activations, name), getattr(activations, f"{name}_derivative")
        np.testing.assert_allclose(found(values, alpha), expected.detach().numpy(), atol=1e-12)
        np.testing.assert_allclose(derivative(values, alpha), slope.numpy(), atol=1e-12)


@given(VALUES)
@settings(deadline=None, max_examples=20)
def test_symmetries(values: np.ndarray) -> None:
    np.testing.assert_allclose(sigmoid(-values), 1.0 - sigmoid(values), atol=1e-15)
    np.testing.assert_allclose(activations.softplus(values) - activations.softplus(-values), values, atol=1e-8)
    for name in ("gelu", "gelu_tanh", "silu"):
        function = ACTIVATIONS[name].function
        np.testing.assert_allclose(function(values) - function(-values), values, atol=1e-8)
    for name in ("tanh", "softsign"):
        function, derivative = ACTIVATIONS[name]
        np.testing.assert_array_equal(function(-values), -function(values))
        np.testing.assert_array_equal(derivative(-values), derivative(values))


def test_tails_are_kept_where_one_minus_something_would_be_zero() -> None:
    assert float(sigmoid(-700.0)) == pytest.approx(math.exp(-700.0), rel=1e-12, abs=0.0)
    assert float(sigmoid_derivative(100.0)) == pytest.approx(math.exp(-100.0), rel=1e-12, abs=0.0)
    assert float(activations.tanh_derivative(100.0)) == pytest.approx(4.0 * math.exp(-200.0), rel=1e-12, abs=0.0)
    assert float(activations.elu(-1e-20)) == -1e-20
    assert float(activations.softplus(-100.0)) == pytest.approx(math.exp(-100.0), rel=1e-12, abs=0.0)
    assert float(activations.gelu(-10.0)) == pytest.approx(-10.0 * 7.619853024160527e-24, rel=1e-10, abs=0.0)


def test_the_tanh_form_of_gelu_is_near_the_exact_one() -> None:
    values = np.linspace(-10.0, 10.0, 2001)
    difference = np.abs(activations.gelu_tanh(values) - activations.gelu(values)).max()
    assert 1e-4 < difference < 5e-4


def test_ten_sigmoids_leave_a_millionth_of_the_gradient() -> None:
    assert float(sigmoid_derivative(0.0)) ** 10 == pytest.approx(0.25**10)
    assert 0.25**10 < 1e-6


SIGMOID_END = math.log((1.0 + math.sqrt(0.95)) / (1.0 - math.sqrt(0.95)))
TANH_END = math.atanh(math.sqrt(0.95))
SOFTSIGN_END = math.sqrt(20.0) - 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", [(-20.0, -SIGMOID_END), (SIGMOID_END, 20.0)]),
        ("tanh", [(-20.0, -TANH_END), (TANH_END, 20.0)]),
        ("softsign", [(-20.0, -SOFTSIGN_END), (SOFTSIGN_END, 20.0)]),
        ("relu", [(-20.0, 0.0)]),
        ("leaky_relu", [(-20.0, 0.0)]),
        ("elu", [(-20.0, math.log(0.05))]),
        ("selu", [(-20.0, math.log(0.05))]),
    ],
)
def test_saturated_intervals_are_those_of_the_formula(name: str, expected: list[tuple[float, float]]) -> None:
    np.testing.assert_allclose(saturated_intervals(ACTIVATIONS[name].derivative), expected, atol=1e-9)


@NAMES
def test_saturated_intervals_are_those_that_autograd_finds(name: str) -> None:
    curve = measure_curve(TORCH[name])
    assert curve is not None
    expected = [(max(low, -20.0), min(high, 20.0)) for low, high in curve.intervals]
    np.testing.assert_allclose(saturated_intervals(ACTIVATIONS[name].derivative), expected, atol=1e-4)


@cache
def steepest(name: str) -> float:
    """The largest slope, on a grid that is finer than that of the function under test."""
    return float(np.abs(ACTIVATIONS[name].derivative(np.linspace(-20.0, 20.0, 400_001))).max())


@SMOOTH
@given(share=st.floats(0.02, 0.9))
@settings(deadline=None, max_examples=20)
def test_at_the_ends_of_an_interval_the_derivative_has_its_share_of_the_maximum(name: str, share: float) -> None:
    derivative = ACTIVATIONS[name].derivative
    intervals = saturated_intervals(derivative, share=share)
    maximum = steepest(name)
    ends = [end for interval in intervals for end in interval if abs(end) < 20.0]
    assert ends
    np.testing.assert_allclose(np.abs(derivative(ends)), share * maximum, atol=1e-9)
    for low, high in intervals:
        assert np.abs(derivative(np.linspace(low, high, 101)[1:-1])).max() < share * maximum


def test_gelu_is_saturated_at_its_minimum_too() -> None:
    (left, inner) = saturated_intervals(activations.gelu_derivative)
    assert left[0] == -20.0
    assert inner[0] < -0.7518 < inner[1]


def test_a_function_that_is_nowhere_saturated_has_no_intervals() -> None:
    assert saturated_intervals(lambda x: activations.leaky_relu_derivative(x, 0.1)) == []
    assert saturated_intervals(np.ones_like) == []
    assert saturated_intervals(sigmoid_derivative, -1.0, 1.0) == []


def test_ranges_and_derivatives_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"low < high, got low 1\.0 and high 1.0"):
        saturated_intervals(sigmoid_derivative, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"share of the maximum between 0 and 1, got 1\.0"):
        saturated_intervals(sigmoid_derivative, share=1.0)
    with pytest.raises(ValueError, match=r"not 0 everywhere between -2\.0 and -1\.0"):
        saturated_intervals(activations.relu_derivative, -2.0, -1.0)
    with pytest.raises(ValueError, match=r"finite derivative of shape \(8001,\), got shape \(\)"):
        saturated_intervals(lambda x: 1.0)
    with pytest.raises(ValueError, match="finite derivative"):
        saturated_intervals(lambda x: np.full_like(x, np.nan))
