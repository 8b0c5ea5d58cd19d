"""Taps: what measures a sampled step, from its first forward pass to its optimizer step.

They are installed for a sampled step and removed after it. Nothing that goes wrong in a tap reaches the user's code.
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.record.writer import RowMaker
from desat.watch.buffer import Entry, StatisticsBuffer
from desat.watch.functional import Call, FunctionalCurves, FunctionTap, name_of
from desat.watch.modules import Member, Network, call_source, unit_dimension
from desat.watch.normalization import KINDS, measure_normalization
from desat.watch.readings import Readings
from desat.watch.sites import Sites
from desat.watch.statistics import measure
from desat.watch.trouble import Trouble


class Taps:
    """Measures modules, functional nonlinearities and the gradients at their outputs.

    `seconds` is the time spent in the taps since they were armed. `first_forward` is called with each root of the
    network before it runs for the first time.
    """

    def __init__(self, network: Network, sites: Sites, trouble: Trouble, first_forward: Callable[[nn.Module], None]):
        self.seconds = 0.0
        self._network = network
        self._sites = sites
        self._trouble = trouble
        self._first_forward = first_forward
        self._met: WeakSet[nn.Module] = WeakSet()
        self._buffer = StatisticsBuffer()
        self._readings = Readings()
        self._passes = self._forward_pass = 0
        self._learned: set[int] = set()
        self._handles: list[RemovableHandle] = []
        self._running: list[tuple[nn.Module, Member | None]] = []
        self._function_tap = FunctionTap(self._call)
        self._curves = FunctionalCurves()
        self._producer: Member | None = None
        self._first_producers: dict[str, Member | None] = {}
        self._recording = False
        self._thread = 0

    def arm(self) -> None:
        """Install the hooks; they serve the calling thread only."""
        self.seconds = 0.0
        self._thread = threading.get_ident()
        self._handles = [
            register_module_forward_pre_hook(self._before_module),
            register_module_forward_hook(self._after_module, always_call=True),
        ]

    def disarm(self) -> None:
        """Remove every hook, those on tensors included."""
        while self._handles:
            self._handles.pop().remove()

    def take(self, step: int) -> RowMaker:
        """What was measured since the last call, as a function that gives the record's rows."""
        learned, self._learned = self._learned, set()
        tensors, readings = self._buffer.take(step, learned), self._readings.take(step)
        return lambda: [*tensors(), *readings()]

    def __len__(self) -> int:
        """How many tensors were measured since the last `take`."""
        return len(self._buffer)

    def _before_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread or _is_repeated():
            return
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                self._enter(module, args)
        except Exception as error:
            self._trouble.report("a module", error)
        self.seconds += time.perf_counter() - started

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        at_top = not self._running
        if at_top and not self._network.admits(module):
            return
        if at_top and module not in self._met:
            self._met.add(module)
            self._first_forward(module)
        member = self._network.member(module, module if at_top else self._running[0][0])
        if at_top:
            # A forward pass without gradients is a validation; one inside a training pass is a checkpointed block.
            self._recording = torch.is_grad_enabled()
            self._passes += 1
            self._forward_pass = self._passes
            if member is not None and not member.leaf:
                self._producer = None
            self._function_tap.__enter__()
        self._running.append((module, member))
        if self._recording and member is not None and member.curve is not None:
            self._input(self._module_site(member), _first_tensor(args), member.curve)
        if self._recording and member is not None and isinstance(module, KINDS):
            self._normalization(self._module_site(member), module, _first_tensor(args))

    def _after_module(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._running or threading.get_ident() != self._thread or _is_repeated():
            return
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                self._leave(module, output)
        except Exception as error:
            self._trouble.report("a module", error)
        self.seconds += time.perf_counter() - started

    def _leave(self, module: nn.Module, output: Any) -> None:
        if not any(running is module for running, _ in self._running):
            return
        # A module that raised has left its callees behind.
        while self._running[-1][0] is not module:
            self._running.pop()
        member = self._running.pop()[1]
        if not self._running:
            self._function_tap.__exit__(None, None, None)
        if member is not None and member.leaf:
            if self._recording:
                self._output(self._module_site(member), _first_tensor(output))
            self._producer = member

    def _call(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A functional nonlinearity; one inside a leaf module of torch or inside a nonlinearity is no site."""
        module, member = self._running[-1] if self._running else (None, None)
        inside = member is not None and member.leaf and (
            member.curve is not None or type(module).__module__.startswith("torch.")
        )  # fmt: skip
        if inside or not args or not self._recording:
            return function(*args, **kwargs)
        started = time.perf_counter()
        site = None
        try:
            with torch._C.DisableTorchFunction():
                site = self._before_call(function, args, kwargs)
        except Exception as error:
            self._trouble.report("a function", error)
        self.seconds += time.perf_counter() - started
        output = function(*args, **kwargs)
        if site is not None:
            started = time.perf_counter()
            try:
                with torch._C.DisableTorchFunction():
                    self._output(site, output)
            except Exception as error:
                self._trouble.report("a function", error)
            self.seconds += time.perf_counter() - started
        return output

    def _before_call(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Site | None:
        curve = self._curves.of(function, args, kwargs)
        if curve is None or not _is_measurable(args[0]):
            return None
        site = self._functional_site(function, curve)
        self._input(site, args[0], curve)
        return site

    def _module_site(self, member: Member) -> Site:
        if member.curve is None:
            return self._sites.meet("module", member.path, member.operation, call_source)
        # One activation object may serve several layers: the first has its plain path, the others say after whom.
        first = self._first_producers.setdefault(member.path, self._producer)
        name = member.path if first is self._producer else member.path + self._after_producer()
        return self._sites.meet("nonlinearity", name, member.operation, call_source, member.curve)

    def _functional_site(self, function: Call, curve: Curve) -> Site:
        # One line of code may serve several layers, in a loop over them: the layer before it tells them apart.
        source, operation = call_source(), name_of(function)
        name = f"{source or '?'} {operation}{self._after_producer()}"
        return self._sites.meet("nonlinearity", name, operation, lambda: source, curve)

    def _after_producer(self) -> str:
        return f" after {self._producer.path}" if self._producer is not None else ""

    def _input(self, site: Site, tensor: Any, curve: Curve) -> None:
        if _is_measurable(tensor):
            producer = self._producer.operation if self._producer is not None else None
            self._measure(site, "input", tensor, curve, unit_dimension(tensor.dim(), producer))

    def _normalization(self, site: Site, module: nn.Module, tensor: Any) -> None:
        if _is_measurable(tensor) and not self._trouble.is_off(site.name):
            with torch.no_grad():
                self._readings.add(site, measure_normalization(module, tensor))

    def _output(self, site: Site, tensor: Any) -> None:
        if not _is_measurable(tensor) or tensor.dim() == 0:
            return
        self._measure(site, "output", tensor)
        if tensor.requires_grad:
            hook = functools.partial(self._gradient, site, self._forward_pass)
            self._handles.append(tensor.register_hook(hook))

    def _gradient(self, site: Site, forward_pass: int, gradient: Tensor) -> None:
        started = time.perf_counter()
        if _is_measurable(gradient):
            self._forward_pass = forward_pass
            self._learned.add(forward_pass)
            self._measure(site, "gradient", gradient)
        self.seconds += time.perf_counter() - started

    def _measure(
        self, site: Site, quantity: str, tensor: Tensor, curve: Curve | None = None, unit_dimension: int | None = None
    ) -> None:
        if self._trouble.is_off(site.name):
            return
        try:
            with torch.no_grad():
                units = measure(tensor, self._buffer.row(tensor.device), curve, unit_dimension)
            self._buffer.keep(tensor.device, Entry(site, quantity, units, self._forward_pass))
        except Exception as error:
            self._trouble.report(site.name, error)


def _is_repeated() -> bool:
    """Whether a backward pass is running: a forward pass in it is the repetition of a checkpointed one."""
    return torch._C._current_graph_task_id() != -1


def _is_measurable(value: Any) -> bool:
    """A plain real floating tensor with elements; not one that torch.func has wrapped or a compiler traces."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.is_floating_point()
        and value.layout is torch.strided
        and value.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]
        and not torch.compiler.is_compiling()
    )


def _first_tensor(value: Any) -> Any:
    """The first tensor in a nest of tuples, lists and dicts; None if there is none."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((tensor for item in items if (tensor := _first_tensor(item)) is not None), None)
