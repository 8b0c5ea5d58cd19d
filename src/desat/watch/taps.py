"""Taps: what measures a sampled step, from its first forward pass to its optimizer step.

They are installed for a sampled step and removed after it. Nothing that goes wrong in a tap reaches the user's code.
"""

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from desat.nonlinearity import Curve
from desat.record.rows import Site
from desat.watch.functional import NONLINEARITIES, Call, FunctionalCurves, FunctionTap
from desat.watch.inputs import as_received, probe_inputs
from desat.watch.measurements import Measurements, is_measurable
from desat.watch.modules import Member, Network, unit_dimension
from desat.watch.probes import FUNCTION_PROBES, MODULE_PROBES, Finish
from desat.watch.rank import measure_rank
from desat.watch.scene import Scene
from desat.watch.shipment import Parcel
from desat.watch.sites import Sites
from desat.watch.trouble import Trouble

_CALL_OF_A_MODULE = nn.Module._call_impl.__code__

FirstForward = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]
"""What is done before the first forward pass of a root; it may return other arguments for the pass."""


class _Running(NamedTuple):
    """A module that is running. opaque: what happens inside is its own; finish: probes that wait for its output."""

    module: nn.Module
    member: Member | None
    opaque: bool
    finish: list[Finish]


class Taps:
    """Measures modules, functional nonlinearities and the gradients at their outputs.

    `seconds` is the time spent in the taps since they were armed. `first_forward` is called with each root of the
    network and its arguments before it runs for the first time, and may give others.
    """

    def __init__(self, network: Network, sites: Sites, trouble: Trouble, first_forward: FirstForward):
        self._seconds = 0.0
        self._network = network
        self._trouble = trouble
        self._first_forward = first_forward
        self._met: WeakSet[nn.Module] = WeakSet()
        self._meeting = False
        self._measurements = Measurements(trouble)
        self._scene = Scene(sites, self._measurements)
        self._hooks: list[RemovableHandle] = []
        self._running: list[_Running] = []
        self._keyword_inputs: Callable[[dict[str, Any]], None] | None = None
        self._function_tap = FunctionTap(NONLINEARITIES.keys() | FUNCTION_PROBES.keys(), self._call)
        self._curves = FunctionalCurves()
        self._recording = False
        self._thread: int | None = None

    @property
    def measurements(self) -> Measurements:
        return self._measurements

    @property
    def seconds(self) -> float:
        return self._seconds + self._measurements.seconds

    def arm(self, any_thread: bool = False) -> None:
        """Install the hooks; they serve the calling thread only, or the first one in which a network is trained."""
        self._seconds = 0.0
        self._scene.samples += 1
        self._measurements.start()
        self._thread = None if any_thread else threading.get_ident()
        self._hooks = [
            register_module_forward_pre_hook(self._before_module),  # pyright: ignore[reportArgumentType]
            register_module_forward_hook(self._after_module, with_kwargs=True, always_call=True),
        ]

    def disarm(self) -> None:
        """Remove every hook, those on tensors included."""
        self._remove_hooks()
        self._abandon()

    def rearm(self) -> None:
        """Begin the next sampled step, which may be in the midst of a module that is a trainer."""
        self._remove_hooks()
        if self._running and not _a_module_runs():
            self._abandon()
        self.arm()

    @property
    def serves_this_thread(self) -> bool:
        return self._thread == threading.get_ident()

    def _remove_hooks(self) -> None:
        while self._hooks:
            hook = self._hooks.pop()
            hook.remove()
            # torch's handle forgets that it was asked for keyword arguments.
            torch_module._global_forward_hooks_with_kwargs.pop(hook.id, None)
        self._measurements.stop()

    def _abandon(self) -> None:
        """Forget the modules that are running: their ends will not be seen, or they were interrupted."""
        self._running.clear()
        self._function_tap.leave()

    def take(self, step: int) -> list[Parcel]:
        """What was measured since the last call."""
        return self._measurements.take(step)

    def __len__(self) -> int:
        """How many tensors were measured since the last `take`."""
        return len(self._measurements)

    def _before_module(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._thread is None and torch.is_grad_enabled():
            self._thread = threading.get_ident()
        if threading.get_ident() != self._thread or self._meeting or _is_no_pass():
            return None
        given = self._meet(module, args)
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                self._enter(module, self._received(module, args) if given is None else given)
        except Exception as error:
            self._trouble.report("a module", error)
        self._seconds += time.perf_counter() - started
        return given

    def _meet(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Other arguments of a root's first forward pass, if there are; passes made meanwhile are not measured."""
        if self._running or module in self._met:
            return None
        began = time.perf_counter()
        is_new = self._is_new_root(module)
        self._seconds += time.perf_counter() - began
        if not is_new:
            return None
        self._meeting = True
        try:
            return self._first_forward(module, args)
        except Exception as error:
            self._trouble.report("the first forward pass", error)
            return None
        finally:
            self._meeting = False

    def _received(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if self._running else as_received(module, args)

    def _is_new_root(self, module: nn.Module) -> bool:
        """Whether a module that is met for the first time is watched as a network."""
        try:
            with torch._C.DisableTorchFunction():
                if not self._network.admits(module):
                    return False
                self._met.add(module)
                return self._network.is_root(module)
        except Exception as error:
            self._trouble.report("a module", error)
            return False

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        at_top = not self._running
        if at_top and not self._network.admits(module):
            return
        member = self._network.member(module, module if at_top else self._running[0].module)
        if at_top:
            # A forward pass without gradients is a validation; one inside a training pass is a checkpointed block.
            self._recording = torch.is_grad_enabled()
            self._measurements.begin_pass()
            if member is not None and not member.leaf:
                self._scene.producer = None
            # A function mode keeps torch from the faster path it has for attention layers in a validation, and so
            # would change the last bits of a pass that is not measured anyway.
            if self._recording:
                self._function_tap.__enter__()
            self._keyword_inputs = None
        opaque = not at_top and self._running[-1].opaque
        running = _Running(module, member, opaque or _is_opaque(module, member), [])
        self._running.append(running)
        if self._recording and member is not None and not opaque:
            self._scene.path = member.path
            if at_top:
                self._keyword_inputs = probe_inputs(self._scene, member, args)
            if member.curve is not None and is_measurable(tensor := first_tensor(args)):
                self._input(self._scene.module_site(member), tensor, member.curve)
            for kinds, probe in MODULE_PROBES if not isinstance(module, LazyModuleMixin) else ():
                if isinstance(module, kinds) and (finish := probe(self._scene, member, module, args)):
                    running.finish.append(finish)

    def _after_module(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if not self._running or threading.get_ident() != self._thread or self._meeting or _is_no_pass():
            return
        # Of a module that raised, torch gives no keyword arguments to the hooks that are called in any case.
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                self._leave(module, kwargs, output)
        except Exception as error:
            self._trouble.report("a module", error)
        self._seconds += time.perf_counter() - started

    def _leave(self, module: nn.Module, kwargs: dict[str, Any], output: Any) -> None:
        if not any(running.module is module for running in self._running):
            return
        # A module that raised has left its callees behind.
        while self._running[-1].module is not module:
            self._running.pop()
        _, member, _, finish = self._running.pop()
        around = self._running[-1].member if self._running else None
        self._scene.path = around.path if around is not None else ""
        if not self._running and self._recording:
            self._function_tap.__exit__(None, None, None)
        if member is not None and member.leaf and not (self._running and self._running[-1].opaque):
            tensor = first_tensor(output)
            if self._recording and is_measurable(tensor) and tensor.dim():
                site = self._scene.module_site(member)
                self._output(site, tensor)
                if member.curve is not None or module._parameters or module._modules:
                    producer = member.operation if member.curve is None else self._producer
                    measure_rank(self._scene, site, tensor, producer)
            self._scene.producer = member
            self._scene.product = ref(output) if isinstance(output, Tensor) else None
        for call in finish:
            call(output)
        if not self._running and self._keyword_inputs is not None:
            self._keyword_inputs(kwargs)

    def _call(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function that is looked at; one inside a leaf module of torch or inside a nonlinearity is no site."""
        opaque = bool(self._running) and self._running[-1].opaque
        if opaque or not self._recording or threading.get_ident() != self._thread:
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
        return lambda output: self._after_nonlinearity(site, output)

    def _after_nonlinearity(self, site: Site, output: Any) -> None:
        self._output(site, output)
        measure_rank(self._scene, site, output, self._producer)

    @property
    def _producer(self) -> str | None:
        """The operation of the leaf module that ran last."""
        return self._scene.producer.operation if self._scene.producer is not None else None

    def _input(self, site: Site, tensor: Any, curve: Curve) -> None:
        if is_measurable(tensor):
            self._measurements.tensor(site, "input", tensor, curve, unit_dimension(tensor.dim(), self._producer))

    def _output(self, site: Site, tensor: Any) -> None:
        if is_measurable(tensor) and tensor.dim():
            self._measurements.tensor(site, "output", tensor)
            self._measurements.gradient(site, tensor)


def _is_no_pass() -> bool:
    """Whether a forward pass is the repetition of a checkpointed one, in a backward pass, or is being traced."""
    return torch._C._current_graph_task_id() != -1 or torch._C._get_tracing_state() is not None


def _is_opaque(module: nn.Module, member: Member | None) -> bool:
    """Whether calls inside are no sites: of a leaf of torch's, a nonlinearity, and what makes a weight of another."""
    if member is None:
        return False
    is_torchs = type(module).__module__.startswith("torch.")
    return member.makes_weight or (member.leaf and (member.curve is not None or is_torchs))


def _a_module_runs() -> bool:
    """Whether the caller is inside of a module's forward pass."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _CALL_OF_A_MODULE:
        frame = frame.f_back
    return frame is not None


def first_tensor(value: Any) -> Any:
    """The first tensor in a nest of tuples, lists and dicts; None if there is none."""
    if isinstance(value, Tensor):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((tensor for item in items if (tensor := first_tensor(item)) is not None), None)
