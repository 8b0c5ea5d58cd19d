"""Low precision: how much of a tensor lies near the ends of a floating-point format, from its histogram.

Histograms count whole powers of two, of a regular sample of the tensor (desat.record.histogram): every limit here is a
power of two, or is taken to the next one. What lies beyond a histogram's ends, below 2**-46 and from 2**16 on, is known
in number but not in place. So of float16 everything can be said; of bfloat16, float32 and float64, whose limits are far
outside, only that nothing is wrong: a share is 0 where the end is empty, and nan, not known, where it is not.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from desat.record.histogram import BINS, LOWEST_EXPONENT
from desat.record.reader import Columns, Record
from desat.record.rows import Site


class Format(NamedTuple):
    """A floating-point format: exponents of two. smallest: of the smallest subnormal number."""

    normal: int
    smallest: int
    largest: int


FORMATS = {
    "float16": Format(-14, -24, 15),
    "bfloat16": Format(-126, -133, 127),
    "float32": Format(-126, -149, 127),
    "float64": Format(-1022, -1074, 1023),
}
"""IEEE 754-2019, table 3.5 (binary16, binary32, binary64); bfloat16 is the upper half of binary32.

The exponents of the smallest normal number (2**-14 is 6.1e-5), of the smallest subnormal one (2**-24 is 6.0e-8), and of
the largest number, which is just below twice that power (65504).
"""

CASTS = ("float16", "bfloat16")
"""The formats of half width, to which mixed precision casts."""


def subnormal_share(counts: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Share of the values other than zero below the dtype's smallest normal number, where digits are lost.

    counts: shape (..., BINS). Exact but for the sample. nan where there are no values, or where it cannot be told.
    """
    return _share_below(counts, FORMATS[dtype].normal)


def overflow_share(counts: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Share of the values other than zero over half of the dtype's largest number: one doubling from infinity.

    Taken from the next power of two on: 32768, say, where half of float16's largest is 32752.
    """
    first = FORMATS[dtype].largest - LOWEST_EXPONENT
    inside = _share(counts, slice(min(first, BINS - 1), None))
    # The last bin takes all that lies beyond it.
    return inside if first <= BINS - 1 else np.where(inside > 0.0, np.nan, inside)


def flushed_share(counts: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Share of the values other than zero that a cast to the dtype, rounding to nearest, makes zero.

    These are below half of the smallest subnormal number; that half itself, which also becomes zero, does not count.
    """
    return _share_below(counts, FORMATS[dtype].smallest - 1)


def low_precision(record: Record, site: Site, quantity: str) -> Columns:
    """Of one tensor of a site by step: `step`, `subnormal` and `overflow` in its own dtype, and what a cast would do.

    The latter are `float16_flushed`, `float16_subnormal`, `float16_overflow`, and the same for bfloat16. All are shares
    of the values other than zero; nan where nothing is known, as in a record without dtypes.
    """
    steps, counts = record.histograms(site, quantity)
    dtypes = np.array([dtype or "" for dtype in record.dtypes(site, quantity)], np.str_)
    columns = {"step": steps.astype(np.float64)}
    own = {"subnormal": np.full(len(steps), np.nan), "overflow": np.full(len(steps), np.nan)}
    for dtype in set(dtypes.tolist()) & FORMATS.keys():
        at = dtypes == dtype
        own["subnormal"][at] = subnormal_share(counts[at], dtype)
        own["overflow"][at] = overflow_share(counts[at], dtype)
    for dtype in CASTS:
        columns[f"{dtype}_flushed"] = flushed_share(counts, dtype)
        columns[f"{dtype}_subnormal"] = subnormal_share(counts, dtype)
        columns[f"{dtype}_overflow"] = overflow_share(counts, dtype)
    return columns | own


def _share_below(counts: NDArray[np.float64], exponent: int) -> NDArray[np.float64]:
    end = exponent - LOWEST_EXPONENT
    below = _share(counts, slice(max(end, 1)))
    # The first bin takes all that lies below it.
    return below if end >= 1 else np.where(below > 0.0, np.nan, below)


def _share(counts: NDArray[np.float64], bins: slice) -> NDArray[np.float64]:
    whole = counts.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(whole > 0.0, counts[..., bins].sum(axis=-1) / whole, np.nan)
