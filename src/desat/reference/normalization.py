"""Normalization layers in training mode: (x - mean) / sqrt(variance + eps) * gamma + beta, over different axes.

Batch: Ioffe and Szegedy 2015, algorithm 1. Layer: Ba, Kiros and Hinton 2016, section 3. Root mean square: Zhang and
Sennrich 2019, section 4. Group: Wu and He 2018, section 3. Variances are those of the values at hand, divided by their
number, and taken about the mean in a second pass, so that values far from 0 lose nothing. Numbers carry no unit;
everything is float64 and returned in the shape of x. gamma is 1 and beta 0 where they are None.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Given = NDArray[np.floating]

EPSILON = 1e-5
"""What is added to the variance: PyTorch's default."""

RMS_EPSILON = 1e-6
"""What is added to the mean square: the usual choice of language models. PyTorch's default depends on the dtype."""


def batch_norm(x: Given, gamma: Given | None = None, beta: Given | None = None, eps: float = EPSILON) -> Array:
    """Each feature normalized over the batch, and over the positions where there are any.

    x: (batch, features) or (batch, channels, *spatial). gamma, beta: (features,) or (channels,). Raises ValueError
    where shapes do not fit, and where a feature has a single value, of which nothing but beta would remain.
    The deck's sketch takes one mean and one variance of the whole array instead, `normalize_over_everything`, which is
    not batch normalization: features of different scale keep their scales.
    Source: Ioffe and Szegedy 2015, algorithm 1; of convolutions section 3.2.
    """
    values = _with_channels(x)
    axes = (0, *range(2, values.ndim))
    if values.size <= values.shape[1]:
        raise ValueError(f"expected more than one value per feature, got shape {values.shape}")
    channels = (values.shape[1],)
    return _affine(_standardized(values, axes, eps), gamma, beta, channels, (1, -1, *[1] * (values.ndim - 2)))


def normalize_over_everything(x: Given, gamma: float = 1.0, beta: float = 0.0, eps: float = EPSILON) -> Array:
    """The deck's sketch of batch normalization: one mean and one variance of the whole array, of any shape.

    Kept to compare it with `batch_norm` on the slide. A feature far from the others stays far from them: its mean is
    not 0 afterwards and its variance not 1. Raises ValueError for an array without values.
    """
    values = np.asarray(x, dtype=np.float64)
    if values.size == 0:
        raise ValueError(f"expected at least one value, got shape {values.shape}")
    return _standardized(values, tuple(range(values.ndim)), eps) * gamma + beta


def layer_norm(
    x: Given, gamma: Given | None = None, beta: Given | None = None, eps: float = EPSILON, dimensions: int = 1
) -> Array:
    """Each sample normalized over its last `dimensions` axes, whatever the batch holds.

    x: (..., *features). gamma, beta: the shape of those axes. Raises ValueError where shapes do not fit.
    Source: Ba, Kiros and Hinton 2016, section 3.
    """
    values, axes, features = _with_features(x, dimensions)
    return _affine(_standardized(values, axes, eps), gamma, beta, features, features)


def rms_norm(x: Given, gamma: Given | None = None, eps: float = RMS_EPSILON, dimensions: int = 1) -> Array:
    """A layer norm that leaves the mean: x / sqrt(mean square + eps) * gamma over the last `dimensions` axes.

    x: (..., *features). gamma: the shape of those axes. Raises ValueError where shapes do not fit.
    Source: Zhang and Sennrich 2019, section 4.
    """
    values, axes, features = _with_features(x, dimensions)
    normalized = values / np.sqrt(np.mean(values**2, axis=axes, keepdims=True) + eps)
    return _affine(normalized, gamma, None, features, features)


def group_norm(
    x: Given, groups: int, gamma: Given | None = None, beta: Given | None = None, eps: float = EPSILON
) -> Array:
    """Each sample normalized within `groups` equal groups of neighbouring channels.

    x: (batch, channels, *spatial). gamma, beta: (channels,). One group is a layer norm over channels and positions; as
    many groups as channels is instance normalization. Raises ValueError where shapes do not fit or the channels cannot
    be divided. Source: Wu and He 2018, section 3.1.
    """
    values = _with_channels(x)
    if groups < 1 or values.shape[1] % groups != 0:
        raise ValueError(f"expected channels that can be divided into {groups} groups, got shape {values.shape}")
    grouped = values.reshape(values.shape[0], groups, -1)
    normalized = _standardized(grouped, (2,), eps).reshape(values.shape)
    return _affine(normalized, gamma, beta, (values.shape[1],), (1, -1, *[1] * (values.ndim - 2)))


def _standardized(values: Array, axes: tuple[int, ...], eps: float) -> Array:
    centred = values - values.mean(axis=axes, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=axes, keepdims=True) + eps)


def _with_channels(x: Given) -> Array:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim < 2 or values.size == 0:
        raise ValueError(f"expected (batch, features) or (batch, channels, *spatial), got shape {values.shape}")
    return values


def _with_features(x: Given, dimensions: int) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    """The values, the axes of their features and the shape of these."""
    values = np.asarray(x, dtype=np.float64)
    if not 1 <= dimensions <= values.ndim or values.size == 0:
        raise ValueError(f"expected at least {max(dimensions, 1)} axes of features, got shape {values.shape}")
    return values, tuple(range(-dimensions, 0)), values.shape[-dimensions:]


def _affine(
    values: Array, gamma: Given | None, beta: Given | None, expected: tuple[int, ...], laid_out: tuple[int, ...]
) -> Array:
    """Multiplied by gamma and shifted by beta, each of the shape expected and laid out to be broadcast along values."""
    for name, given in (("gamma", gamma), ("beta", beta)):
        if given is not None and np.shape(given) != expected:
            raise ValueError(f"expected {name} of shape {expected}, got shape {np.shape(given)}")
    if gamma is not None:
        values = values * np.asarray(gamma, dtype=np.float64).reshape(laid_out)
    if beta is not None:
        values = values + np.asarray(beta, dtype=np.float64).reshape(laid_out)
    return values
