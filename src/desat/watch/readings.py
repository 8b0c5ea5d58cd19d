"""Readings: single numbers of a sampled step, kept on their device until the step's one copy."""

from collections import defaultdict

import torch
from torch import Tensor

from desat.record.rows import Reading, Site
from desat.record.writer import RowMaker


class Readings:
    """Collects named numbers of sites; `take` starts the copy of all of them and returns how to make record rows of it.

    Of a site that runs several times in a step the last reading counts.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, str], Tensor] = {}

    def add(self, site: Site, values: dict[str, Tensor]) -> None:
        """Keep 0-dim tensors by their names; nothing is read back to the host."""
        for name, value in values.items():
            self._values[site.id, name] = value

    def take(self, step: int) -> RowMaker:
        by_device: dict[torch.device, list[tuple[int, str, Tensor]]] = defaultdict(list)
        for (site, name), value in self._values.items():
            by_device[value.device].append((site, name, value))
        self._values = {}
        copies = [(entries, torch.stack([value for *_, value in entries])) for entries in by_device.values()]
        return lambda: [
            Reading(site, name, step, number)
            for entries, stacked in copies
            for (site, name, _), number in zip(entries, stacked.tolist(), strict=True)
        ]
