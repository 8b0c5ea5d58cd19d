import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from desat.reference.clipping import clip_by_norm, clip_by_value, global_norm

GRADIENTS = st.lists(
    arrays.arrays(
        np.float64, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4), elements=st.floats(-1e4, 1e4, width=32)
    ),
    max_size=4,
)
LIMITS = st.floats(1e-3, 1e5)


def parameters_with(gradients: list[np.ndarray]) -> list[Tensor]:
    parameters = []
    for gradient in gradients:
        parameter = torch.zeros(gradient.shape, dtype=torch.float64, requires_grad=True)
        parameter.grad = torch.from_numpy(gradient.copy())
        parameters.append(parameter)
    return parameters


def compare(found: list[np.ndarray], parameters: list[Tensor]) -> None:
    assert len(found) == len(parameters)
    for gradient, parameter in zip(found, parameters, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-9, atol=1e-12)


@given(GRADIENTS, LIMITS)
@settings(deadline=None, max_examples=25)
def test_clipping_by_norm_is_that_of_torch(gradients: list[np.ndarray], limit: float) -> None:
    parameters = parameters_with(gradients)
    expected = torch.nn.utils.clip_grad_norm_(parameters, limit)
    clipped, norm = clip_by_norm(gradients, limit)
    assert norm == pytest.approx(expected.item(), rel=1e-9)
    compare(clipped, parameters)


@given(GRADIENTS, LIMITS)
@settings(deadline=None, max_examples=25)
def test_clipping_by_value_is_that_of_torch(gradients: list[np.ndarray], limit: float) -> None:
    parameters = parameters_with(gradients)
    if parameters:  # torch fails where there is nothing to clip
        torch.nn.utils.clip_grad_value_(parameters, limit)
    compare(clip_by_value(gradients, limit), parameters)


@given(GRADIENTS, LIMITS)
@settings(deadline=None, max_examples=25)
def test_clipping_by_norm_never_increases_the_norm_and_keeps_the_direction(
    gradients: list[np.ndarray], limit: float
) -> None:
    before = [gradient.copy() for gradient in gradients]
    clipped, norm = clip_by_norm(gradients, limit)
    after = global_norm(clipped)
    assert after <= min(norm, limit) * (1.0 + 1e-12)
    if norm + 1e-6 <= limit:
        assert after == pytest.approx(norm, rel=1e-12)
    flat, flat_clipped = (np.concatenate([np.zeros(1), *(g.ravel() for g in gs)]) for gs in (gradients, clipped))
    assert float(flat @ flat_clipped) == pytest.approx(norm * after, rel=1e-9)
    for gradient, copy, new in zip(gradients, before, clipped, strict=True):
        np.testing.assert_array_equal(gradient, copy)
        assert not np.shares_memory(gradient, new)


@given(GRADIENTS, LIMITS)
@settings(deadline=None, max_examples=20)
def test_clipping_by_value_keeps_signs_and_what_is_within(gradients: list[np.ndarray], limit: float) -> None:
    for gradient, clipped in zip(gradients, clip_by_value(gradients, limit), strict=True):
        assert np.all(np.abs(clipped) <= limit)
        np.testing.assert_array_equal(np.sign(clipped), np.sign(gradient))
        within = np.abs(gradient) <= limit
        np.testing.assert_array_equal(clipped[within], gradient[within])


def test_the_norm_is_of_all_gradients_together() -> None:
    clipped, norm = clip_by_norm([np.array([3.0]), np.array([[4.0]])], 1.0)
    assert norm == 5.0
    np.testing.assert_allclose(np.concatenate([gradient.ravel() for gradient in clipped]), [0.6, 0.8], atol=1e-6)


def test_squares_neither_overflow_nor_vanish() -> None:
    assert global_norm([np.array([3e200, 4e200])]) == pytest.approx(5e200)
    assert global_norm([np.array([3e-200, 4e-200])]) == pytest.approx(5e-200, abs=0.0)


def test_nothing_to_clip() -> None:
    assert clip_by_norm([], 1.0) == ([], 0.0)
    (zeros,), norm = clip_by_norm([np.zeros(3)], 1.0)
    assert (zeros.tolist(), norm) == ([0.0] * 3, 0.0)
    (kept,), _ = clip_by_norm([np.array([1.0, 2.0])], math.inf)
    assert kept.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_refused(bad: float) -> None:
    gradients = [np.zeros(2), np.array([[1.0, bad]])]
    with pytest.raises(ValueError, match=r"got 1 nan or inf in number 1 of shape \(1, 2\)"):
        clip_by_norm(gradients, 1.0)
    with pytest.raises(ValueError, match=r"got 1 nan or inf in number 1 of shape \(1, 2\)"):
        clip_by_value(gradients, 1.0)


@pytest.mark.parametrize("limit", [-1.0, math.nan])
def test_limits_that_make_no_sense_are_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="max_norm of at least 0"):
        clip_by_norm([np.zeros(2)], limit)
    with pytest.raises(ValueError, match="limit of at least 0"):
        clip_by_value([np.zeros(2)], limit)
