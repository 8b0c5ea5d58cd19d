"""Plain and residual blocks, their Jacobians, and the gradient through a chain of them.

A plain block is F(x) = W_n f(... f(W_1 x)), a residual one x + F(x), the form with an identity all the way (He et al.
2016, "Identity Mappings in Deep Residual Networks", section 2; He et al. 2015, "Deep Residual Learning", section 3.2).
Backwards a plain block multiplies the gradient by its Jacobian J, a residual one by I + J, so that a gradient which
vanishes in the product of ten J arrives through the identities: the deck's ten blocks. Numbers carry no unit.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from desat.reference.activations import relu, relu_derivative

Array = NDArray[np.float64]
Given = NDArray[np.floating]
Elementwise = Callable[[Array], Array]


def plain_block(x: Given, weights: Sequence[Given], activation: Elementwise = relu) -> Array:
    """F(x): linear layers without biases, with the activation between them and none after the last.

    x: (..., width). weights: one or more, (fan_out, fan_in) each, each taking what the one before gives. Returns (...,
    the last fan_out). Raises ValueError where shapes do not fit.
    """
    signal = np.asarray(x, dtype=np.float64)
    for number, matrix in enumerate(_matrices(weights, signal.shape)):
        signal = (activation(signal) if number else signal) @ matrix.T
    return signal


def residual_block(
    x: Given, weights: Sequence[Given], activation: Elementwise = relu, shortcut: Given | None = None
) -> Array:
    """The input added: x + F(x), or x W_s^T + F(x) with a shortcut W_s where F changes the width.

    Shapes as for `plain_block`; shortcut: (the last fan_out, width). Raises ValueError where shapes do not fit.
    Source: He et al. 2015, equations 1 and 2, without the activation after the sum.
    """
    change = plain_block(x, weights, activation)
    straight = np.asarray(x, dtype=np.float64)
    if shortcut is not None:
        straight = plain_block(straight, [shortcut])
    if straight.shape != change.shape:
        raise ValueError(f"expected a block that keeps the shape {straight.shape}, or a shortcut, got {change.shape}")
    return straight + change


def block_jacobian(x: Given, weights: Sequence[Given], derivative: Elementwise, activation: Elementwise) -> Array:
    """The Jacobian J of F at one input: W_n diag(f'(z)) ... W_1, shape (the last fan_out, width).

    x: (width,). derivative: of the activation. A residual block's is I + J. Raises ValueError where shapes do not fit.
    """
    signal = np.asarray(x, dtype=np.float64)
    if signal.ndim != 1:
        raise ValueError(f"expected one input of shape (width,), got shape {signal.shape}")
    jacobian = np.eye(len(signal))
    for number, matrix in enumerate(_matrices(weights, signal.shape)):
        if number:
            jacobian, signal = derivative(signal)[:, None] * jacobian, activation(signal)
        jacobian, signal = matrix @ jacobian, matrix @ signal
    return jacobian


def relu_block_jacobian(x: Given, weights: Sequence[Given]) -> Array:
    """`block_jacobian` of a block with ReLU."""
    return block_jacobian(x, weights, relu_derivative, relu)


def chain_jacobian(jacobians: Sequence[Given], residual: bool = False) -> Array:
    """The Jacobian of all blocks in a row, J_n ... J_1, or (I + J_n) ... (I + J_1) of residual ones.

    jacobians: in the order of the forward pass, (width, width) each. Multiplied out, the residual product is a sum over
    the 2**n ways to go through or past each block (Veit, Wilber and Belongie 2016, section 3), of which the plain
    product is the longest alone. Raises ValueError where shapes do not fit or there is no block.
    """
    factors = _factors(jacobians, residual)
    product = factors[0]
    for factor in factors[1:]:
        product = factor @ product
    return product


def chain_gradient(jacobians: Sequence[Given], gradient: Given, residual: bool = False) -> Array:
    """The gradient at the input of each block and at the output of the last, shape (blocks + 1, width).

    jacobians: in the order of the forward pass, (width, width) each. gradient: (width,), of a scalar at the output of
    the last block, which comes back as the last row; the first row is what arrives at the input of the chain. Raises
    ValueError where shapes do not fit or there is no block. Source: He et al. 2016, equation 5.
    """
    factors = _factors(jacobians, residual)
    arriving = np.asarray(gradient, dtype=np.float64)
    if arriving.shape != factors[0].shape[:1]:
        raise ValueError(f"expected a gradient of shape {factors[0].shape[:1]}, got shape {arriving.shape}")
    rows = [arriving]
    for factor in factors[::-1]:
        rows.append(factor.T @ rows[-1])
    return np.stack(rows[::-1])


def _matrices(weights: Sequence[Given], shape: tuple[int, ...]) -> list[Array]:
    """The weights as float64, if they fit to an input of this shape and to each other."""
    matrices = [np.asarray(matrix, dtype=np.float64) for matrix in weights]
    if not matrices or not shape:
        raise ValueError(f"expected an input (..., width) and at least one matrix, got shape {shape}, {len(matrices)}")
    width = shape[-1]
    for number, matrix in enumerate(matrices):
        if matrix.ndim != 2 or matrix.shape[1] != width:
            raise ValueError(f"expected weights {number} of shape (fan_out, {width}), got shape {matrix.shape}")
        width = matrix.shape[0]
    return matrices


def _factors(jacobians: Sequence[Given], residual: bool) -> list[Array]:
    arrays = [np.asarray(jacobian, dtype=np.float64) for jacobian in jacobians]
    shapes = [array.shape for array in arrays]
    if not arrays or len(shapes[0]) != 2 or shapes[0][0] != shapes[0][1] or len(set(shapes)) != 1:
        raise ValueError(f"expected at least one Jacobian, all of one shape (width, width), got shapes {shapes}")
    return [np.eye(len(array)) + array for array in arrays] if residual else arrays
