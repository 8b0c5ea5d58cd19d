"""Parameters that no optimizer trains: those that are frozen, and those that were left out."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from desat.record.rows import Reading, Row, Site
from desat.watch.cycle import held_by_optimizers
from desat.watch.modules import Network
from desat.watch.sampling import is_occasion, spread
from desat.watch.shipment import Parcel
from desat.watch.sites import Sites

PARAMETERS = 256
"""Parameters that are noted, the first ones of the network; each costs some microseconds."""

COMPARED = 64
"""Of those, how many are compared with what they were at the last look."""

ENTRIES = 64
"""Entries of a parameter that are compared: a regular subset."""


class LeftOutTap:
    """Notes on occasion (desat.watch.sampling) which parameters of the network no optimizer trains.

    Sites of kind `parameter`, without rows of the table `parameter`. Readings of a frozen one (requires_grad is False):
    `frozen`, 1, and `elements`. Of one that is in no optimizer: `in_optimizer`, 0, `elements`, `has_gradient`, 0 or 1,
    and `changed`, the share of its entries that are not what they were at the last look, from 0: something else than an
    optimizer may train it.
    """

    def __init__(self, network: Network, sites: Sites) -> None:
        self._network = network
        self._sites = sites
        self._met: dict[str, Site] = {}
        self._before: dict[int, Tensor] = {}
        self._left_out: set[int] = set()

    @torch.no_grad()
    def look(self, step: int, sample: int, optimizers: Iterable[Optimizer]) -> list[Parcel]:
        """What there is to say at the end of a sampled step, the `sample`-th. optimizers: those known to step."""
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        if not groups or not is_occasion(sample):
            return []
        held = {id(parameter) for group in groups for parameter in group["params"]}
        found = [
            (parameter, name, operation)
            for parameter, name, operation in self._network.named_parameters()
            if (not parameter.requires_grad or id(parameter) not in held) and _is_plain(parameter)
        ][:PARAMETERS]
        trainable = {id(parameter) for parameter, *_ in found if parameter.requires_grad}
        if trainable - self._left_out:
            # All objects of the process are gone through, which takes tens of milliseconds, so not each time.
            trainable -= held_by_optimizers()
        self._left_out = trainable
        rows: list[Row] = []
        compared: list[tuple[Site, Tensor]] = []
        for parameter, name, operation in found:
            if not parameter.requires_grad:
                rows += _readings(self._site(name, operation), step, parameter, frozen=1.0)
            elif id(parameter) in trainable:
                site = self._site(name, operation)
                has_gradient = float(parameter.grad is not None)
                rows += _readings(site, step, parameter, in_optimizer=0.0, has_gradient=has_gradient)
                if len(compared) < COMPARED:
                    compared.append((site, self._since_last_look(site, parameter)))

        def made(arrays: list[NDArray[Any]]) -> list[Row]:
            changes = zip(compared, arrays, strict=True)
            return rows + [Reading(site.id, "changed", step, share) for (site, _), array in changes
                           if (share := changed_share(array)) is not None]  # fmt: skip

        return [Parcel([pair for _, pair in compared], made)] if rows else []

    def _site(self, name: str, operation: str) -> Site:
        if name not in self._met:
            position = self._sites.position(name.rpartition(".")[0])
            self._met[name] = self._sites.meet("parameter", name, operation, position=position)
        return self._met[name]

    def _since_last_look(self, site: Site, parameter: Tensor) -> Tensor:
        """A sample of the values before and now, one after the other: shape (1 or 2, up to ENTRIES)."""
        now = parameter[spread(parameter.shape, ENTRIES)].flatten().to(torch.float32, copy=True)
        before = self._before.get(site.id)
        self._before[site.id] = now
        if before is None or before.shape != now.shape or before.device != now.device:
            return now.clone()[None]
        return torch.stack([before, now])


def changed_share(pair: NDArray[Any]) -> float | None:
    """Of values before and now, shape (2, entries), the share that is not the same, 0 to 1; None of a first look."""
    return float(np.mean(pair[0] != pair[1])) if len(pair) == 2 else None


def _readings(site: Site, step: int, parameter: Tensor, **values: float) -> list[Row]:
    numbers = {"elements": float(parameter.numel()), **values}
    return [Reading(site.id, name, step, value) for name, value in numbers.items()]


def _is_plain(parameter: Tensor) -> bool:
    """Not one that is lazy, sharded, quantized or nowhere."""
    return (
        type(parameter) is nn.Parameter
        and parameter.is_floating_point()
        and parameter.layout is torch.strided
        and parameter.numel() > 0
        and parameter.device.type != "meta"
    )
