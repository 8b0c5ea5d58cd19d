"""The watcher: counts steps, arms the taps for the sampled ones, and hands what they measured to the record."""

import gc
import time
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from desat.record.rows import Step
from desat.record.writer import RecordWriter, RowMaker
from desat.watch.compiled import EagerStance
from desat.watch.loss import LossTap
from desat.watch.modules import Network
from desat.watch.parameters import ParameterTap
from desat.watch.schedule import Schedule
from desat.watch.shipment import Parcel, ship
from desat.watch.sites import Sites
from desat.watch.taps import Taps
from desat.watch.trouble import Trouble

FLUSH_INTERVAL = 0.5
"""Seconds after which the losses of unsampled steps are handed to the record."""


class Watcher:
    """Watches a training from `start` to `stop`.

    network: what is watched. optimizer: the one whose steps are counted; None for the one that steps first.
    first_forward: called with each root module before its first forward pass.
    """

    def __init__(
        self,
        writer: RecordWriter,
        network: Network,
        schedule: Schedule,
        optimizer: Optimizer | None = None,
        first_forward: Callable[[nn.Module], None] = lambda root: None,
    ) -> None:
        self.steps = 0
        self.sampled_steps = 0
        self._writer = writer
        self._schedule = schedule
        self._leader = optimizer
        self._sites = Sites()
        self._trouble = Trouble()
        self._network = network
        self._taps = Taps(network, self._sites, self._trouble, first_forward)
        self._parameters = ParameterTap(network, self._sites)
        self._stance = EagerStance()
        self._loss = LossTap(self._trouble, self._after_backward)
        self._hooks: list[RemovableHandle] = []
        self._armed_hooks: list[RemovableHandle] = []
        self._parcels: list[Parcel] = []
        self._pending: list[RowMaker] = []
        self._armed = False
        self._watching = 0.0
        self._started = self._step_began = self._flushed = time.perf_counter()
        self._updated = False
        self._optimizer_stepped = optimizer is not None
        self._waits_for_optimizer: bool | None = None

    @property
    def overhead(self) -> float:
        """The share of the wall time so far that watching has added."""
        return self._schedule.spent / max(time.perf_counter() - self._started, 1e-9)

    @property
    def measured_anything(self) -> bool:
        return self.sampled_steps > 0

    def start(self) -> None:
        self._started = self._step_began = self._flushed = time.perf_counter()
        self._hooks = [register_optimizer_step_post_hook(self._after_optimizer)]
        self._stance.install()
        self._loss.install()
        self._arm_if_due()

    def stop(self) -> None:
        """Remove every hook and hand over what is left."""
        with self._trouble.kept_from_user("the end of the run"):
            self._take_unfinished()
            self._disarm()
            for hook in self._hooks:
                hook.remove()
            self._loss.uninstall()
            self._stance.uninstall()
            self._flush()

    def _take_unfinished(self) -> None:
        """A run that ends between a backward pass and an update, by an error say, still shows its last step."""
        if self._armed and len(self._taps) and not self._updated and (self._loss.seen or not self.sampled_steps):
            self._take_sample()
            self._take_step(time.perf_counter() - self._started, self._watching + self._taps.seconds)

    # Boundaries of a step

    def _after_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with self._trouble.kept_from_user("a step"):
            self._optimizer_stepped = self._updated = True
            if self._armed:
                began = time.perf_counter()
                parcel = self._parameters.after_step(optimizer, self.steps)
                if parcel is not None:
                    self._parcels.append(parcel)
                self._watching += time.perf_counter() - began
            if self._leader is None:
                self._leader = optimizer
            if optimizer is self._leader:
                self._end_step()

    def _before_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with self._trouble.kept_from_user("the parameters"):
            began = time.perf_counter()
            self._parameters.before_step(optimizer)
            self._watching += time.perf_counter() - began

    def _after_backward(self) -> None:
        """Where no torch optimizer exists, the update is the script's own and the backward pass ends the step."""
        if self._optimizer_stepped:
            return
        with self._trouble.kept_from_user("a step"):
            if self._waits_for_optimizer is None:
                self._waits_for_optimizer = _an_optimizer_exists()
            if not self._waits_for_optimizer:
                self._end_step()

    def _end_step(self) -> None:
        now = time.perf_counter()
        duration = now - self._step_began
        was_sampled = self._armed
        watching = None
        if was_sampled:
            self._take_sample()
            watching = self._watching + self._taps.seconds + time.perf_counter() - now
            self._schedule.finished_sampled(self.steps, duration, watching)
        else:
            self._schedule.finished_plain(duration)
        self._take_step(now - self._started, watching)
        if self._loss.looks_wrong:
            self._schedule.hurry()
        if was_sampled or now - self._flushed > FLUSH_INTERVAL:
            self._flush()
        self._arm_if_due()
        self._updated = False
        self._step_began = time.perf_counter()

    def _arm_if_due(self) -> None:
        due = self._schedule.is_sampled(self.steps, time.perf_counter() - self._started)
        if due and not self._armed:
            self._arm()
        elif self._armed and not due:
            self._disarm()
        elif due:
            self._taps.disarm()
            self._taps.arm()
        self._watching = 0.0

    def _arm(self) -> None:
        self._armed = True
        self._armed_hooks = [register_optimizer_step_pre_hook(self._before_optimizer)]
        self._stance.hold()
        self._taps.arm()

    def _disarm(self) -> None:
        self._armed = False
        self._taps.disarm()
        self._stance.release()
        while self._armed_hooks:
            self._armed_hooks.pop().remove()

    # What goes to the record

    def _take_sample(self) -> None:
        sites = self._sites.take_unrecorded()
        parcels, self._parcels = self._parcels, []
        self._pending += [lambda: sites, ship([*parcels, *self._taps.take(self.steps)])]
        self.sampled_steps += 1

    def _take_step(self, at: float, watching: float | None) -> None:
        number, loss, rate = self.steps, self._loss.take(), self._learning_rate()
        self._pending.append(lambda: (Step(number, at, loss(), rate, watching),))
        self.steps += 1

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._flushed = time.perf_counter()
        self._writer.put(lambda: [row for make in pending for row in make()])
        self._writer.note(overhead=self.overhead, steps=self.steps, sampled_steps=self.sampled_steps)

    def _learning_rate(self) -> float | None:
        if self._leader is None:
            return None
        rate = self._leader.param_groups[0].get("lr")
        return rate if isinstance(rate, float) else None


def _an_optimizer_exists() -> bool:
    return any(issubclass(type(candidate), Optimizer) for candidate in gc.get_objects())
