"""Initial weights, and the variance of activations that they lead to, layer by layer.

Weights have the shape (fan_out, fan_in), as torch.nn.Linear's: y = x W^T. `gain` multiplies the standard deviation; it
makes good what the activation takes away. Xavier: Glorot and Bengio 2010, section 4.2.1. He: He et al. 2015, "Delving
Deep into Rectifiers", section 2.2. LeCun: LeCun et al. 1998, "Efficient BackProp", section 4.6. Orthogonal: Saxe,
McClelland and Ganguli 2014.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

Initialization = Callable[[tuple[int, int], Generator], Array]
"""((fan_out, fan_in), rng) -> weights of that shape."""

RELU_GAIN = math.sqrt(2.0)
"""ReLU halves the mean square of a symmetric input, and this makes it good (He et al. 2015, equation 10)."""

UNIFORM_REACH = math.sqrt(3.0)
"""The uniform distribution over [-a, a] has the standard deviation a / sqrt(3)."""


def xavier_std(fan_in: int, fan_out: int, gain: float = 1.0) -> float:
    """Xavier: gain * sqrt(2 / (fan_in + fan_out)), between what keeps the signal and what keeps the gradient.

    Raises ValueError for a fan below 1. Source: Glorot and Bengio 2010, equation 12.
    """
    _require_fans(fan_out, fan_in)
    return gain * math.sqrt(2.0 / (fan_in + fan_out))


def he_std(fan_in: int, gain: float = RELU_GAIN) -> float:
    """He: gain / sqrt(fan_in), keeps the mean square of the signal through ReLU; with fan_out, that of the gradient.

    Raises ValueError for a fan below 1. Source: He et al. 2015, equations 10 and 14.
    """
    _require_fans(1, fan_in)
    return gain / math.sqrt(fan_in)


def lecun_std(fan_in: int, gain: float = 1.0) -> float:
    """LeCun: gain / sqrt(fan_in), keeps the variance of the signal through a linear layer, and is SELU's choice.

    Raises ValueError for a fan below 1. Source: LeCun et al. 1998, section 4.6.
    """
    return he_std(fan_in, gain)


def xavier_uniform(shape: tuple[int, int], rng: Generator, gain: float = 1.0) -> Array:
    """Uniform weights of standard deviation `xavier_std`: over gain * sqrt(6 / (fan_in + fan_out)) to both sides."""
    fan_out, fan_in = _fans(shape)
    return _uniform(shape, rng, xavier_std(fan_in, fan_out, gain))


def xavier_normal(shape: tuple[int, int], rng: Generator, gain: float = 1.0) -> Array:
    """Normal weights of standard deviation `xavier_std`."""
    fan_out, fan_in = _fans(shape)
    return xavier_std(fan_in, fan_out, gain) * rng.standard_normal(shape)


def he_uniform(shape: tuple[int, int], rng: Generator, gain: float = RELU_GAIN) -> Array:
    """Uniform weights of standard deviation `he_std`: over gain * sqrt(3 / fan_in) to both sides."""
    return _uniform(shape, rng, he_std(_fans(shape)[1], gain))


def he_normal(shape: tuple[int, int], rng: Generator, gain: float = RELU_GAIN) -> Array:
    """Normal weights of standard deviation `he_std`."""
    return he_std(_fans(shape)[1], gain) * rng.standard_normal(shape)


def lecun_normal(shape: tuple[int, int], rng: Generator, gain: float = 1.0) -> Array:
    """Normal weights of standard deviation `lecun_std`."""
    return lecun_std(_fans(shape)[1], gain) * rng.standard_normal(shape)


def orthogonal(shape: tuple[int, int], rng: Generator, gain: float = 1.0) -> Array:
    """Orthonormal rows, or columns if there are more rows, times the gain, which every singular value then is.

    All such matrices are alike likely. Raises ValueError for a fan below 1.
    Source: Saxe, McClelland and Ganguli 2014; drawn as Mezzadri 2007, section 5, tells.
    """
    fan_out, fan_in = _fans(shape)
    q, r = np.linalg.qr(rng.standard_normal((max(fan_out, fan_in), min(fan_out, fan_in))))
    # The factorization chooses the signs of r's diagonal as it likes; with these made 1 it is unique, and q is uniform.
    q = q * np.where(np.diagonal(r) < 0.0, -1.0, 1.0)
    return gain * (q if fan_out >= fan_in else q.T)


def variance_through(
    depth: int,
    width: int,
    batch: int,
    activation: Callable[[Array], ArrayLike],
    init: Initialization,
    rng: Generator,
) -> Array:
    """Variance of the activations over batch and units, shape (depth + 1,): of the input, then after each layer.

    The input is standard normal, (batch, width), and drawn first; every layer is activation(x W^T) with W of shape
    (width, width) from `init`, without biases. Raises ValueError for a depth, width or batch below 1, and where
    `init` or `activation` returns another shape. Source: the experiment of Glorot and Bengio 2010, section 4.2.
    """
    if min(depth, width, batch) < 1:
        raise ValueError(f"expected depth, width and batch of at least 1, got {depth}, {width} and {batch}")
    signal = rng.standard_normal((batch, width))
    variances = [signal.var()]
    for _ in range(depth):
        weights = np.asarray(init((width, width), rng), dtype=np.float64)
        if weights.shape != (width, width):
            raise ValueError(f"expected weights of shape {(width, width)}, got shape {weights.shape}")
        signal = np.asarray(activation(signal @ weights.T), dtype=np.float64)
        if signal.shape != (batch, width):
            raise ValueError(f"expected activations of shape {(batch, width)}, got shape {signal.shape}")
        variances.append(signal.var())
    return np.array(variances)


def _uniform(shape: tuple[int, int], rng: Generator, std: float) -> Array:
    bound = UNIFORM_REACH * std
    return rng.uniform(-bound, bound, shape)


def _fans(shape: tuple[int, int]) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"expected a shape (fan_out, fan_in), got {shape}")
    _require_fans(*shape)
    return shape


def _require_fans(fan_out: int, fan_in: int) -> None:
    if min(fan_out, fan_in) < 1:
        raise ValueError(f"expected fans of at least 1, got fan_out {fan_out} and fan_in {fan_in}")
