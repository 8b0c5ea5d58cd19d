"""Taps: what measures a sampled step, from its first forward pass to its optimizer step.

They are installed for a sampled step and removed after it. Nothing that goes wrong in a tap reaches the user's code.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.watch.functional import NONLINEARITIES, Call, FunctionalCurves, FunctionTap
from desat.watch.measurements import Measurements, is_measurable
from desat.watch.modules import Member, Network, unit_dimension
from desat.watch.probes import FUNCTION_PROBES, MODULE_PROBES, Finish
from desat.watch.scene import Scene
from desat.watch.shipment import Parcel
from desat.watch.sites import Sites
from desat.watch.trouble import Trouble


class _Running(NamedTuple):
    """A module that is running. finish: what its probes want to be called with its output."""

    module: nn.Module
    member: Member | None
    finish: list[Finish]


class Taps:
    """Measures modules, functional nonlinearities and the gradients at their outputs.

    `seconds` is the time spent in the taps since they were armed. `first_forward` is called with each root of the
    network before it runs for the first time.
    """

    def __init__(self, network: Network, sites: Sites, trouble: Trouble, first_forward: Callable[[nn.Module], None]):
        self._seconds = 0.0
        self._network = network
        self._trouble = trouble
        self._first_forward = first_forward
        self._met: WeakSet[nn.Module] = WeakSet()
        self._measurements = Measurements(trouble)
        self._scene = Scene(sites, self._measurements)
        self._hooks: list[RemovableHandle] = []
        self._running: list[_Running] = []
        self._function_tap = FunctionTap(NONLINEARITIES.keys() | FUNCTION_PROBES.keys(), self._call)
        self._curves = FunctionalCurves()
        self._recording = False
        self._thread = 0

    @property
    def seconds(self) -> float:
        return self._seconds + self._measurements.seconds

    def arm(self) -> None:
        """Install the hooks; they serve the calling thread only."""
        self._seconds = 0.0
        self._measurements.start()
        self._thread = threading.get_ident()
        self._hooks = [
            register_module_forward_pre_hook(self._before_module),
            register_module_forward_hook(self._after_module, always_call=True),
        ]

    def disarm(self) -> None:
        """Remove every hook, those on tensors included."""
        while self._hooks:
            self._hooks.pop().remove()
        self._measurements.stop()

    def take(self, step: int) -> list[Parcel]:
        """What was measured since the last call."""
        return self._measurements.take(step)

    def __len__(self) -> int:
        """How many tensors were measured since the last `take`."""
        return len(self._measurements)

    def _before_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread or _is_repeated():
            return
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                self._enter(module, args)
        except Exception as error:
            self._trouble.report("a module", error)
        self._seconds += time.perf_counter() - started

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        at_top = not self._running
        if at_top and not self._network.admits(module):
            return
        if at_top and module not in self._met:
            self._met.add(module)
            self._first_forward(module)
        member = self._network.member(module, module if at_top else self._running[0].module)
        if at_top:
            # A forward pass without gradients is a validation; one inside a training pass is a checkpointed block.
            self._recording = torch.is_grad_enabled()
            self._measurements.begin_pass()
            if member is not None and not member.leaf:
                self._scene.producer = None
            self._function_tap.__enter__()
        running = _Running(module, member, [])
        self._running.append(running)
        if self._recording and member is not None:
            self._scene.path = member.path
            if member.curve is not None:
                self._input(self._scene.module_site(member), _first_tensor(args), member.curve)
            for kinds, probe in MODULE_PROBES:
                if isinstance(module, kinds) and (finish := probe(self._scene, member, module, args)):
                    running.finish.append(finish)

    def _after_module(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._running or threading.get_ident() != self._thread or _is_repeated():
            return
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                self._leave(module, output)
        except Exception as error:
            self._trouble.report("a module", error)
        self._seconds += time.perf_counter() - started

    def _leave(self, module: nn.Module, output: Any) -> None:
        if not any(running.module is module for running in self._running):
            return
        # A module that raised has left its callees behind.
        while self._running[-1].module is not module:
            self._running.pop()
        _, member, finish = self._running.pop()
        around = self._running[-1].member if self._running else None
        self._scene.path = around.path if around is not None else ""
        if not self._running:
            self._function_tap.__exit__(None, None, None)
        if member is not None and member.leaf:
            if self._recording:
                self._output(self._scene.module_site(member), _first_tensor(output))
            self._scene.producer = member
        for call in finish:
            call(output)

    def _call(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that is looked at; one inside a leaf module of torch or inside a nonlinearity is no site."""
        running = self._running[-1] if self._running else None
        member = running.member if running is not None else None
        inside = running is not None and member is not None and member.leaf and (
            member.curve is not None or type(running.module).__module__.startswith("torch.")
        )  # fmt: skip
        if inside or not self._recording:
            return function(*args, **kwargs)
        finish = self._timed(lambda: self._begin(function, args, kwargs))
        output = function(*args, **kwargs)
        if finish is not None:
            self._timed(lambda: finish(output))
        return output

    def _timed(self, work: Callable[[], Finish | None]) -> Finish | None:
        """Time spent beside the user's call; a fault in it is reported."""
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                return work()
        except Exception as error:
            self._trouble.report("a function", error)
            return None
        finally:
            self._seconds += time.perf_counter() - started

    def _begin(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Finish | None:
        probe = FUNCTION_PROBES.get(function)
        if probe is not None:
            return probe(self._scene, function, args, kwargs)
        curve = self._curves.of(function, args, kwargs) if args and is_measurable(args[0]) else None
        if curve is None:
            return None
        site = self._scene.call_site("nonlinearity", function, curve)
        self._input(site, args[0], curve)
        return lambda output: self._output(site, output)

    def _input(self, site: Site, tensor: Any, curve: Curve) -> None:
        if is_measurable(tensor):
            producer = self._scene.producer.operation if self._scene.producer is not None else None
            self._measurements.tensor(site, "input", tensor, curve, unit_dimension(tensor.dim(), producer))

    def _output(self, site: Site, tensor: Any) -> None:
        if is_measurable(tensor) and tensor.dim():
            self._measurements.tensor(site, "output", tensor)
            self._measurements.gradient(site, tensor)


def _is_repeated() -> bool:
    """Whether a backward pass is running: a forward pass in it is the repetition of a checkpointed one."""
    return torch._C._current_graph_task_id() != -1


def _first_tensor(value: Any) -> Any:
    """The first tensor in a nest of tuples, lists and dicts; None if there is none."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((tensor for item in items if (tensor := _first_tensor(item)) is not None), None)
