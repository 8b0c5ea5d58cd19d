"""The rows of one sampled step, on the device where they are measured, and their one copy to the host."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from desat.record.histogram import pack_histogram
from desat.record.rows import Row, Site, TensorStatistics
from desat.record.writer import RowMaker
from desat.watch.statistics import BINS_START, COLUMNS, WIDTH

CAPACITY = 512
"""Rows that are allocated at first; a step that needs more gets further blocks of this size, which are kept."""


class Entry(NamedTuple):
    """What one row holds. units: one flag per unit, or None. forward_pass: the number of the pass it belongs to."""

    site: Site
    quantity: str
    units: Tensor | None
    forward_pass: int


class StatisticsBuffer:
    """Hands out rows during a step; `take` starts the copy of all of them and returns how to make record rows of it."""

    def __init__(self) -> None:
        self._blocks: dict[torch.device, list[Tensor]] = defaultdict(list)
        self._rows: dict[torch.device, list[Tensor]] = defaultdict(list)
        self._used: dict[torch.device, list[Entry]] = defaultdict(list)

    def row(self, device: torch.device) -> Tensor:
        """A row of shape (WIDTH,) to be filled; it counts from `keep` on."""
        used, rows = len(self._used[device]), self._rows[device]
        if used == len(rows):
            # Apple's GPUs have no float64.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            block = torch.zeros(CAPACITY, WIDTH, dtype=dtype, device=device)
            self._blocks[device].append(block)
            rows += block.unbind(0)
        return rows[used]

    def keep(self, device: torch.device, entry: Entry) -> None:
        """Say what the last row handed out on `device` holds."""
        self._used[device].append(entry)

    def __len__(self) -> int:
        return sum(len(used) for used in self._used.values())

    def take(self, step: int, passes: set[int]) -> RowMaker:
        """Empty the buffer; the function returned waits for the copy and gives the record's rows.

        passes: the forward passes to which a gradient came back. The others were no training (an evaluation with
        gradients left on) and are dropped, unless there are none but those.
        """
        copies = [self._start_copy(device, used) for device, used in self._used.items() if used]
        self._used.clear()

        def rows() -> list[Row]:
            calls: dict[tuple[int, str], list[tuple[Any, ...]]] = defaultdict(list)
            for arrived in copies:
                for entry, values, units in arrived():
                    if not passes or entry.forward_pass in passes:
                        calls[entry.site.id, entry.quantity].append((values, units))
            return [_pooled(site, quantity, step, measured) for (site, quantity), measured in calls.items()]

        return rows

    def _start_copy(self, device: torch.device, used: list[Entry]) -> Callable[[], list[tuple[Entry, Any, Any]]]:
        blocks = self._blocks[device][: -(-len(used) // CAPACITY)]
        flags = [entry.units for entry in used if entry.units is not None]
        values = _to_host(torch.cat(blocks)[: len(used)])
        bits = _to_host(torch.cat(flags)) if flags else torch.empty(0, dtype=torch.uint8)
        event = None
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record()

        def arrived() -> list[tuple[Entry, Any, Any]]:
            if event is not None:
                event.synchronize()
            table, all_units, start, rows = values.numpy(), bits.numpy(), 0, []
            for entry, row in zip(used, table, strict=True):
                length = 0 if entry.units is None else entry.units.numel()
                rows.append((entry, row, all_units[start : start + length] if length else None))
                start += length
            return rows

        return arrived


def _to_host(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor, non_blocking=True)


def _pooled(site: int, quantity: str, step: int, calls: list[tuple[Any, ...]]) -> TensorStatistics:
    """One record row of all calls of a site in a step."""
    table = np.stack([values for values, _ in calls])
    total: dict[str, float] = dict(zip(COLUMNS, table[:, :BINS_START].sum(axis=0).tolist(), strict=True))
    count = total["count"]
    finite = count - total["nonfinite"]
    measured = table[:, 0] > table[:, COLUMNS.index("nonfinite")]
    flags = [units for _, units in calls if units is not None]
    alike = flags and all(units.shape == flags[0].shape for units in flags)
    has_curve = quantity == "input"

    def mean(column: str, of: float) -> float | None:
        return total[column] / of if of else None

    return TensorStatistics(
        site=site,
        quantity=quantity,
        step=step,
        calls=len(calls),
        elements=int(count),
        mean=mean("sum", finite),
        rms=(total["sum_of_squares"] / finite) ** 0.5 if finite else None,
        minimum=float(table[measured, COLUMNS.index("minimum")].min()) if finite else None,
        maximum=float(table[measured, COLUMNS.index("maximum")].max()) if finite else None,
        zeros=mean("zeros", count) or 0.0,
        nonfinite=mean("nonfinite", count) or 0.0,
        saturated_low=mean("saturated_low", count) if has_curve else None,
        saturated_high=mean("saturated_high", count) if has_curve else None,
        gain=mean("gain", total["sampled"]) if has_curve else None,
        units=len(flags[0]) if alike else None,
        saturated_units=np.packbits(np.logical_and.reduce(flags)).tobytes() if alike else None,
        histogram=pack_histogram(table[:, BINS_START:].sum(axis=0)),
    )
