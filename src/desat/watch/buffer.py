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


class StatisticsBuffer:
    """Hands out rows during a step; `take` empties it into a parcel."""

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

    def take(self, step: int, passes: set[int]) -> Parcel:
        """Empty the buffer.

        passes: the forward passes to which a gradient came back. The others were no training (an evaluation with
        gradients left on) and are dropped, unless there are none but those.
        """
        taken = [(device, used) for device, used in self._used.items() if used]
        self._used.clear()
        tensors = [tensor for device, used in taken for tensor in self._measured(device, used)]

        def rows(arrays: list[NDArray[Any]]) -> list[Row]:
            made: list[Row] = []
            for (_, used), table, bits in zip(taken, arrays[::2], arrays[1::2], strict=True):
                made += pooled(step, used, table, bits, passes)
            return made

        return Parcel(tensors, rows)

    def _measured(self, device: torch.device, used: list[Entry]) -> tuple[Tensor, Tensor]:
        """The rows in use, as a copy, since the next step overwrites them; and all flags, one after the other."""
        blocks = self._blocks[device][: -(-len(used) // CAPACITY)]
        flags = [entry.units for entry in used if entry.units is not None]
        bits = torch.cat(flags) if flags else torch.empty(0, dtype=torch.uint8, device=device)
        return torch.cat(blocks)[: len(used)], bits
