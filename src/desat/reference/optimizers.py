"""Single steps of optimizers as pure functions: (parameter, gradient, state) -> (parameter, state).

Nothing that is given is changed: parameter, gradient and the arrays of a state are left as they are, and what is
returned shares no memory with them. The deck's sketch of Adam writes into the parameter and the moments that it is
given (`-=`, `*=`), so that whoever kept the values before the step, to compare or to go back, finds them changed too.

Parameter and gradient are arrays of one shape, of any; everything is float64. A state of None begins the run. The
learning rate is in units of the parameter per unit of the gradient for SGD and momentum, and in units of the parameter
for the others, whose steps are divided by the gradient's size. `weight_decay` adds weight_decay * parameter to the
gradient, except for AdamW. Every function raises ValueError where shapes do not fit, for a negative learning rate,
weight decay or epsilon, and for a decay rate outside [0, 1). Formulas and defaults are those of torch.optim.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Given = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class MomentumState:
    """velocity: the decaying sum of gradients, in the shape of the parameter."""

    velocity: Array


@dataclass(frozen=True, eq=False)
class SquaresState:
    """squares: the sum (AdaGrad) or decaying mean (RMSprop) of squared gradients, in the shape of the parameter."""

    squares: Array


@dataclass(frozen=True, eq=False)
class AdamState:
    """steps: taken so far. first, second: decaying means of gradients and of their squares, both begun at 0."""

    steps: int
    first: Array
    second: Array


def sgd_step(
    parameter: Given, gradient: Given, state: None = None, *, learning_rate: float = 1e-3, weight_decay: float = 0.0
) -> tuple[Array, None]:
    """Gradient descent: p - learning_rate * g, which needs no state (Robbins and Monro 1951)."""
    values, slope = _checked(parameter, gradient, learning_rate, weight_decay)
    return values - learning_rate * slope, state


def momentum_step(
    parameter: Given,
    gradient: Given,
    state: MomentumState | None = None,
    *,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[Array, MomentumState]:
    """Momentum: v = momentum * v + g, p - learning_rate * v; Nesterov: p - learning_rate * (g + momentum * v).

    Source: Sutskever et al. 2013, section 2, with the learning rate outside of v, as in PyTorch.
    """
    values, slope = _checked(parameter, gradient, learning_rate, weight_decay)
    _require_decay("momentum", momentum)
    velocity = momentum * _kept(None if state is None else state.velocity, values, "velocity") + slope
    direction = slope + momentum * velocity if nesterov else velocity
    return values - learning_rate * direction, MomentumState(velocity)


def adagrad_step(
    parameter: Given,
    gradient: Given,
    state: SquaresState | None = None,
    *,
    learning_rate: float = 1e-2,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
) -> tuple[Array, SquaresState]:
    """AdaGrad: s = s + g**2, p - learning_rate * g / (sqrt(s) + eps): steps shrink as 1 / sqrt(number of steps).

    Source: Duchi, Hazan and Singer 2011, section 1.1, the diagonal form.
    """
    values, slope = _checked(parameter, gradient, learning_rate, weight_decay, eps)
    squares = _kept(None if state is None else state.squares, values, "squares") + slope**2
    return values - learning_rate * slope / (np.sqrt(squares) + eps), SquaresState(squares)


def rmsprop_step(
    parameter: Given,
    gradient: Given,
    state: SquaresState | None = None,
    *,
    learning_rate: float = 1e-2,
    decay: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Array, SquaresState]:
    """RMSprop: s = decay * s + (1 - decay) * g**2, p - learning_rate * g / (sqrt(s) + eps).

    The mean begins at 0 and is not corrected for it, so that the first step is learning_rate / sqrt(1 - decay).
    Source: Tieleman and Hinton 2012, lecture 6.5; epsilon outside of the root, as in PyTorch.
    """
    values, slope = _checked(parameter, gradient, learning_rate, weight_decay, eps)
    _require_decay("decay", decay)
    squares = decay * _kept(None if state is None else state.squares, values, "squares") + (1.0 - decay) * slope**2
    return values - learning_rate * slope / (np.sqrt(squares) + eps), SquaresState(squares)


def adam_step(
    parameter: Given,
    gradient: Given,
    state: AdamState | None = None,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Array, AdamState]:
    """Adam: p - learning_rate * m / (sqrt(s) + eps).

    m and s are decaying means of g and g**2, divided by 1 - beta**steps for their begin at 0.
    The first step is learning_rate in size whatever the gradient's, unless that is near eps.
    Source: Kingma and Ba 2015, algorithm 1.
    """
    values, slope = _checked(parameter, gradient, learning_rate, weight_decay, eps)
    return _adam(values, slope, state, learning_rate, betas, eps)


def adamw_step(
    parameter: Given,
    gradient: Given,
    state: AdamState | None = None,
    *,
    learning_rate: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> tuple[Array, AdamState]:
    """Adam's step from p * (1 - learning_rate * weight_decay): the decay is not divided by the gradient's size.

    Source: Loshchilov and Hutter 2019, algorithm 2, with the decay scaled by the learning rate, as in PyTorch.
    """
    values, slope = _checked(parameter, gradient, learning_rate, weight_decay, eps, couple=False)
    return _adam(values * (1.0 - learning_rate * weight_decay), slope, state, learning_rate, betas, eps)


def _adam(
    values: Array, slope: Array, state: AdamState | None, learning_rate: float, betas: tuple[float, float], eps: float
) -> tuple[Array, AdamState]:
    for name, beta in zip(("the first beta", "the second beta"), betas, strict=True):
        _require_decay(name, beta)
    steps = 1 if state is None else state.steps + 1
    before = _kept(None if state is None else state.first, values, "first moment")
    squares_before = _kept(None if state is None else state.second, values, "second moment")
    first = betas[0] * before + (1.0 - betas[0]) * slope
    second = betas[1] * squares_before + (1.0 - betas[1]) * slope**2
    corrected, corrected_squares = first / (1.0 - betas[0] ** steps), second / (1.0 - betas[1] ** steps)
    stepped = values - learning_rate * corrected / (np.sqrt(corrected_squares) + eps)
    return stepped, AdamState(steps, first, second)


def _checked(
    parameter: Given,
    gradient: Given,
    learning_rate: float,
    weight_decay: float,
    eps: float = 0.0,
    couple: bool = True,
) -> tuple[Array, Array]:
    """The parameter, and the gradient, to which the weight decay is added if they are coupled."""
    for name, number in (("learning rate", learning_rate), ("weight decay", weight_decay), ("epsilon", eps)):
        if not number >= 0.0:
            raise ValueError(f"expected a {name} of at least 0, got {number}")
    values, slope = np.asarray(parameter, dtype=np.float64), np.asarray(gradient, dtype=np.float64)
    if values.shape != slope.shape:
        raise ValueError(f"expected a gradient of the parameter's shape {values.shape}, got shape {slope.shape}")
    return values, slope + weight_decay * values if couple and weight_decay else slope


def _require_decay(name: str, rate: float) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"expected {name} in [0, 1), got {rate}")


def _kept(array: Array | None, values: Array, name: str) -> Array:
    """An array of the state, or zeros at the first step."""
    if array is None:
        return np.zeros_like(values)
    if np.shape(array) != values.shape:
        raise ValueError(f"expected a state whose {name} has the shape {values.shape}, got shape {np.shape(array)}")
    return array
