"""Histograms of magnitudes: how a tensor's values spread over the powers of two, in a few bytes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 64
LOWEST_EXPONENT = -47
"""Bin i counts the values with floor(log2(abs(x))) = LOWEST_EXPONENT + i; the ends take what lies beyond.

Zeros count in no bin."""

_LARGEST = 65_535


def pack_histograms(counts: NDArray[np.float64]) -> list[bytes | None]:
    """Counts of shape (rows, BINS), a row each as bytes: the first filled bin, then 16-bit counts up to the last.

    Counts beyond 16 bits are scaled down together. None for a row whose bins are all empty.
    """
    largest = counts.max(axis=1, keepdims=True, initial=0.0)
    scale = _LARGEST / np.maximum(largest, _LARGEST)
    scaled = np.minimum(np.ceil(counts * scale), _LARGEST).astype("<u2")
    filled = counts > 0.0
    firsts: list[int] = filled.argmax(axis=1).tolist()
    ends: list[int] = (BINS - filled[:, ::-1].argmax(axis=1)).tolist()
    octets, packed = scaled.tobytes(), list[bytes | None]()
    for row, (first, end) in enumerate(zip(firsts, ends, strict=True)):
        part = octets[2 * (BINS * row + first) : 2 * (BINS * row + end)]
        packed.append(bytes([first]) + part if filled[row, first] else None)
    return packed


def pack_histogram(counts: ArrayLike) -> bytes | None:
    """One row of `pack_histograms`: counts of shape (BINS,)."""
    return pack_histograms(np.asarray(counts, np.float64)[None])[0]


def unpack_histograms(packed: Sequence[bytes | None]) -> NDArray[np.float64]:
    """The counts, shape (rows, BINS); all zero for None.

    What lies beyond the last bin, and half of a count, is left out.
    """
    counts = np.zeros((len(packed), BINS))
    filled = np.array([row for row, one in enumerate(packed) if one], np.int64)
    if not len(filled):
        return counts
    octets = np.frombuffer(b"".join(one for one in packed if one), np.uint8)
    lengths = np.array([len(one) for one in packed if one], np.int64)
    starts = np.cumsum(lengths) - lengths
    parts = (lengths - 1) // 2
    row = np.repeat(np.arange(len(filled)), parts)
    place = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
    at = starts[row] + 1 + 2 * place
    bins = octets[starts][row].astype(np.int64) + place
    kept = bins < BINS
    counts[filled[row[kept]], bins[kept]] = octets[at[kept]] + 256.0 * octets[at[kept] + 1]
    return counts


def magnitude_quantile(counts: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The magnitude below which `share` of the non-zero values lie; counts of shape (..., BINS), nan where empty.

    Within a bin values are taken to spread evenly over the exponent, so that the error is below a factor of 2.
    """
    whole = counts.sum(axis=-1, keepdims=True)
    reached = np.cumsum(counts, axis=-1)
    index = np.argmax(reached >= share * whole, axis=-1)[..., None]
    inside = np.take_along_axis(counts, index, -1)
    before = np.take_along_axis(reached, index, -1) - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(whole > 0, (share * whole - before) / inside, np.nan)
    return np.exp2(LOWEST_EXPONENT + index + fraction)[..., 0]
