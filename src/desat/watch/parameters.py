"""Parameters at a sampled step: their gradients before the optimizer's step, their change by it.

Of each optimizer is kept what does not change from step to step: which parameters there are, their sites, and which
entries of them are looked at. Nothing here holds a parameter or a gradient beyond its step.
"""

import functools
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from desat.record.rows import Reading, Row, Site
from desat.watch.entries import KINDS, Layout, measure_changes, measure_magnitudes, take_gradients, take_values
from desat.watch.gradient_noise import NoiseWindow
from desat.watch.modules import Network
from desat.watch.optimizer_settings import settings_parcel
from desat.watch.optimizers import denominators
from desat.watch.parameter_rows import Shares, StepArrays, parameter_rows
from desat.watch.precision import ScalerTap
from desat.watch.shipment import Parcel
from desat.watch.sites import Sites
from desat.watch.trouble import Trouble

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Part(NamedTuple):
    """The parameters of one optimizer on one device."""

    references: list[weakref.ref[Tensor]]
    sites: list[Site]
    layout: Layout
    window: NoiseWindow

    def parameters(self) -> list[Tensor | None]:
        """Those that are still there; one whose memory was taken away (by a sharding wrapper, say) is not."""
        alive = [reference() for reference in self.references]
        return [None if one is None or not one.data_ptr() else one for one in alive]

    def same_as(self, other: "Part") -> bool:
        ours, theirs = self.layout, other.layout
        places = [site.id for site in self.sites] == [site.id for site in other.sites]
        return places and (ours.device, ours.shapes) == (theirs.device, theirs.shapes)


class Plan(NamedTuple):
    """What is looked at of one optimizer. named: every parameter has the name that the network gives it.

    eligible: which of the candidates are measured.
    """

    candidates: list[weakref.ref[Tensor]]
    eligible: list[int]
    pointers: list[int]
    shapes: list[torch.Size]
    parts: list[Part]
    named: bool

    def fits(self, candidates: list[Tensor]) -> bool:
        """Whether these are the very same parameters, with their memory in the same places."""
        if not self.named or len(candidates) != len(self.candidates):
            return False
        if not all(reference() is one for reference, one in zip(self.candidates, candidates, strict=True)):
            return False
        eligible = [candidates[index] for index in self.eligible]
        return [one.data_ptr() for one in eligible] == self.pointers and [one.shape for one in eligible] == self.shapes


@dataclass(eq=False)
class _Gradients:
    """Of one part, before the step."""

    present: list[bool]
    sample: Tensor
    magnitudes: Tensor
    read: Any
    stored: list[int]


@dataclass(eq=False)
class _Step:
    """A step that has begun. scale: what the gradients are still multiplied by; overflow: not 0 if it does nothing."""

    plan: Plan
    before: list[Tensor]
    gradients: list[_Gradients] | None = None
    backward: list[Tensor] | None = None
    backward_scale: Tensor | None = None
    loss_scale: Tensor | None = None
    scale: Tensor | None = None
    overflow: Tensor | None = None


@dataclass(eq=False)
class _Known:
    """An optimizer that was met. backward: entries of the gradients when a backward pass last ended; their scale."""

    site: Site
    plan: Plan | None = None
    backward: tuple[Plan, list[Tensor], Tensor | None] | None = None
    step: _Step | None = None


class ParameterTap:
    """Reads the parameters of optimizers on both sides of their steps, and their gradients when backward passes end.

    `seconds` is the time spent since it was last set to zero.
    """

    def __init__(self, network: Network, sites: Sites, trouble: Trouble, scaler: ScalerTap) -> None:
        self.seconds = 0.0
        self._network = network
        self._sites = sites
        self._trouble = trouble
        self._scaler = scaler
        self._known: WeakKeyDictionary[Optimizer, _Known] = WeakKeyDictionary()
        self._optimizers = 0
        self._expected: Callable[[], Optimizer | None] = lambda: None
        self._overflow: Tensor | None = None

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that were met and still live."""
        return list(self._known)

    def expect(self, optimizer: Optimizer) -> None:
        """Look at the gradients of this optimizer from the next backward pass on, before it has stepped."""
        self._expected = weakref.ref(optimizer)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Keep entries of the gradients, to be compared with those that the optimizer will get."""
        began = time.perf_counter()
        scale = self._scaler.gradient_scale
        # Not before the first backward pass, so that its site comes behind those of the modules.
        if (expected := self._expected()) is not None:
            self._met(expected)
        for optimizer, known in list(self._known.items()):
            plan = self._plan(optimizer, known)
            samples = [take_gradients(part.layout, _dense_gradients(part)) for part in plan.parts]
            known.backward = (plan, samples, None if scale is None else scale.detach().clone())
        self.seconds += time.perf_counter() - began

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        """Called with the step's arguments, the optimizer first; returns others if the step makes its own gradients.

        Such a step has a closure. What stands in for it measures the gradients when it has run for the first time:
        those at the point that the step starts from.
        """
        began = time.perf_counter()
        known = self._met(optimizer)
        plan = self._plan(optimizer, known)
        before = [take_values(part.layout, part.parameters(), part.layout.buffer) for part in plan.parts]
        known.step = step = _Step(plan, before)
        replaced = self._with_closure(args, kwargs, lambda: self._take_gradients(optimizer, known, step))
        if replaced is None:
            self._take_gradients(optimizer, known, step)
        self.seconds += time.perf_counter() - began
        return replaced

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, number: int) -> list[Parcel]:
        """What the step changed; nothing if nothing was measured before."""
        began = time.perf_counter()
        known = self._known.get(optimizer)
        step, gradients = (None, None) if known is None or known.step is None else (known.step, known.step.gradients)
        if known is None or step is None or gradients is None:
            return []
        known.step = None
        parcels = [
            self._part(optimizer, part, before, one)
            for part, before, one in zip(step.plan.parts, step.before, gradients, strict=True)
        ]
        shipped = [_shipped(known.site.id, number, parcels, step), settings_parcel(optimizer, known.site.id, number)]
        self.seconds += time.perf_counter() - began
        return shipped

    @torch.no_grad()
    def skipped_step(self, optimizer: Optimizer, number: int) -> list[Parcel]:
        """What there is to say of a step that a scaler left out."""
        known = self._met(optimizer)
        known.step = None
        scale = known.backward[2] if known.backward is not None else None
        known.backward = None
        self._overflow = torch.ones(())
        site = known.site.id

        def rows(arrays: list[Any]) -> list[Row]:
            scales = [Reading(site, "loss_scale", number, float(array.sum())) for array in arrays]
            return [Reading(site, "skipped", number, 1.0), *scales]

        return [Parcel([] if scale is None else [scale], rows)]

    def take_overflow(self) -> Tensor | None:
        """A number that is not 0 if gradients overflowed in this step and were not used; None without a scaler."""
        taken, self._overflow = self._overflow, None
        return taken

    def forget(self) -> None:
        """Drop what was kept of backward passes and of steps that have not ended."""
        for known in self._known.values():
            known.backward = known.step = None

    def _met(self, optimizer: Optimizer) -> _Known:
        known = self._known.get(optimizer)
        if known is None:
            self._optimizers += 1
            name = "optimizer" if self._optimizers == 1 else f"optimizer {self._optimizers}"
            known = self._known[optimizer] = _Known(self._sites.meet("optimizer", name, type(optimizer).__name__))
        return known

    def _plan(self, optimizer: Optimizer, known: _Known) -> Plan:
        candidates = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad or parameter.grad is not None
        ]
        if known.plan is None or not known.plan.fits(candidates):
            known.plan = self._planned(candidates, known)
        return known.plan

    def _planned(self, candidates: list[Tensor], known: _Known) -> Plan:
        names, named = self._network.parameter_names(), True
        found: dict[torch.device, list[tuple[Tensor, Site]]] = {}
        eligible = [index for index, one in enumerate(candidates) if _is_eligible(one)]
        for index in eligible:
            parameter = candidates[index]
            path, operation = names.get(id(parameter), ("", "parameter"))
            if not path:
                path, named = f"{known.site.name}.{index}", False
            position = self._sites.position(path.rpartition(".")[0])
            site = self._sites.meet("parameter", path, operation, position=position)
            found.setdefault(parameter.device, []).append((parameter, site))
        parts = [
            Part([weakref.ref(one) for one, _ in pairs], [site for _, site in pairs],
                 Layout.of([one for one, _ in pairs]), NoiseWindow())
            for pairs in found.values()
        ]  # fmt: skip
        for index, part in enumerate(parts):
            # Memory that moves, or a parameter whose name is not known yet, need not begin the window again.
            same = next((old for old in (known.plan.parts if known.plan else []) if old.same_as(part)), None)
            parts[index] = part if same is None else part._replace(window=same.window)
        return Plan(
            [weakref.ref(one) for one in candidates],
            eligible,
            [candidates[index].data_ptr() for index in eligible],
            [candidates[index].shape for index in eligible],
            parts,
            named,
        )

    def _with_closure(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], then: Callable[[], None]
    ) -> Arguments | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            return None
        ran = False

        @functools.wraps(closure)
        def watched(*inner: Any, **named: Any) -> Any:
            nonlocal ran
            result = closure(*inner, **named)
            if not ran:
                ran = True
                with self._trouble.kept_from_user("the parameters"), torch.no_grad():
                    began = time.perf_counter()
                    then()
                    self.seconds += time.perf_counter() - began
            return result

        return ((args[0], watched, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": watched})

    def _take_gradients(self, optimizer: Optimizer, known: _Known, step: _Step) -> None:
        step.gradients = [_measured(part) for part in step.plan.parts]
        scale, overflow = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
        step.scale = scale.detach().clone() if isinstance(scale, Tensor) else None
        step.overflow = self._overflow = overflow.detach().clone() if isinstance(overflow, Tensor) else None
        backward, known.backward = known.backward, None
        if backward is not None and backward[0] is step.plan:
            step.backward, step.backward_scale = backward[1:]
        if backward is not None:
            step.loss_scale = backward[2]

    def _part(self, optimizer: Optimizer, part: Part, before: Tensor, gradients: _Gradients) -> StepArrays[Tensor]:
        parameters = part.parameters()
        found = denominators(optimizer, parameters)
        is_there = [one is not None for one in parameters]
        moments = None if found is None else take_gradients(part.layout, found.moments)
        steps = None if found is None else found.stacked_steps()
        return StepArrays(
            Shares.of(part.layout, [site.id for site in part.sites], is_there, gradients.present, gradients.read,
                      gradients.stored, None if found is None else found.epsilons),
            part.window,
            gradients.sample,
            gradients.magnitudes,
            measure_changes(part.layout, parameters, before, gradients.sample),
            moments,
            steps,
        )  # fmt: skip


def _is_eligible(parameter: Tensor) -> bool:
    """A plain real tensor with elements in memory."""
    return (
        parameter.dtype in KINDS
        and parameter.layout is torch.strided
        and parameter.numel() > 0
        and parameter.device.type != "meta"
        and not is_traceable_wrapper_subclass(parameter)
    )


def _dense_gradients(part: Part) -> list[Tensor | None]:
    """The gradients of a part but for the sparse ones, which cost too much at every backward pass."""
    gradients = [None if one is None else one.grad for one in part.parameters()]
    return [None if one is None or one.layout is not torch.strided else one for one in gradients]


def _measured(part: Part) -> _Gradients:
    gradients = [None if one is None else one.grad for one in part.parameters()]
    stored = part.layout.elements
    if any(one is not None and one.layout is torch.sparse_coo for one in gradients):
        # On an accelerator the host would have to wait for the number of rows.
        gradients = [
            one.coalesce() if one is not None and one.layout is torch.sparse_coo and one.device.type == "cpu" else one
            for one in gradients
        ]
        stored = [
            one._nnz() * (one.numel() // max(one.shape[0], 1)) if one is not None and one.is_sparse else count
            for one, count in zip(gradients, stored, strict=True)
        ]
    magnitudes, read = measure_magnitudes(part.layout, gradients)
    present = [one is not None for one in gradients]
    return _Gradients(present, take_gradients(part.layout, gradients), magnitudes, read, list(stored))


def _shipped(site: int, number: int, parts: list[StepArrays[Tensor]], step: _Step) -> Parcel:
    scales = (step.backward_scale, step.loss_scale, step.scale, step.overflow)
    backward = step.backward or []
    tensors = [tensor for part in parts for tensor in part.tensors()]
    tensors += [*backward, *(scale for scale in scales if scale is not None)]

    def rows(arrays: list[Any]) -> list[Any]:
        arriving = iter(arrays)
        arrived = [part.arrived(arriving) for part in parts]
        before = [next(arriving) for _ in backward] or None
        numbers = [None if scale is None else float(next(arriving).sum()) for scale in scales]
        return parameter_rows(site, number, arrived, before, *numbers)

    return Parcel(tensors, rows)
