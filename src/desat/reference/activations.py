"""Activation functions, their derivatives, and where a derivative says that they are saturated.

Every function is elementwise: it takes numbers without a unit, of any shape, and returns float64 of that shape. None
overflows or loses its tail: sigmoid(-700) is 1e-304, not 0. `x_derivative` is the derivative of `x`; at a kink it is
PyTorch's choice, which is the derivative from the left. These are the functions of the deck's slide on activations;
sources stand with each. What is not a finite number gives what IEEE arithmetic gives, nan where 0 meets infinity.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
"""The pair for which mean 0 and variance 1 are a stable fixed point (Klambauer et al. 2017, section 2)."""

GELU_CUBIC = 0.044715
"""Weight of the cube in the tanh form of GELU (Hendrycks and Gimpel 2016, section 2)."""

BELL_END = 40.0
"""exp(-z**2 / 2) is 0 in float64 beyond this, while z**2 overflows only beyond 1e154."""

GRID_POINTS = 8001
CROSSING_WIDTH = 1e-12
"""A crossing is bisected until its bracket is this wide, relative to it or, within 1, absolutely."""


def sigmoid(x: ArrayLike) -> Array:
    """1 / (1 + exp(-x)), between 0 and 1."""
    values = _numbers(x)
    decayed = np.exp(-np.abs(values))
    return np.where(values >= 0.0, 1.0, decayed) / (1.0 + decayed)


def sigmoid_derivative(x: ArrayLike) -> Array:
    """sigmoid(x) * sigmoid(-x), at most 1/4 at 0: ten such factors in a row leave 1e-6 of a gradient."""
    values = _numbers(x)
    return sigmoid(values) * sigmoid(-values)


def tanh(x: ArrayLike) -> Array:
    """The hyperbolic tangent, between -1 and 1."""
    return np.asarray(np.tanh(_numbers(x)))


def tanh_derivative(x: ArrayLike) -> Array:
    """1 - tanh(x)**2, at most 1 at 0; computed as 4 sigmoid(2x) sigmoid(-2x), which keeps the tail."""
    return 4.0 * sigmoid_derivative(2.0 * _numbers(x))


def relu(x: ArrayLike) -> Array:
    """max(x, 0) (Nair and Hinton 2010, section 2)."""
    return np.asarray(np.maximum(_numbers(x), 0.0))


def relu_derivative(x: ArrayLike) -> Array:
    """1 above 0, else 0."""
    return np.where(_numbers(x) > 0.0, 1.0, 0.0)


def leaky_relu(x: ArrayLike, alpha: float = 0.01) -> Array:
    """Leaky ReLU: x above 0, else alpha * x (Maas, Hannun and Ng 2013, section 2)."""
    values = _numbers(x)
    return np.where(values > 0.0, values, alpha * values)


def leaky_relu_derivative(x: ArrayLike, alpha: float = 0.01) -> Array:
    """1 above 0, else alpha."""
    return np.where(_numbers(x) > 0.0, 1.0, alpha)


def elu(x: ArrayLike, alpha: float = 1.0) -> Array:
    """Exponential linear unit: x above 0, else alpha * (exp(x) - 1) (Clevert et al. 2016, section 3)."""
    values = _numbers(x)
    return np.where(values > 0.0, values, alpha * np.expm1(np.minimum(values, 0.0)))


def elu_derivative(x: ArrayLike, alpha: float = 1.0) -> Array:
    """1 above 0, else alpha * exp(x)."""
    values = _numbers(x)
    return np.where(values > 0.0, 1.0, alpha * np.exp(np.minimum(values, 0.0)))


def selu(x: ArrayLike) -> Array:
    """SELU_SCALE * elu(x, SELU_ALPHA) (Klambauer et al. 2017, section 2)."""
    return SELU_SCALE * elu(x, SELU_ALPHA)


def selu_derivative(x: ArrayLike) -> Array:
    """SELU_SCALE above 0, else SELU_SCALE * SELU_ALPHA * exp(x)."""
    return SELU_SCALE * elu_derivative(x, SELU_ALPHA)


def gelu(x: ArrayLike) -> Array:
    """GELU, exact: x * P(N <= x) for N standard normal (Hendrycks and Gimpel 2016, section 2)."""
    values = _numbers(x)
    return values * _normal_probability(values)


def gelu_derivative(x: ArrayLike) -> Array:
    """P(N <= x) + x * density(x): at most 1.129 at sqrt(2), at least -0.129 at -sqrt(2)."""
    values = _numbers(x)
    density = np.exp(-0.5 * np.clip(values, -BELL_END, BELL_END) ** 2) / math.sqrt(2.0 * math.pi)
    return _normal_probability(values) + values * density


def gelu_tanh(x: ArrayLike) -> Array:
    """GELU with the normal distribution approximated by a tanh (Hendrycks and Gimpel 2016, section 2).

    x/2 * (1 + tanh(u)), u = sqrt(2/pi) * (x + GELU_CUBIC * x**3), computed as x * sigmoid(2u). Within 5e-4 of `gelu`.
    """
    values = _numbers(x)
    return values * sigmoid(_twice_u(values))


def gelu_tanh_derivative(x: ArrayLike) -> Array:
    """sigmoid(2u) + x * sigmoid'(2u) * 2u'."""
    values = _numbers(x)
    bounded = np.clip(values, -BELL_END, BELL_END)
    slope = 2.0 * math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * GELU_CUBIC * bounded**2)
    doubled = _twice_u(values)
    return sigmoid(doubled) + values * sigmoid_derivative(doubled) * slope


def silu(x: ArrayLike) -> Array:
    """SiLU, also called swish: x * sigmoid(x) (Elfwing, Uchibe and Doya 2018, section 2)."""
    values = _numbers(x)
    return values * sigmoid(values)


def silu_derivative(x: ArrayLike) -> Array:
    """sigmoid(x) * (1 + x * sigmoid(-x))."""
    values = _numbers(x)
    return sigmoid(values) * (1.0 + values * sigmoid(-values))


def softsign(x: ArrayLike) -> Array:
    """Softsign: x / (1 + abs(x)), between -1 and 1 (Glorot and Bengio 2010, section 3)."""
    values = _numbers(x)
    return values / (1.0 + np.abs(values))


def softsign_derivative(x: ArrayLike) -> Array:
    """1 / (1 + abs(x))**2, which goes to 0 as a power, not exponentially."""
    return (1.0 / (1.0 + np.abs(_numbers(x)))) ** 2


def softplus(x: ArrayLike) -> Array:
    """log(1 + exp(x)), above 0 (Glorot, Bordes and Bengio 2011, section 3)."""
    return np.asarray(np.logaddexp(0.0, _numbers(x)))


def softplus_derivative(x: ArrayLike) -> Array:
    """sigmoid(x)."""
    return sigmoid(x)


class Activation(NamedTuple):
    """An elementwise function and its derivative."""

    function: Callable[[ArrayLike], Array]
    derivative: Callable[[ArrayLike], Array]


ACTIVATIONS = {
    "sigmoid": Activation(sigmoid, sigmoid_derivative),
    "tanh": Activation(tanh, tanh_derivative),
    "relu": Activation(relu, relu_derivative),
    "leaky_relu": Activation(leaky_relu, leaky_relu_derivative),
    "elu": Activation(elu, elu_derivative),
    "selu": Activation(selu, selu_derivative),
    "gelu": Activation(gelu, gelu_derivative),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_derivative),
    "silu": Activation(silu, silu_derivative),
    "softsign": Activation(softsign, softsign_derivative),
    "softplus": Activation(softplus, softplus_derivative),
}
"""Every function of this module by its name, with alpha at its default."""


def saturated_intervals(
    derivative: Callable[[Array], ArrayLike], low: float = -20.0, high: float = 20.0, share: float = 0.05
) -> list[tuple[float, float]]:
    """The intervals of [low, high] on which abs(f') is below `share` of its maximum there, in ascending order.

    derivative: f', elementwise. An interval that begins at `low` or ends at `high` may go on beyond. Looked for on a
    grid of GRID_POINTS, so that an interval narrower than its step, 0.005 by default, may be missed; the ends of an
    interval are exact to CROSSING_WIDTH. Raises ValueError for an empty range, a share outside (0, 1), and a derivative
    that changes the shape, is not finite, or is 0 everywhere.
    Source: the saturation regimes of Glorot and Bengio 2010, section 3; the share of 5 % is desat's definition.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"expected finite low < high, got low {low} and high {high}")
    if not 0.0 < share < 1.0:
        raise ValueError(f"expected a share of the maximum between 0 and 1, got {share}")

    def gain(points: Array) -> Array:
        gains = np.abs(_numbers(derivative(points)))
        if gains.shape != points.shape or not np.isfinite(gains).all():
            raise ValueError(f"expected a finite derivative of shape {points.shape}, got shape {gains.shape}: {gains}")
        return gains

    grid = np.linspace(low, high, GRID_POINTS)
    gains = gain(grid)
    limit = share * _peak(gain, grid, gains)
    if limit == 0.0:
        raise ValueError(f"expected a derivative that is not 0 everywhere between {low} and {high}")
    saturated = gains < limit
    changes = np.flatnonzero(saturated[1:] != saturated[:-1])
    crossings = [_crossing(gain, limit, float(grid[index]), float(grid[index + 1])) for index in changes]
    bounds = [float(low), *crossings, float(high)]
    first = 0 if saturated[0] else 1
    return list(zip(bounds[first:-1:2], bounds[first + 1 :: 2], strict=True))


def _numbers(x: ArrayLike) -> Array:
    return np.asarray(x, dtype=np.float64)


_complementary_error = np.vectorize(math.erfc, otypes=[np.float64])


def _normal_probability(values: Array) -> Array:
    # By erfc, since 1 + erf is 0 below -8.3, where the probability is 5e-17.
    return 0.5 * _complementary_error(-values / math.sqrt(2.0))


def _twice_u(values: Array) -> Array:
    bounded = np.clip(values, -BELL_END, BELL_END)
    return 2.0 * math.sqrt(2.0 / math.pi) * (bounded + GELU_CUBIC * bounded**3)


def _peak(gain: Callable[[Array], Array], grid: Array, gains: Array) -> float:
    """The maximum of the gain: the grid's, refined by thirds between its neighbours."""
    at = int(np.argmax(gains))
    left, right = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    peak = float(gains[at])
    while right - left > 1e-9 * max(1.0, abs(left)):
        thirds = np.array([left + (right - left) / 3.0, right - (right - left) / 3.0])
        lower, upper = gain(thirds)
        peak = max(peak, float(lower), float(upper))
        left, right = (float(thirds[0]), right) if lower < upper else (left, float(thirds[1]))
    return peak


def _crossing(gain: Callable[[Array], Array], limit: float, left: float, right: float) -> float:
    """Where, between two points on different sides of the limit, the gain crosses it."""

    def is_saturated(point: float) -> bool:
        return bool(gain(np.array([point]))[0] < limit)

    left_is_saturated = is_saturated(left)
    while right - left > CROSSING_WIDTH * max(1.0, abs(left)):
        middle = (left + right) / 2.0
        if is_saturated(middle) == left_is_saturated:
            left = middle
        else:
            right = middle
    return (left + right) / 2.0
