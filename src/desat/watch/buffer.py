"""The rows of one sampled step, on the device where they are measured."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from desat.record.rows import Row, Site
from desat.watch.pooling import pooled
from desat.watch.shipment import Parcel
from desat.watch.statistics import WIDTH

CAPACITY = 512
"""Rows that are allocated at first; a step that needs more gets further blocks of this size, which are kept."""


class Entry(NamedTuple):
    """What one row holds. units: one flag per unit, or None. forward_pass: the number of the pass it belongs to."""

    site: Site
    quantity: str
    dtype: torch.dtype
    units: Tensor | None
    forward_pass: int


class Placed(NamedTuple):
    """An entry and the number of its row; a tensor that is one site's output and the next one's input fills one row."""

    row: int
    entry: Entry


class StatisticsBuffer:
    """Hands out rows during a step; `take` empties it into a parcel."""

    def __init__(self) -> None:
        self._blocks: dict[torch.device, list[Tensor]] = defaultdict(list)
        self._rows: dict[torch.device, list[Tensor]] = defaultdict(list)
        self._filled: dict[torch.device, int] = defaultdict(int)
        self._entries: dict[torch.device, list[Placed]] = defaultdict(list)

    def row(self, device: torch.device) -> Tensor:
        """A row of shape (WIDTH,) to be filled; it counts from `keep` on."""
        filled, rows = self._filled[device], self._rows[device]
        if filled == len(rows):
            # Apple's GPUs have no float64.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            block = torch.zeros(CAPACITY, WIDTH, dtype=dtype, device=device)
            self._blocks[device].append(block)
            rows += block.unbind(0)
        return rows[filled]

    def keep(self, device: torch.device, entry: Entry) -> int:
        """Say what the last row handed out on `device` holds; returns the row's number."""
        row = self._filled[device]
        self._filled[device] += 1
        self.share(device, row, entry)
        return row

    def share(self, device: torch.device, row: int, entry: Entry) -> None:
        """Say what else a filled row holds."""
        self._entries[device].append(Placed(row, entry))

    def __len__(self) -> int:
        return sum(self._filled.values())

    def take(self, step: int, passes: set[int]) -> Parcel:
        """Empty the buffer.

        passes: the forward passes to which a gradient came back. The others were no training (an evaluation with
        gradients left on) and are dropped, unless there are none but those.
        """
        taken = [(device, entries) for device, entries in self._entries.items() if entries]
        tensors = [tensor for device, entries in taken for tensor in self._measured(device, entries)]
        self._entries.clear()
        self._filled.clear()

        def rows(arrays: list[NDArray[Any]]) -> list[Row]:
            made: list[Row] = []
            for (_, entries), table, bits in zip(taken, arrays[::2], arrays[1::2], strict=True):
                made += pooled(step, entries, table, bits, passes)
            return made

        return Parcel(tensors, rows)

    def _measured(self, device: torch.device, entries: list[Placed]) -> tuple[Tensor, Tensor]:
        """The rows in use, as a copy, since the next step overwrites them; and all flags, one after the other."""
        filled = self._filled[device]
        flags = [entry.units for _, entry in entries if entry.units is not None]
        bits = torch.cat(flags) if flags else torch.empty(0, dtype=torch.uint8, device=device)
        return torch.cat(self._blocks[device][: -(-filled // CAPACITY)])[:filled], bits
