"""Scaled dot-product attention (Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1)."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: NDArray[np.floating], axis: int = -1) -> Array:
    """exp(z) / sum(exp(z)) along `axis`, of any shape; stable, since the largest logit is taken off first.

    A logit of -inf has a weight of 0; where all are -inf all weights are 0, as in PyTorch's attention.
    """
    values = np.asarray(logits, dtype=np.float64)
    largest = values.max(axis=axis, keepdims=True)
    exponentials = np.exp(values - np.where(np.isneginf(largest), 0.0, largest))
    total = exponentials.sum(axis=axis, keepdims=True)
    return exponentials / np.where(total == 0.0, 1.0, total)


def attention_logits(
    query: NDArray[np.floating],
    key: NDArray[np.floating],
    mask: NDArray[np.bool_] | NDArray[np.floating] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Array:
    """What attention takes the softmax of: scale * query key^T, shape (..., queries, keys), -inf where masked.

    query: shape (..., queries, width). key: shape (..., keys, width). mask: broadcastable to the logits; a boolean one
    is True where a query may see a key, any other is added. causal: query i sees the keys up to i. scale: if None it is
    1 / sqrt(width), which makes the logits' variance 1 where the components' is 1; with 1.0 it is the width.
    Raises ValueError where shapes do not fit.
    """
    queries, keys = np.asarray(query, dtype=np.float64), np.asarray(key, dtype=np.float64)
    if queries.ndim < 2 or keys.ndim < 2 or queries.shape[-1] != keys.shape[-1]:
        raise ValueError(
            "expected query (..., queries, width) and key (..., keys, width) of one width, "
            f"got shapes {queries.shape} and {keys.shape}"
        )
    factor = 1.0 / np.sqrt(queries.shape[-1]) if scale is None else scale
    logits = factor * (queries @ np.swapaxes(keys, -1, -2))
    if mask is not None:
        bias = np.where(mask, 0.0, -np.inf) if np.asarray(mask).dtype == np.bool_ else np.asarray(mask, np.float64)
        logits = logits + bias
    if causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=np.bool_), logits, -np.inf)
    return logits


def scaled_dot_product_attention(
    query: NDArray[np.floating],
    key: NDArray[np.floating],
    value: NDArray[np.floating],
    mask: NDArray[np.bool_] | NDArray[np.floating] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """The output, shape (..., queries, values' width), and the weights, shape (..., queries, keys).

    value: shape (..., keys, any width); the other arguments as for `attention_logits`. The weights of a query sum to 1,
    or to 0 if it sees no key. Raises ValueError where shapes do not fit.
    """
    values = np.asarray(value, dtype=np.float64)
    if values.ndim < 2 or values.shape[-2] != np.shape(key)[-2]:
        raise ValueError(f"expected value (..., keys, width) for key {np.shape(key)}, got shape {values.shape}")
    weights = softmax(attention_logits(query, key, mask, causal, scale))
    return weights @ values, weights


def relative_entropy(weights: NDArray[np.floating], visible: NDArray[np.bool_]) -> Array:
    """Entropy of each row of attention weights over its largest possible value, between 0 (one key) and 1 (all alike).

    weights: shape (..., keys), rows that sum to 1. visible: likewise, which keys the row may see; the largest entropy
    is the log of their number. nan for a row that sees fewer than two keys.
    """
    probabilities = np.asarray(weights, dtype=np.float64)
    logs = np.log(np.where(probabilities > 0.0, probabilities, 1.0))
    number = visible.sum(axis=-1)
    largest = np.log(np.where(number >= 2, number, np.nan))
    return -(probabilities * logs).sum(axis=-1) / largest
