"""The curvature tap: measures the sharpness of the loss that is about to be backpropagated, where that is asked for."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from desat.record.rows import Reading, Row
from desat.watch.backward_graph import Bystander, UnrepeatableError
from desat.watch.curvature import ITERATIONS, Hessian, largest_eigenvalue, stability_limit, tridiagonal
from desat.watch.measurements import Measurements, is_measurable
from desat.watch.modules import Network, call_source
from desat.watch.schedule import FIRST_MINUTE, Schedule
from desat.watch.shipment import Parcel
from desat.watch.sites import Sites
from desat.watch.trouble import say

FIRST = 4
"""Measurements at the start of a run that are made at each sampled step, where there is the time."""

EVERY = 8
"""After the first ones each so many-th sampled step is measured."""

SHARE = 0.5
"""Of the time that watching may add, what curvature may take; the rest is for everything else."""

PRODUCT_COST = 3.0
"""What one Hessian-vector product costs, in times of the first gradient: a guess until a measurement was paid for."""

ATTEMPTS = 3
"""Steps in a row that could not be measured for a reason that may pass, before curvature is given up."""


class CurvatureTurns:
    """Says at which sampled steps curvature is measured, so that it keeps its share of the budget."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._measurements = 0
        self._since = EVERY
        self._spent = 0.0
        self._cost = 0.0
        self._allowance = math.inf

    def is_due(self, elapsed: float) -> bool:
        """Asked once for each sampled step, `elapsed` seconds into the run."""
        self._since += 1
        if self._schedule.every is None:
            self._allowance = SHARE * self._schedule.budget * max(elapsed, FIRST_MINUTE) - self._spent
        return (self._measurements < FIRST or self._since >= EVERY) and self._cost < self._allowance

    def is_affordable(self, gradient: float) -> bool:
        """Whether to go on after a first gradient that took so many seconds."""
        if not self._measurements:
            self._cost = gradient * (1 + PRODUCT_COST * ITERATIONS)
        return self._cost < self._allowance

    def paid(self, seconds: float, measured: bool) -> None:
        """What a step has cost at which a measurement was tried."""
        self._spent += seconds
        if measured:
            self._measurements += 1
            self._since = 0
            self._cost = seconds


@dataclass
class _Attempt:
    """A measurement of the step that is running. coefficients: None if they were not to be had."""

    parameters: list[Tensor]
    source: str | None
    seconds: float = 0.0
    coefficients: Tensor | None = None


class CurvatureTap:
    """Measures the sharpness of the loss at some of the sampled steps, just before the user's backward pass.

    The site is of kind `curvature` and named `loss`; its readings are `sharpness`, `sharpness_residual` and, where the
    limit is known, `stability_limit` and `sharpness_over_limit`. A loss that cannot be measured without the training
    noticing, or at all, is left alone from then on, which is said once.
    """

    def __init__(self, sites: Sites, network: Network, measurements: Measurements, schedule: Schedule) -> None:
        self._sites = sites
        self._network = network
        self._measurements = measurements
        self._turns = CurvatureTurns(schedule)
        self._bystander = Bystander()
        self._attempt: _Attempt | None = None
        self._thread = 0
        self._failures = 0
        self._off = False

    def arm(self, elapsed: float) -> None:
        """A sampled step begins, `elapsed` seconds into the run; whatever else desat hangs up hangs already."""
        self.disarm()
        if not self._off and self._turns.is_due(elapsed):
            self._thread = threading.get_ident()
            try:
                self._bystander.arm()
            except Exception as error:
                self._give_up(_first_line(error))

    def disarm(self) -> None:
        self._bystander.disarm()
        self._attempt = None

    def before_backward(self, loss: Tensor, scale: Tensor | None, optimizers: Sequence[Optimizer]) -> None:
        """Measure, where it is due; the loss may also be of something else than the watched training.

        scale: what the loss was multiplied by, which is taken out again. optimizers: as far as they are known.
        """
        if not self._bystander.armed or threading.get_ident() != self._thread:
            return
        if type(loss) is not Tensor or loss.numel() != 1 or not loss.requires_grad:
            return
        try:
            self._try(loss, scale, optimizers)
        except UnrepeatableError as reason:
            self._attempt = None
            self._failures += 1
            if reason.lasting or self._failures >= ATTEMPTS:
                self._give_up(str(reason))
        except Exception as error:
            self._give_up(_first_line(error))

    def take(self, step: int, optimizers: Sequence[Optimizer], duration: float) -> list[Parcel]:
        """What was measured in the step that ends. optimizers: those that made it, which by now are known.

        duration: seconds of the whole step, which tell more than the clock here where an accelerator queues its work.
        """
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return []
        coefficients, parameters = attempt.coefficients, attempt.parameters
        on_host = parameters[0].device.type == "cpu"
        self._turns.paid(attempt.seconds if on_host else max(attempt.seconds, duration), coefficients is not None)
        if coefficients is None or (optimizers and len(_of(optimizers, parameters)) < len(parameters)):
            return []
        self._failures = 0
        site = self._sites.meet("curvature", "loss", "loss", lambda: attempt.source)
        limit = stability_limit(optimizers[0], parameters) if len(optimizers) == 1 else None

        def rows(arrays: list[NDArray[Any]]) -> list[Row]:
            return [Reading(site.id, name, step, value) for name, value in _readings(arrays[0], limit).items()]

        return [Parcel([coefficients], rows)]

    def _try(self, loss: Tensor, scale: Tensor | None, optimizers: Sequence[Optimizer]) -> None:
        began = time.perf_counter()
        parameters = self._trained(self._bystander.check(loss, self._measurements.hooks), optimizers)
        if not parameters:
            return
        if self._attempt is not None:
            raise UnrepeatableError("a step has several backward passes, and trains on their sum", lasting=True)
        attempt = self._attempt = _Attempt(parameters, call_source())
        with self._undisturbed(loss.device.type):
            started = time.perf_counter()
            hessian = Hessian(loss, parameters)
            if self._turns.is_affordable(time.perf_counter() - started):
                coefficients = tridiagonal(hessian, ITERATIONS)
                attempt.coefficients = coefficients if scale is None else coefficients / scale.to(coefficients)
        attempt.seconds = time.perf_counter() - began

    def _trained(self, leaves: list[Tensor], optimizers: Sequence[Optimizer]) -> list[Tensor]:
        """The leaves that training changes; of the network, until an optimizer has stepped."""
        if optimizers:
            parameters = _of(optimizers, leaves)
        else:
            names = self._network.parameter_names()
            parameters = [leaf for leaf in leaves if id(leaf) in names]
        if any(parameter._backward_hooks for parameter in parameters):
            raise UnrepeatableError("hooks on the gradients of parameters would run again", lasting=True)
        if not all(is_measurable(parameter) for parameter in parameters):
            raise UnrepeatableError("a parameter is no plain real tensor", lasting=True)
        if len({parameter.device for parameter in parameters}) > 1:
            raise UnrepeatableError("the parameters lie on several devices", lasting=True)
        return parameters

    @contextlib.contextmanager
    def _undisturbed(self, device: str) -> Iterator[None]:
        """No hook of desat, no function mode, no anomaly detection and no autocast has a say inside."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch._C.DisableTorchFunction())
            if torch.is_anomaly_enabled():
                stack.enter_context(torch.autograd.set_detect_anomaly(False))
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
            stack.enter_context(self._measurements.muted())
            yield

    def _give_up(self, reason: str) -> None:
        self._off = True
        self.disarm()
        say(f"curvature is not measured from here on, the training goes on: {reason}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _of(optimizers: Sequence[Optimizer], tensors: list[Tensor]) -> list[Tensor]:
    """Those of the tensors that the optimizers change."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    changed = {id(parameter) for group in groups for parameter in group["params"]}
    return [tensor for tensor in tensors if id(tensor) in changed]


def _readings(coefficients: NDArray[Any], limit: float | None) -> dict[str, float]:
    found = largest_eigenvalue(coefficients)
    if found is None:
        return {}
    readings = {"sharpness": found.value, "sharpness_residual": found.residual}
    if limit is not None and limit > 0:
        readings |= {"stability_limit": limit, "sharpness_over_limit": found.value / limit}
    return readings
