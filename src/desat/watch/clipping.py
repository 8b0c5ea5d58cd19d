"""Clipping: told from the gradients before and after it, whoever does it and however."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOLERANCE = {"float64": 1e-5, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}
"""How far the ratio of two gradients may be from another's to count as the same: some roundings of the dtype."""

SMALLEST = {"float64": 1e-37, "float32": 1e-37, "float16": 1e-4, "bfloat16": 1e-37}
"""Gradients below this magnitude, near the dtype's smallest normal number, have lost digits and are not compared."""

POWER_OF_TWO = 1e-6
"""How far the logarithm of a factor may be from a whole number for a loss scale: that product rounds nothing."""


class Clipping(NamedTuple):
    """clip_factor: what all gradients were multiplied by, 1 where they were not.

    clipped_value_share: of the entries other than zero, the share that was cut to one magnitude. growth: norm before
    over norm after.
    """

    clip_factor: float
    clipped_value_share: float
    growth: float


def find_clipping(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    tolerance: NDArray[np.float64],
    elements: NDArray[np.int64],
) -> Clipping | None:
    """What happened between the end of the backward pass and the optimizer's step.

    before, after: entries of the gradients of all parameters, shape (parameters, entries), nan where there is none,
    both without a loss scale. tolerance: of each parameter's dtype. elements: of each parameter. None where there is
    nothing to compare, or where the gradients were changed in a way that is no clipping.

    By norm (Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1): one factor
    for all entries, or one for each parameter; then the factor is that of the global norm. By value: the entries beyond
    a limit have the limit's magnitude, one for all or one for each parameter, and all others were left alone, or
    multiplied by one factor. A factor that is a power of two is taken for a loss scale.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = after / before
    known = np.isfinite(ratio) & (before != 0.0)
    if not known.any():
        return None
    if (ratio == 1.0)[known].all():
        return Clipping(1.0, 0.0, 1.0)
    tolerances = np.broadcast_to(tolerance[:, None], ratio.shape)
    factor = float(np.median(ratio[known]))
    if (np.abs(ratio - factor) <= tolerances * abs(factor))[known].all():
        return _by_norm(factor, float(tolerances[known].max()))
    growth = _growth(before, after, known, elements)
    if (share := _cut_share(after, ratio, known, tolerances)) is not None:
        return Clipping(1.0, share, growth)
    used = known.any(axis=1)
    of_each = np.array([np.median(row[keep]) if keep.any() else 1.0 for row, keep in zip(ratio, known, strict=True)])
    uniform = (np.abs(ratio - of_each[:, None]) <= tolerances * np.abs(of_each[:, None])) | ~known
    if uniform.all() and (of_each <= 1.0 + tolerance)[used].all() and (of_each > 0.0)[used].all():
        return Clipping(1.0 / growth, 0.0, growth)
    shares = [
        0.0 if fits.all() else _cut_share(*(array[None] for array in rows))
        for fits, *rows in zip(uniform, after, ratio, known, tolerances, strict=True)
    ]
    if any(share is None for share in shares):
        return None
    weights = known.sum(axis=1)
    return Clipping(1.0, float(np.dot([share or 0.0 for share in shares], weights) / weights.sum()), growth)


def _by_norm(factor: float, tolerance: float) -> Clipping:
    exponent = np.log2(factor) if factor > 0.0 else 0.0
    if factor >= 1.0 - tolerance or abs(exponent - np.rint(exponent)) < POWER_OF_TWO:
        return Clipping(1.0, 0.0, 1.0)
    return Clipping(factor, 0.0, 1.0 / factor)


def _cut_share(
    after: NDArray[np.float64], ratio: NDArray[np.float64], known: NDArray[np.bool_], tolerance: NDArray[np.float64]
) -> float | None:
    """Share of the entries that were cut to the largest magnitude there is; None if that is not what happened."""
    magnitude = np.abs(after)
    limit = magnitude.max(where=known, initial=0.0)
    at_limit = known & (magnitude >= limit * (1.0 - tolerance))
    rest = known & ~at_limit
    factor = float(np.median(ratio[rest])) if rest.any() else float(ratio.max(where=known, initial=0.0))
    left = (np.abs(ratio - factor) <= tolerance * abs(factor)) | ~rest
    cut = at_limit & (ratio < factor * (1.0 - tolerance))
    few = rest.sum() == 0 and at_limit.sum() < 2
    if few or not left.all() or factor <= 0.0 or not cut.any() or (ratio > factor * (1.0 + tolerance))[known].any():
        return None
    return float((cut if rest.any() else at_limit).sum() / known.sum())


def _growth(
    before: NDArray[np.float64], after: NDArray[np.float64], known: NDArray[np.bool_], elements: NDArray[np.int64]
) -> float:
    """The norm before over that after, each parameter's entries standing for all of its elements."""
    count = np.maximum(known.sum(axis=1), 1)
    largest = np.abs(before).max(where=known, initial=0.0)
    whole = [
        np.dot(np.where(known, np.square(gradients / largest), 0.0).sum(axis=1) / count, elements)
        for gradients in (before, after)
    ]
    return float(np.sqrt(whole[0] / whole[1])) if whole[1] > 0.0 else 1.0
