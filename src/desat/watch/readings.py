"""Readings: single numbers of a sampled step, and small tensors that the host reduces to such numbers."""

import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

from numpy.typing import NDArray
from torch import Tensor

from desat.record.rows import Reading, Row, Site
from desat.watch.shipment import Parcel
from desat.watch.trouble import say

Reduction = Callable[[NDArray[Any]], dict[str, float]]
"""Makes named numbers of an array, in the writer's thread, so that the training does not pay for it."""

JointReduction = Callable[[dict[str, NDArray[Any]]], dict[Site, dict[str, float]]]
"""Makes named numbers of several sites of several arrays, in the writer's thread."""

HOST_SHARE = 0.02
"""Joint reductions take at most this share of one processor's time, over the run or over its first minute."""

FIRST_MINUTE = 60.0
"""Seconds, as in desat.watch.schedule."""

GATHERED_BYTES = 2**26
"""Bytes of gathered tensors that may wait for the writer's thread; while more wait, no more are gathered."""


@dataclass(eq=False)
class _Gathered:
    tensors: dict[str, Tensor]
    reduction: JointReduction
    bytes: int


class Readings:
    """Collects named numbers of sites, each with its forward pass; `take` empties it into a parcel.

    Of a site that runs several times in a step the last reading of a name counts.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[int, str, int], Tensor] = {}
        self._deferred: dict[tuple[int, str, int], tuple[Tensor, Reduction]] = {}
        self._gathered: dict[tuple[int, str, int], _Gathered] = {}
        self._calls: Counter[tuple[int, str, int]] = Counter()
        self._waiting: list[ref[_Gathered]] = []
        self._began = time.perf_counter()
        self._host_seconds = 0.0
        self._told: set[str] = set()

    def add(self, site: Site, values: dict[str, Tensor], forward_pass: int) -> None:
        """Keep 0-dim tensors, which must own their memory, by their names; nothing is read back to the host."""
        for name, value in values.items():
            self._values[site.id, name, forward_pass] = value

    def defer(self, site: Site, name: str, tensor: Tensor, reduction: Reduction, forward_pass: int) -> None:
        """Keep a small tensor, which must own its memory, for a reduction on the host; `name` tells it from others."""
        self._deferred[site.id, name, forward_pass] = (tensor, reduction)

    def gather(
        self,
        site: Site,
        name: str,
        tensors: Callable[[], dict[str, Tensor]],
        reduction: JointReduction,
        forward_pass: int,
    ) -> dict[str, Tensor] | None:
        """Keep several tensors, which must own their memory, for one reduction on the host, told from others by `name`.

        The dictionary returned may be added to until the step ends, say by the backward pass. None where nothing is
        kept, since the writer's thread is behind or has done its share; and of several calls in one pass the first,
        second, fourth, eighth ... are kept, and the last of these counts.
        """
        key = (site.id, name, forward_pass)
        self._calls[key] += 1
        if self._calls[key].bit_count() > 1:
            return None
        if self._host_seconds > HOST_SHARE * max(time.perf_counter() - self._began, FIRST_MINUTE):
            return None
        waiting = [(one, gathered.bytes) for one in self._waiting if (gathered := one()) is not None]
        self._waiting = [one for one, _ in waiting]
        if sum(size for _, size in waiting) > GATHERED_BYTES:
            return None
        kept = tensors()
        gathered = _Gathered(kept, reduction, sum(tensor.nbytes for tensor in kept.values()))
        self._gathered[key] = gathered
        self._waiting.append(ref(gathered))
        return kept

    def take(self, step: int, passes: set[int]) -> Parcel:
        """passes: the forward passes that count, as in StatisticsBuffer.take."""
        values = {key: value for key, value in self._values.items() if not passes or key[2] in passes}
        deferred = {key: value for key, value in self._deferred.items() if not passes or key[2] in passes}
        gathered = [one for key, one in self._gathered.items() if not passes or key[2] in passes]
        self._values, self._deferred, self._gathered = {}, {}, {}
        self._calls.clear()
        tensors = [*values.values(), *(tensor for tensor, _ in deferred.values())]
        of_one = len(tensors)
        names = [list(one.tensors) for one in gathered]
        tensors += [tensor for one in gathered for tensor in one.tensors.values()]

        def rows(arrays: list[NDArray[Any]]) -> list[Row]:
            made: list[Row] = [
                Reading(site, name, step, float(array))
                for (site, name, _), array in zip(values, arrays[: len(values)], strict=True)
            ]
            for ((site, *_), (_, reduction)), array in zip(deferred.items(), arrays[len(values) : of_one], strict=True):
                numbers = self._reduced(functools.partial(reduction, array))
                made += [Reading(site, name, step, value) for name, value in numbers.items()]
            remaining = iter(arrays[of_one:])
            for one, its_names in zip(gathered, names, strict=True):
                its_arrays = {name: next(remaining) for name in its_names}
                began = time.thread_time()
                for of_site, numbers in self._reduced(functools.partial(one.reduction, its_arrays)).items():
                    made += [Reading(of_site.id, name, step, value) for name, value in numbers.items()]
                self._host_seconds += time.thread_time() - began
            return made

        return Parcel(tensors, rows)

    def _reduced(self, reduction: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
        """What a reduction makes; a fault in it costs its readings and not the record, and is told once."""
        try:
            return reduction()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            if message not in self._told:
                self._told.add(message)
                say(f"readings are missing from the record, which goes on: {message}")
            return {}
