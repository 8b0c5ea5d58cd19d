from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from desat.reference.activations import ACTIVATIONS, tanh
from desat.reference.residual import (
    block_jacobian,
    chain_gradient,
    chain_jacobian,
    plain_block,
    relu_block_jacobian,
    residual_block,
)

TORCH = {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
SIZES = st.integers(1, 5)


def through(x: Tensor, weights: list[Tensor], activation: str) -> Tensor:
    for number, matrix in enumerate(weights):
        x = torch.nn.functional.linear(TORCH[activation](x) if number else x, matrix)
    return x


@pytest.mark.parametrize("activation", sorted(TORCH))
@given(batch=SIZES, width=SIZES, hidden=SIZES, layers=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_blocks_and_their_jacobians_are_those_of_torch(
    activation: str, batch: int, width: int, hidden: int, layers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    widths = [width, *[hidden] * (layers - 1), width]
    weights = [rng.standard_normal((widths[at + 1], widths[at])) for at in range(layers)]
    x = rng.standard_normal((batch, width))
    tensors = [torch.from_numpy(matrix) for matrix in weights]
    function, derivative = ACTIVATIONS[activation]
    expected = through(torch.from_numpy(x), tensors, activation).numpy()
    np.testing.assert_allclose(plain_block(x, weights, function), expected, atol=1e-10)
    np.testing.assert_allclose(residual_block(x, weights, function), x + expected, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(lambda z: through(z, tensors, activation), torch.from_numpy(x[0]))
    assert isinstance(jacobian, Tensor)
    found = block_jacobian(x[0], weights, derivative, function)
    np.testing.assert_allclose(found, jacobian.numpy(), atol=1e-10)
    if activation == "relu":
        np.testing.assert_array_equal(relu_block_jacobian(x[0], weights), found)


@pytest.mark.parametrize("value", [-1e4, 0.0, 1e4])
def test_extreme_inputs_pass_as_in_torch(value: float) -> None:
    weights = list(np.random.default_rng(0).standard_normal((2, 3, 3)))
    x = np.full((2, 3), value)
    expected = through(torch.from_numpy(x), [torch.from_numpy(matrix) for matrix in weights], "tanh").numpy()
    np.testing.assert_allclose(residual_block(x, weights, tanh), x + expected, rtol=1e-12, atol=1e-12)


def test_a_block_that_adds_nothing_is_the_identity_and_a_shortcut_changes_the_width() -> None:
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(residual_block(x, [np.ones((4, 3)), np.zeros((3, 4))]), x)
    np.testing.assert_array_equal(plain_block(x, [np.ones((4, 3)), np.zeros((3, 4))]), np.zeros((2, 3)))
    shortcut = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 2.0]])
    np.testing.assert_array_equal(residual_block(x, [np.zeros((2, 3))], shortcut=shortcut), [[3.0, 4.0], [12.0, 10.0]])


@pytest.mark.parametrize("residual", [False, True])
def test_the_gradient_through_ten_blocks_is_that_of_autograd(residual: bool) -> None:
    rng = np.random.default_rng(0)
    blocks = [list(0.4 * rng.standard_normal((2, 6, 6))) for _ in range(10)]
    gradient = rng.standard_normal(6)
    points = [torch.from_numpy(rng.standard_normal(6)).requires_grad_()]
    for weights in blocks:
        change = through(points[-1], [torch.from_numpy(matrix) for matrix in weights], "tanh")
        points.append(points[-1] + change if residual else change)
    expected = torch.autograd.grad((points[-1] * torch.from_numpy(gradient)).sum(), points)
    function, derivative = ACTIVATIONS["tanh"]
    jacobians = [
        block_jacobian(point.detach().numpy(), weights, derivative, function)
        for point, weights in zip(points[:-1], blocks, strict=True)
    ]
    found = chain_gradient(jacobians, gradient, residual)
    np.testing.assert_allclose(found, np.stack([one.numpy() for one in expected]), atol=1e-10)
    np.testing.assert_allclose(found[0], chain_jacobian(jacobians, residual).T @ gradient, atol=1e-10)


def test_the_gradient_vanishes_in_ten_plain_blocks_and_arrives_through_residual_ones() -> None:
    rng = np.random.default_rng(0)
    jacobians = 0.1 * rng.standard_normal((10, 8, 8)) / np.sqrt(8)
    gradient = rng.standard_normal(8)
    plain = np.linalg.norm(chain_gradient(list(jacobians), gradient)[0]) / np.linalg.norm(gradient)
    residual = np.linalg.norm(chain_gradient(list(jacobians), gradient, residual=True)[0]) / np.linalg.norm(gradient)
    assert plain < 1e-8
    assert 0.3 < residual < 3.0


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_the_residual_product_is_the_sum_over_all_ways_through_the_blocks(blocks: int, width: int, seed: int) -> None:
    jacobians = list(np.random.default_rng(seed).standard_normal((blocks, width, width)))
    total = np.eye(width)
    for length in range(1, blocks + 1):
        for way in combinations(jacobians, length):
            total = total + chain_jacobian(way)
    np.testing.assert_allclose(chain_jacobian(jacobians, residual=True), total, atol=1e-9)


def test_input_is_not_changed() -> None:
    jacobians, gradient = [np.eye(2), 2.0 * np.eye(2)], np.ones(2)
    assert chain_gradient(jacobians, gradient).tolist() == [[2.0, 2.0], [2.0, 2.0], [1.0, 1.0]]
    assert chain_gradient(jacobians, gradient, residual=True).tolist() == [[6.0, 6.0], [3.0, 3.0], [1.0, 1.0]]
    assert [matrix.tolist() for matrix in jacobians] == [[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]
    assert gradient.tolist() == [1.0, 1.0]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights 1 of shape \(fan_out, 4\), got shape \(3, 3\)"):
        plain_block(np.zeros((2, 3)), [np.zeros((4, 3)), np.zeros((3, 3))])
    with pytest.raises(ValueError, match=r"at least one matrix, got shape \(2, 3\), 0"):
        plain_block(np.zeros((2, 3)), [])
    with pytest.raises(ValueError, match=r"keeps the shape \(2, 3\), or a shortcut, got \(2, 1\)"):
        residual_block(np.zeros((2, 3)), [np.zeros((1, 3))])
    with pytest.raises(ValueError, match=r"one input of shape \(width,\), got shape \(2, 3\)"):
        relu_block_jacobian(np.zeros((2, 3)), [np.zeros((3, 3))])
    with pytest.raises(ValueError, match=r"at least one Jacobian.* got shapes \[\]"):
        chain_jacobian([])
    with pytest.raises(ValueError, match=r"got shapes \[\(2, 2\), \(3, 3\)\]"):
        chain_jacobian([np.zeros((2, 2)), np.zeros((3, 3))])
    with pytest.raises(ValueError, match=r"gradient of shape \(2,\), got shape \(3,\)"):
        chain_gradient([np.zeros((2, 2))], np.zeros(3))
