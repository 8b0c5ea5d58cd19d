"""The watcher: counts steps, arms the taps for the sampled ones, and hands what they measured to the record."""

import contextlib
import functools
import os
import time
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from desat.record.rows import Row, Step
from desat.record.writer import RecordWriter, RowMaker
from desat.watch.compiled import EagerStance
from desat.watch.curvature_tap import CurvatureTap
from desat.watch.cycle import Cycle, an_optimizer_lives
from desat.watch.left_out import LeftOutTap
from desat.watch.loss import Loss, LossTap, mean_loss
from desat.watch.loss_graph import note_loss
from desat.watch.modules import Network
from desat.watch.parameters import ParameterTap
from desat.watch.precision import ScalerTap, withheld
from desat.watch.sampling import is_occasion
from desat.watch.schedule import Schedule
from desat.watch.shipment import Parcel, ship
from desat.watch.sites import Sites
from desat.watch.taps import FirstForward, Taps
from desat.watch.trouble import Trouble

FLUSH_INTERVAL = 0.5
"""Seconds after which the losses of unsampled steps are handed to the record."""


class StoppedTraining(SystemExit):
    """Ends a script after the steps it was to run, as sys.exit would: its `finally` blocks run, its workers end."""

    def __init__(self) -> None:
        super().__init__(0)


class Watcher:
    """Watches a training from `start` to `stop`.

    network: what is watched. optimizer: the one whose steps are counted; None to find out, see desat.watch.cycle.
    first_forward: see desat.watch.taps. curvature: measure the sharpness too.
    stop_after: raise StoppedTraining in the user's loop after so many steps, which is asked for only by who wants that.
    """

    def __init__(
        self,
        writer: RecordWriter,
        network: Network,
        schedule: Schedule,
        optimizer: Optimizer | None = None,
        first_forward: FirstForward = lambda root, args: None,
        curvature: bool = False,
        stop_after: int | None = None,
    ) -> None:
        self.steps = 0
        self.sampled_steps = 0
        self._stop_after = stop_after
        self._writer = writer
        self._schedule = schedule
        self._cycle = Cycle(optimizer, network.parameter_names)
        self._sites = Sites()
        self._trouble = Trouble()
        self._network = network
        self._taps = Taps(network, self._sites, self._trouble, first_forward)
        self._scaler = ScalerTap(self._trouble, self._after_skipped)
        self._parameters = ParameterTap(network, self._sites, self._trouble, self._scaler)
        if optimizer is not None:
            self._parameters.expect(optimizer)
        self._left_out = LeftOutTap(network, self._sites)
        self._stance = EagerStance()
        self._loss = LossTap(self._trouble, self._before_backward, self._after_backward, self._scaler.unscaled)
        measurements = self._taps.measurements
        self._curvature = CurvatureTap(self._sites, network, measurements, schedule) if curvature else None
        self._hooks: list[RemovableHandle] = []
        self._armed_hooks: list[RemovableHandle] = []
        self._parcels: list[Parcel] = []
        self._made_of: list[list[Parcel]] = []
        self._pending: list[RowMaker] = []
        self._taken: list[tuple[int, float, list[Loss], float | None, float | None]] = []
        self._armed = False
        self._watching = 0.0
        self._started = self._step_began = self._flushed = time.perf_counter()
        self._updated = False
        self._optimizer_stepped = optimizer is not None
        self._waits_for_optimizer: bool | None = None

    @property
    def overhead(self) -> float:
        """The share of the wall time so far that watching has added, were the record written by the same core."""
        return (self._schedule.spent + self._writer.seconds) / max(time.perf_counter() - self._started, 1e-9)

    @property
    def is_armed(self) -> bool:
        """Whether the step that runs is a sampled one."""
        return self._armed

    @property
    def measured_anything(self) -> bool:
        return self.sampled_steps > 0

    def start(self) -> None:
        self._started = self._step_began = self._flushed = time.perf_counter()
        self._hooks = [register_optimizer_step_post_hook(self._after_optimizer)]
        self._loss.stand_in.install()
        self._scaler.install()
        self._stance.install(self._hide_from_compiler)
        os.register_at_fork(after_in_child=functools.partial(_withdraw, weakref.ref(self)))
        if self._schedule.is_sampled(0, 0.0):
            self._rearm(due=True, any_thread=True)

    def stop(self) -> None:
        """Remove every hook and hand over what is left."""
        with self._trouble.kept_from_user("the end of the run"):
            self._take_unfinished()
            self.withdraw()
            self._flush()

    def withdraw(self) -> None:
        """Remove every hook; what was measured and not handed over stays here."""
        self._disarm()
        while self._hooks:
            self._hooks.pop().remove()
        self._scaler.uninstall()
        self._stance.uninstall()
        self._loss.stand_in.uninstall()

    def _hide_from_compiler(self) -> None:
        """Compiled code with an optimizer's step or a backward pass in it calls the taps and does not trace them."""
        while self._hooks:
            self._hooks.pop().remove()
        hidden: Any = torch.compiler.disable(self._after_optimizer)
        self._hooks = [register_optimizer_step_post_hook(hidden)]
        self._loss.stand_in.decorate(torch.compiler.disable)

    def _take_unfinished(self) -> None:
        """A run that ends between a backward pass and an update, by an error say, still shows its last step."""
        if self._armed and len(self._taps) and not self._updated and (self._loss.seen or not self.sampled_steps):
            self._take_sample()
            self._take_step(time.perf_counter() - self._started, self._spent())

    # Boundaries of a step

    def _after_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        try:
            self._scaler.has_stepped = True
            if self._armed:
                with self._aside("the parameters"):
                    self._parcels += self._parameters.after_step(optimizer, self.steps)
                with torch._C.DisableTorchFunction():
                    self._stepped(optimizer)
            else:
                self._stepped(optimizer)
        except Exception as error:
            self._trouble.report("a step", error)
        if self._stop_after is not None:
            self._stop_if_enough(self._stop_after)

    def _after_skipped(self, optimizer: Optimizer) -> None:
        """A scaler found that gradients overflowed and left the optimizer's step out: the step ends all the same."""
        with self._aside("a step"):
            if self._armed:
                self._parcels += self._parameters.skipped_step(optimizer, self.steps)
            self._stepped(optimizer)

    def _stepped(self, optimizer: Optimizer) -> None:
        self._optimizer_stepped = self._updated = True
        if self._cycle.ends_with(optimizer):
            self._end_step()

    def _before_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        with self._aside("the parameters"):
            return self._parameters.before_step(optimizer, args, kwargs)

    def _before_backward(self, loss: Tensor) -> None:
        if self._armed and len(self._taps) and is_occasion(self.sampled_steps + 1):
            with self._aside("the make of the loss"):
                began = time.perf_counter()
                self._made_of.append(note_loss(self._sites, loss, self.steps))
                self._watching += time.perf_counter() - began
        if self._curvature is None or not self._armed:
            return
        with self._trouble.kept_from_user("the curvature"):
            began = time.perf_counter()
            self._curvature.before_backward(loss, self._scaler.gradient_scale, self._cycle.optimizers)
            self._watching += time.perf_counter() - began

    def _after_backward(self) -> None:
        """Where no torch optimizer exists, the update is the script's own and the backward pass ends the step."""
        if self._armed:
            with self._aside("the gradients"):
                self._parameters.after_backward()
        if self._optimizer_stepped:
            return
        with self._aside("a step"):
            if self._waits_for_optimizer is None:
                self._waits_for_optimizer = an_optimizer_lives()
            if not self._waits_for_optimizer:
                self._end_step()
        if self._stop_after is not None:
            self._stop_if_enough(self._stop_after)

    def _stop_if_enough(self, enough: int) -> None:
        if self.steps >= enough:
            raise StoppedTraining

    def _end_step(self) -> None:
        """On an unsampled step this is all that watching costs: a few microseconds."""
        now = time.perf_counter()
        duration = now - self._step_began
        watching = None
        if self._armed:
            with self._trouble.kept_from_user("a sample"):
                if self._curvature is not None:
                    self._parcels += self._curvature.take(self.steps, self._cycle.optimizers, duration)
                self._parcels += self._left_out.look(self.steps, self.sampled_steps + 1, self._parameters.optimizers)
                self._take_sample()
            watching = self._spent() + time.perf_counter() - now
            self._schedule.finished_sampled(self.steps, duration, watching)
        else:
            self._schedule.finished_plain(duration)
        self._take_step(now - self._started, watching)
        if self._loss.looks_wrong:
            self._schedule.hurry()
        if watching is not None or now - self._flushed > FLUSH_INTERVAL:
            self._flush()
        due = self._schedule.is_sampled(self.steps, now - self._started)
        if due or self._armed:
            self._rearm(due)
        self._updated = False
        self._loss.quiet = not self._armed and self._optimizer_stepped
        self._step_began = now if watching is None else time.perf_counter()

    def _rearm(self, due: bool, any_thread: bool = False) -> None:
        if not self._armed:
            self._arm(any_thread)
        elif due:
            self._taps.rearm()
        else:
            self._disarm()
        if due and self._curvature is not None:
            self._curvature.arm(time.perf_counter() - self._started)
        self._watching = self._parameters.seconds = 0.0

    def _spent(self) -> float:
        """Seconds that the taps took in this step."""
        return self._watching + self._taps.seconds + self._parameters.seconds

    def _arm(self, any_thread: bool) -> None:
        self._armed = True
        self._armed_hooks = [register_optimizer_step_pre_hook(self._before_optimizer)]
        self._stance.hold()
        self._taps.arm(any_thread)

    def _disarm(self) -> None:
        self._armed = False
        if self._curvature is not None:
            self._curvature.disarm()
        self._taps.disarm()
        self._parameters.forget()
        self._stance.release()
        while self._armed_hooks:
            self._armed_hooks.pop().remove()

    # What goes to the record

    def _take_sample(self) -> None:
        sites = self._sites.take_unrecorded()
        made_of, self._made_of = self._made_of, []
        if len(made_of) == 1:  # of several losses, those of two opponents say, each has another meaning
            self._parcels += made_of[0]
        parcels, self._parcels = [*self._parcels, *self._taps.take(self.steps)], []
        overflow = self._parameters.take_overflow()
        self._pending += [lambda: sites, ship(parcels if overflow is None else [withheld(overflow, parcels)])]
        self.sampled_steps += 1

    def _take_step(self, at: float, watching: float | None) -> None:
        self._taken.append((self.steps, at, self._loss.take(), self._learning_rate(), watching))
        self.steps += 1

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        taken, self._taken = self._taken, []
        self._flushed = time.perf_counter()
        self._schedule.aside = self._writer.seconds

        def rows() -> list[Row]:
            steps = [Step(number, at, mean_loss(losses), rate, cost) for number, at, losses, rate, cost in taken]
            return [*(row for make in pending for row in make()), *steps]

        self._writer.put(rows)
        self._writer.note(overhead=self.overhead, steps=self.steps, sampled_steps=self.sampled_steps)

    def _learning_rate(self) -> float | None:
        leader = self._cycle.leader
        rate = leader.param_groups[0].get("lr") if leader is not None else None
        if type(rate) is Tensor and rate.device.type == "cpu" and rate.numel() == 1:
            return rate.item()  # on an accelerator the host would have to wait for it
        return float(rate) if isinstance(rate, (int, float)) else None

    @contextlib.contextmanager
    def _aside(self, place: str) -> Iterator[None]:
        """Beside the user's code: no function mode of it has a say inside, and no error comes out."""
        with self._trouble.kept_from_user(place), torch._C.DisableTorchFunction():
            yield


def _withdraw(watcher: weakref.ref[Watcher]) -> None:
    # In a forked process the hooks would serve a record that another process writes.
    if (one := watcher()) is not None:
        one.withdraw()
