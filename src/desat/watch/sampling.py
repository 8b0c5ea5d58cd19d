"""Sampling: which elements stand for a tensor where a few must do, and at which steps the costlier is measured.

All of it is regular, so that no random numbers are drawn.
"""

import functools

FIRST = 4
"""Sampled steps at the beginning of a run at which what costs more, and changes slowly, is measured as well."""

INTERVAL = 16
"""After the first, that is measured at every so manieth sampled step."""


def is_occasion(sample: int) -> bool:
    """Whether what costs more is measured at a sampled step, by its number among the sampled ones, from 1."""
    return sample <= FIRST or sample % INTERVAL == 0


@functools.lru_cache(1024)
def spread(lengths: tuple[int, ...], most: int) -> tuple[slice, ...]:
    """One slice for each of several dimensions of these lengths, at most `most` elements together, at least one.

    Each dimension gets about the same number of elements, what a short one leaves goes to the longer ones; the elements
    lie evenly in it, half a stride from its edges.
    """
    slices = [slice(None)] * len(lengths)
    remaining = most
    by_length = sorted(range(len(lengths)), key=lambda dimension: lengths[dimension])
    for number, dimension in enumerate(by_length):
        allowed = max(1, int(remaining ** (1 / (len(lengths) - number)) + 1e-9))
        stride = max(1, -(-lengths[dimension] // allowed))
        first = (stride - 1) // 2
        slices[dimension] = slice(first, None, stride)
        remaining //= max(1, len(range(first, lengths[dimension], stride)))
    return tuple(slices)
