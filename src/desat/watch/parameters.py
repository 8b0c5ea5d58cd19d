"""Parameters at a sampled step: their gradients before the optimizer's step, their change by it."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from desat.record.rows import ParameterStatistics, Row, Site, TensorStatistics
from desat.watch.buffer import Entry, StatisticsBuffer
from desat.watch.modules import Network
from desat.watch.shipment import Parcel
from desat.watch.sites import Sites
from desat.watch.statistics import measure, subset

SAMPLE = 16_384
"""Entries of a parameter whose change is measured; of a larger one a regular subset. The gradient is read whole."""


@dataclass(frozen=True)
class _Before:
    """One parameter before the optimizer's step. stored: the share of entries that a sparse gradient keeps."""

    site: Site
    parameter: Tensor
    value: Tensor
    stored: float


class ParameterTap:
    """Reads the parameters of one optimizer on both sides of its step."""

    def __init__(self, network: Network, sites: Sites) -> None:
        self._network = network
        self._sites = sites
        self._buffer = StatisticsBuffer()
        self._before: dict[int, list[_Before]] = {}

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        names = self._network.parameter_names()
        before = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None or not parameter.is_floating_point() or not parameter.numel():
                    continue
                path, operation = names.get(
                    id(parameter), (f"parameter {len(self._before)}.{len(before)}", "parameter")
                )
                position = self._sites.position(path.rpartition(".")[0])
                site = self._sites.meet("parameter", path, operation, position=position)
                stored = 1.0
                if gradient.layout is not torch.strided:
                    gradient = gradient.coalesce().values()
                    stored = gradient.numel() / parameter.numel()
                self._measure(site, "gradient", gradient)
                value = subset(parameter.detach(), None, SAMPLE).clone()
                before.append(_Before(site, parameter, value, stored))
        self._before[id(optimizer)] = before

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, step: int) -> Parcel | None:
        """What the step changed; None if nothing was measured before."""
        before = self._before.pop(id(optimizer), None)
        if not before:
            return None
        for known in before:
            value = subset(known.parameter.detach(), None, SAMPLE)
            self._measure(known.site, "value", value)
            self._measure(known.site, "update", value - known.value)
        measured = self._buffer.take(step, set())

        def rows(arrays: list[NDArray[Any]]) -> list[Row]:
            found = {
                (row.site, row.quantity): row for row in measured.rows(arrays) if isinstance(row, TensorStatistics)
            }
            return [_row(known, step, found) for known in before]

        return Parcel(measured.tensors, rows)

    def _measure(self, site: Site, quantity: str, tensor: Tensor) -> None:
        measure(tensor, self._buffer.row(tensor.device), None, None)
        self._buffer.keep(tensor.device, Entry(site, quantity, tensor.dtype, None, 0))


def _row(before: _Before, step: int, found: dict[tuple[int, str], TensorStatistics]) -> ParameterStatistics:
    number, stored = before.site.id, before.stored
    gradient, value, update = (found[number, quantity] for quantity in ("gradient", "value", "update"))
    return ParameterStatistics(
        site=number,
        step=step,
        elements=before.parameter.numel(),
        rms=value.rms,
        gradient_rms=None if gradient.rms is None else gradient.rms * stored**0.5,
        # Entries that a sparse gradient does not keep are zero.
        gradient_zeros=gradient.zeros * stored + (1.0 - stored),
        gradient_nonfinite=gradient.nonfinite * stored,
        update_rms=update.rms if update.nonfinite == 0.0 else None,
    )
