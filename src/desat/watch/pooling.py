"""Pooling: the rows of one step, as they arrive on the host, become record rows, the calls of a site in one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from desat.record.histogram import pack_histograms
from desat.record.rows import TensorStatistics
from desat.watch.statistics import BINS_START, COLUMNS

if TYPE_CHECKING:
    from desat.watch.buffer import Placed

_PLACE = {name: place for place, name in enumerate(COLUMNS)}


def pooled(
    step: int, entries: "Sequence[Placed]", table: NDArray[np.float64], bits: NDArray[np.uint8], passes: set[int]
) -> list[TensorStatistics]:
    """One record row for each site and quantity.

    table: shape (rows, WIDTH), see desat.watch.statistics. bits: the flags of all entries, one after the other.
    passes: the forward passes that count; all if it is empty.
    """
    groups: dict[tuple[int, str], list[int]] = {}
    for index, (_, entry) in enumerate(entries):
        if not passes or entry.forward_pass in passes:
            groups.setdefault((entry.site.id, entry.quantity), []).append(index)
    if not groups:
        return []
    firsts = [entries[indices[0]].entry for indices in groups.values()]
    order = [entries[index].row for indices in groups.values() for index in indices]
    calls = [len(indices) for indices in groups.values()]
    totals, minimum, maximum = _added_up(table[order], np.cumsum([0, *calls[:-1]]))
    flags = _flags(entries, bits)
    columns = _statistics(totals, np.array([entry.quantity == "input" for entry in firsts]))
    packed = pack_histograms(totals[:, BINS_START:])
    rows = []
    for number, (entry, indices) in enumerate(zip(firsts, groups.values(), strict=True)):
        mean, rms, zeros, nonfinite, low, high, gain = columns[number]
        units, saturated = _pooled_flags([flags[index] for index in indices if index in flags])
        rows.append(
            TensorStatistics(
                site=entry.site.id,
                quantity=entry.quantity,
                step=step,
                calls=calls[number],
                elements=int(totals[number, 0]),
                mean=mean,
                rms=rms,
                minimum=minimum[number] if mean is not None else None,
                maximum=maximum[number] if mean is not None else None,
                zeros=zeros or 0.0,
                nonfinite=nonfinite or 0.0,
                saturated_low=low,
                saturated_high=high,
                gain=gain,
                units=units,
                saturated_units=saturated,
                histogram=packed[number],
                dtype=str(entry.dtype).removeprefix("torch."),
            )
        )
    return rows


def _added_up(table: NDArray[np.float64], starts: NDArray[np.int64]) -> tuple[NDArray[np.float64], list, list]:
    """The sum of each group of rows, and its extremes over the rows that had a finite value."""
    finite = table[:, _PLACE["count"]] > table[:, _PLACE["nonfinite"]]
    lowest = np.where(finite, table[:, _PLACE["minimum"]], np.inf)
    highest = np.where(finite, table[:, _PLACE["maximum"]], -np.inf)
    with np.errstate(over="ignore"):
        totals = np.add.reduceat(table, starts, axis=0)
    return totals, np.minimum.reduceat(lowest, starts).tolist(), np.maximum.reduceat(highest, starts).tolist()


def _statistics(totals: NDArray[np.float64], is_input: NDArray[np.bool_]) -> list[list[float | None]]:
    """By group: mean, rms, zeros, non-finite share, saturated shares low and high, gain; None for what is not known."""
    count, sampled = totals[:, _PLACE["count"]], totals[:, _PLACE["sampled"]]
    finite = count - totals[:, _PLACE["nonfinite"]]
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = [
            totals[:, _PLACE["sum"]] / finite,
            np.sqrt(totals[:, _PLACE["sum_of_squares"]] / finite),
            totals[:, _PLACE["zeros"]] / count,
            totals[:, _PLACE["nonfinite"]] / count,
            totals[:, _PLACE["saturated_low"]] / count,
            totals[:, _PLACE["saturated_high"]] / count,
            totals[:, _PLACE["gain"]] / sampled,
        ]
    known = [finite > 0, finite > 0, count > 0, count > 0, is_input & (count > 0), is_input & (count > 0)]
    known.append(is_input & (sampled > 0))
    values = [
        [value if is_known else None for value, is_known in zip(column.tolist(), where.tolist(), strict=True)]
        for column, where in zip(columns, known, strict=True)
    ]
    return [list(row) for row in zip(*values, strict=True)]


def _flags(entries: "Sequence[Placed]", bits: NDArray[np.uint8]) -> dict[int, NDArray[np.uint8]]:
    """By the number of its entry, the flags of each entry that has some."""
    flags, start = {}, 0
    for index, (_, entry) in enumerate(entries):
        if entry.units is not None:
            end = start + entry.units.numel()
            flags[index] = bits[start:end]
            start = end
    return flags


def _pooled_flags(flags: list[NDArray[np.uint8]]) -> tuple[int | None, bytes | None]:
    """How many units there are, and which were saturated at every call, packed; None where calls do not agree."""
    if not flags or any(len(other) != len(flags[0]) for other in flags):
        return None, None
    always = flags[0] if len(flags) == 1 else np.logical_and.reduce(flags)
    return len(always), np.packbits(always).tobytes()
