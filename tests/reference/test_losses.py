import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from desat.reference.attention import softmax
from desat.reference.losses import (
    Reduction,
    binary_cross_entropy_with_logits,
    cross_entropy,
    log_softmax,
    mean_squared_error,
    nll,
)

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
SHAPES = arrays.array_shapes(min_dims=2, max_dims=4, max_side=5)
LOGITS = arrays.arrays(np.float64, SHAPES, elements=st.floats(-1e4, 1e4))
PAIRS = arrays.arrays(
    np.float64, st.tuples(st.just(2), st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-1e4, 1e4)
)


def targets_for(logits: np.ndarray, seed: int = 0) -> np.ndarray:
    shape = (logits.shape[0], *logits.shape[2:])
    return np.random.default_rng(seed).integers(0, logits.shape[1], shape)


@REDUCTIONS
@given(logits=LOGITS, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=15)
def test_cross_entropy_and_nll_are_those_of_torch(reduction: Reduction, logits: np.ndarray, seed: int) -> None:
    targets = targets_for(logits, seed)
    values, classes = torch.from_numpy(logits), torch.from_numpy(targets)
    expected = F.cross_entropy(values, classes, reduction=reduction)
    np.testing.assert_allclose(cross_entropy(logits, targets, reduction), expected.numpy(), rtol=1e-10, atol=1e-8)
    expected = F.nll_loss(values, classes, reduction=reduction)
    np.testing.assert_allclose(nll(logits, targets, reduction), expected.numpy(), rtol=1e-10, atol=1e-8)


@REDUCTIONS
@given(logits=LOGITS, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=15)
def test_binary_cross_entropy_is_that_of_torch(reduction: Reduction, logits: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = np.where(rng.random(logits.shape) < 0.5, rng.integers(0, 2, logits.shape), rng.random(logits.shape))
    expected = F.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(targets), reduction=reduction
    )
    found = binary_cross_entropy_with_logits(logits, targets, reduction)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-10, atol=1e-8)


@REDUCTIONS
@given(pair=PAIRS)
@settings(deadline=None, max_examples=15)
def test_mean_squared_error_is_that_of_torch(reduction: Reduction, pair: np.ndarray) -> None:
    predictions, targets = pair
    expected = F.mse_loss(torch.from_numpy(predictions), torch.from_numpy(targets), reduction=reduction)
    np.testing.assert_allclose(mean_squared_error(predictions, targets, reduction), expected.numpy(), rtol=1e-10)


@given(LOGITS, st.floats(-1e4, 1e4))
@settings(deadline=None, max_examples=20)
def test_log_softmax_is_the_logarithm_of_softmax_and_does_not_see_a_shift(logits: np.ndarray, shift: float) -> None:
    found = log_softmax(logits, axis=1)
    np.testing.assert_allclose(np.exp(found), softmax(logits, axis=1), atol=1e-12)
    np.testing.assert_allclose(log_softmax(logits + shift, axis=1), found, atol=1e-8)
    np.testing.assert_allclose(found, F.log_softmax(torch.from_numpy(logits), 1).numpy(), atol=1e-8)
    assert found.max() <= 0.0


@given(PAIRS)
@settings(deadline=None, max_examples=20)
def test_two_classes_are_the_binary_case_of_their_difference(pair: np.ndarray) -> None:
    logits = np.moveaxis(pair, 0, 1)
    targets = targets_for(logits)
    binary = binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], targets.astype(float), "none")
    np.testing.assert_allclose(cross_entropy(logits, targets, "none"), binary, atol=1e-7)


def slope_of(loss: Callable[[np.ndarray], np.ndarray], point: np.ndarray, step: float = 1e-5) -> np.ndarray:
    found = np.zeros_like(point)
    for at in np.ndindex(point.shape):
        moved = np.zeros_like(point)
        moved[at] = step
        found[at] = (loss(point + moved) - loss(point - moved)) / (2.0 * step)
    return found


def test_gradients_at_the_logits_are_the_error_of_the_probability() -> None:
    logits = np.random.default_rng(0).normal(0.0, 3.0, (4, 3))
    targets = targets_for(logits)
    one_hot = np.eye(3)[targets]
    found = slope_of(lambda z: cross_entropy(z, targets, "sum"), logits)
    np.testing.assert_allclose(found, softmax(logits) - one_hot, atol=1e-8)
    found = slope_of(lambda z: binary_cross_entropy_with_logits(z, one_hot, "sum"), logits)
    np.testing.assert_allclose(found, 1.0 / (1.0 + np.exp(-logits)) - one_hot, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_guessing_costs_the_logarithm_of_the_number_of_classes(classes: int) -> None:
    assert float(cross_entropy(np.zeros((3, classes)), np.array([0, 1, classes - 1]))) == pytest.approx(
        math.log(classes)
    )
    assert float(binary_cross_entropy_with_logits(np.zeros(3), np.ones(3))) == pytest.approx(math.log(2.0))


def test_sure_logits_cost_their_margin_and_not_infinity() -> None:
    sure = np.array([[1e4, -1e4]])
    assert float(cross_entropy(sure, np.array([0]))) == 0.0
    assert float(cross_entropy(sure, np.array([1]))) == 2e4
    assert binary_cross_entropy_with_logits(np.array([1e4, -1e4]), np.array([0.0, 0.0]), "none").tolist() == [1e4, 0.0]
    sure_and_right = binary_cross_entropy_with_logits(np.array([40.0]), np.ones(1))
    assert float(sure_and_right) == pytest.approx(math.exp(-40.0), rel=1e-12, abs=0.0)


def test_input_is_not_changed() -> None:
    logits, targets = np.array([[1.0, 2.0], [3.0, -4.0]]), np.array([0, 1])
    cross_entropy(logits, targets)
    losses = nll(logits, targets, "none")
    losses *= 0.0
    mean_squared_error(logits, logits)
    assert logits.tolist() == [[1.0, 2.0], [3.0, -4.0]]


def test_shapes_and_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits \(batch, classes, \*positions\), got shape \(3,\)"):
        cross_entropy(np.zeros(3), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"got shapes \(3, 2\) and \(2,\)"):
        cross_entropy(np.zeros((3, 2)), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"integers, got float64 of shape \(3,\)"):
        nll(np.zeros((3, 2)), np.zeros(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"from 0 to 1 for shape \(2, 2\), got 0 to 2"):
        cross_entropy(np.zeros((2, 2)), np.array([0, 2]))
    with pytest.raises(ValueError, match="got -1 to 0"):
        cross_entropy(np.zeros((2, 2)), np.array([0, -1]))
    with pytest.raises(ValueError, match=r"logits and targets of one shape, got shapes \(3,\) and \(3, 1\)"):
        binary_cross_entropy_with_logits(np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"between 0 and 1 of shape \(2,\), got -1.0 to 1.0"):
        binary_cross_entropy_with_logits(np.zeros(2), np.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match=r"predictions and targets of one shape, got shapes \(3,\) and \(1, 3\)"):
        mean_squared_error(np.zeros(3), np.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"at least one target, got shape \(0,\)"):
        mean_squared_error(np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match='reduction "mean", "sum" or "none", got \'median\''):
        mean_squared_error(np.zeros(2), np.zeros(2), "median")  # pyright: ignore[reportArgumentType]
