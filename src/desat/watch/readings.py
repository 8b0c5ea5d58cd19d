"""Readings: single numbers of a sampled step, and small tensors that the host reduces to such numbers."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from desat.record.rows import Reading, Row, Site
from desat.watch.shipment import Parcel

Reduction = Callable[[NDArray[Any]], dict[str, float]]
"""Makes named numbers of an array, in the writer's thread, so that the training does not pay for it."""


class Readings:
    """Collects named numbers of sites, each with its forward pass; `take` empties it into a parcel.

    Of a site that runs several times in a step the last reading of a name counts.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, str, int], Tensor] = {}
        self._deferred: dict[tuple[int, str, int], tuple[Tensor, Reduction]] = {}

    def add(self, site: Site, values: dict[str, Tensor], forward_pass: int) -> None:
        """Keep 0-dim tensors, which must own their memory, by their names; nothing is read back to the host."""
        for name, value in values.items():
            self._values[site.id, name, forward_pass] = value

    def defer(self, site: Site, name: str, tensor: Tensor, reduction: Reduction, forward_pass: int) -> None:
        """Keep a small tensor, which must own its memory, for a reduction on the host; `name` tells it from others."""
        self._deferred[site.id, name, forward_pass] = (tensor, reduction)

    def take(self, step: int, passes: set[int]) -> Parcel:
        """passes: the forward passes that count, as in StatisticsBuffer.take."""
        values = {key: value for key, value in self._values.items() if not passes or key[2] in passes}
        deferred = {key: value for key, value in self._deferred.items() if not passes or key[2] in passes}
        self._values, self._deferred = {}, {}
        tensors = [*values.values(), *(tensor for tensor, _ in deferred.values())]

        def rows(arrays: list[NDArray[Any]]) -> list[Row]:
            made: list[Row] = [
                Reading(site, name, step, float(array))
                for (site, name, _), array in zip(values, arrays[: len(values)], strict=True)
            ]
            for ((site, *_), (_, reduction)), array in zip(deferred.items(), arrays[len(values) :], strict=True):
                made += [Reading(site, name, step, value) for name, value in reduction(array).items()]
            return made

        return Parcel(tensors, rows)
