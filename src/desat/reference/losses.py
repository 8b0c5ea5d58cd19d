"""Losses, computed from logits so that nothing overflows and no logarithm of 0 is taken.

Likelihoods are in nats (natural logarithms), squared errors in the square of the target's unit. `reduction` is "mean"
over all targets, "sum", or "none" for the shape of the targets; an array in each case, of no axes for the first two.
Everything is float64. Formulas are those of torch.nn.functional.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Given = NDArray[np.floating]
Reduction = Literal["mean", "sum", "none"]


def log_softmax(logits: Given, axis: int = -1) -> Array:
    """log(exp(z) / sum(exp(z))) along `axis`, of any shape; the largest logit is taken off first.

    Source: Goodfellow, Bengio and Courville 2016, section 6.2.2.3.
    """
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def nll(log_probabilities: Given, targets: NDArray[np.integer], reduction: Reduction = "mean") -> Array:
    """Minus the log probability of the target class.

    log_probabilities: (batch, classes) or (batch, classes, *positions). targets: (batch, *positions), integers from 0
    to classes - 1. Raises ValueError where shapes do not fit, for targets that are no classes, and if there are none.
    """
    values, classes = np.asarray(log_probabilities, dtype=np.float64), np.asarray(targets)
    if values.ndim < 2 or classes.shape != (values.shape[0], *values.shape[2:]):
        raise ValueError(
            "expected (batch, classes, *positions) and targets (batch, *positions), "
            f"got shapes {values.shape} and {classes.shape}"
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"expected targets that are integers, got {classes.dtype} of shape {classes.shape}")
    if classes.size and not 0 <= classes.min() <= classes.max() < values.shape[1]:
        raise ValueError(
            f"expected targets from 0 to {values.shape[1] - 1} for shape {values.shape}, "
            f"got {classes.min()} to {classes.max()}"
        )
    return _reduced(-np.take_along_axis(values, classes[:, None], axis=1)[:, 0], reduction)


def cross_entropy(logits: Given, targets: NDArray[np.integer], reduction: Reduction = "mean") -> Array:
    """`nll` of the logits' `log_softmax` over axis 1; shapes and errors as for `nll`.

    Its gradient at the logits is softmax - one-hot, which does not vanish where the softmax is sure and wrong: the
    logarithm undoes the exponential's saturation. Source: Goodfellow, Bengio and Courville 2016, section 6.2.2.3.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim < 2:
        raise ValueError(f"expected logits (batch, classes, *positions), got shape {values.shape}")
    return nll(log_softmax(values, axis=1), targets, reduction)


def binary_cross_entropy_with_logits(logits: Given, targets: Given, reduction: Reduction = "mean") -> Array:
    """-t log(sigmoid(z)) - (1 - t) log(1 - sigmoid(z)), as max(z, 0) - z t + log(1 + exp(-abs(z))).

    logits, targets: of one shape, any; targets between 0 and 1. Its gradient at the logits is sigmoid(z) - t. Raises
    ValueError where shapes differ, for targets outside [0, 1], and if there are none.
    Source: Goodfellow, Bengio and Courville 2016, section 6.2.2.2.
    """
    values, wanted = _alike(logits, targets, "logits")
    if not ((wanted >= 0.0) & (wanted <= 1.0)).all():
        raise ValueError(
            f"expected targets between 0 and 1 of shape {wanted.shape}, got {wanted.min()} to {wanted.max()}"
        )
    return _reduced(np.maximum(values, 0.0) - values * wanted + np.log1p(np.exp(-np.abs(values))), reduction)


def mean_squared_error(predictions: Given, targets: Given, reduction: Reduction = "mean") -> Array:
    """(prediction - target)**2, in the square of their unit; both of one shape, any.

    Raises ValueError where shapes differ, which would be broadcast unseen, and if there are no targets.
    """
    values, wanted = _alike(predictions, targets, "predictions")
    return _reduced((values - wanted) ** 2, reduction)


def _alike(given: Given, targets: Given, name: str) -> tuple[Array, Array]:
    values, wanted = np.asarray(given, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if values.shape != wanted.shape:
        raise ValueError(f"expected {name} and targets of one shape, got shapes {values.shape} and {wanted.shape}")
    return values, wanted


def _reduced(losses: Array, reduction: Reduction) -> Array:
    if losses.size == 0:
        raise ValueError(f"expected at least one target, got shape {losses.shape}")
    if reduction == "none":
        return np.asarray(losses)
    if reduction not in ("mean", "sum"):
        raise ValueError(f'expected the reduction "mean", "sum" or "none", got {reduction!r}')
    return np.asarray(losses.mean() if reduction == "mean" else losses.sum())
