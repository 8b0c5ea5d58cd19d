"""Parameters at a sampled step: their gradients before the optimizer's step, their change by it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from desat.record.rows import ParameterStatistics, Row, Site
from desat.record.writer import RowMaker
from desat.watch.modules import Network
from desat.watch.sites import Sites
from desat.watch.statistics import subset


@dataclass(frozen=True)
class _Before:
    """What was known of the parameters before the optimizer's step."""

    sites: list[Site]
    parameters: list[Tensor]
    values: list[Tensor]
    gradients: Tensor


class ParameterTap:
    """Reads the parameters of one optimizer on both sides of its step."""

    def __init__(self, network: Network, sites: Sites) -> None:
        self._network = network
        self._sites = sites
        self._before: dict[int, _Before] = {}

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        names = self._network.parameter_names()
        sites, parameters, gradients = [], [], []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or not parameter.is_floating_point():
                    continue
                path, operation = names.get(id(parameter), (f"parameter {len(self._before)}.{len(sites)}", "parameter"))
                module_position = self._sites.position(path.rpartition(".")[0])
                sites.append(self._sites.meet("parameter", path, operation, position=module_position))
                parameters.append(parameter)
                gradients.append(_gradient_statistics(parameter.grad))
        if sites:
            values = [subset(parameter.detach(), None).clone() for parameter in parameters]
            self._before[id(optimizer)] = _Before(sites, parameters, values, _stacked(gradients))

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, step: int) -> RowMaker | None:
        """What the step changed; the function returned gives the record's rows. None if nothing was measured before."""
        before = self._before.pop(id(optimizer), None)
        if before is None:
            return None
        now = [subset(parameter.detach(), None) for parameter in before.parameters]
        changes = [new.double() - old.double() for new, old in zip(now, before.values, strict=True)]
        own = _stacked([torch.stack([_rms(value), _rms(change)]) for value, change in zip(now, changes, strict=True)])
        counts = [parameter.numel() for parameter in before.parameters]

        def rows() -> list[Row]:
            gradients, values = before.gradients.tolist(), own.tolist()
            return [
                ParameterStatistics(site.id, step, count, rms, gradient_rms, zeros, nonfinite, update_rms)
                for site, count, (gradient_rms, zeros, nonfinite), (rms, update_rms) in zip(
                    before.sites, counts, gradients, values, strict=True
                )
            ]

        return rows


def _gradient_statistics(gradient: Tensor) -> Tensor:
    """Root mean square, share of zeros, share of non-finite: shape (3,), float64. Absent rows of a sparse one are 0."""
    if gradient.layout is not torch.strided:
        stored = gradient.coalesce().values().double()
        whole = max(gradient.numel(), 1)
        absent = (gradient.numel() - stored.numel()) / whole
        zeros = (stored == 0).sum() / whole + absent
        mean_square = stored.square().sum() / whole
        return torch.stack([mean_square.sqrt(), zeros.double(), ((~stored.isfinite()).sum() / whole).double()])
    values = subset(gradient, None)
    return torch.stack([_rms(values), (values == 0).double().mean(), (~values.isfinite()).double().mean()])


def _rms(values: Tensor) -> Tensor:
    return values.double().square().mean().sqrt()


def _stacked(rows: list[Tensor]) -> Tensor:
    """One tensor of all rows; of parameters on several devices, on the first one's."""
    return torch.stack([row.to(rows[0].device, non_blocking=True) for row in rows])
