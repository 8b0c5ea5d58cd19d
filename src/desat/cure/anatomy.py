"""The anatomy of a network: which calls a forward pass makes, in what order, and what becomes of their results.

One pass beside the training on a real batch, without gradients; random states and buffers are put back after it.
What else a forward method does, such as counting its calls, it does once more.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from desat.cure.edit import Span, span_of_call
from desat.cure.order import has_weights, leaves, modules, nonlinearity_curve
from desat.nonlinearity import Curve
from desat.watch.functional import NONLINEARITIES, FunctionalCurves, FunctionTap, name_of
from desat.watch.sites import user_frame
from desat.watch.taps import first_tensor

_PRODUCTS = {Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__, torch.mul}


@dataclass(eq=False)
class Call:
    """One call of a leaf module, or of a functional nonlinearity.

    path: of the module, or of the one in whose forward method the function is called. module, function: one of them is
    None. input_shape, output_shape: of the first tensor, None where there is none. curve: of a nonlinearity. is_gate:
    its result is multiplied by another tensor. code, span: where the function is called in the user's source.
    settings, keywords: the plain arguments that the function is given after its input.
    """

    path: str
    module: nn.Module | None
    function: Callable[..., Any] | None
    curve: Curve | None
    input_shape: torch.Size | None
    output_shape: torch.Size | None
    is_gate: bool = False
    code: CodeType | None = None
    span: Span | None = None
    settings: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return type(self.module).__name__ if self.function is None else name_of(self.function)

    @property
    def has_weights(self) -> bool:
        return self.module is not None and has_weights(self.module)


@dataclass
class Anatomy:
    """The calls of one forward pass, in the order of execution; a module that runs twice is there twice."""

    calls: list[Call] = field(default_factory=list)

    @property
    def nonlinearities(self) -> list[Call]:
        return [call for call in self.calls if call.curve is not None]

    def is_output(self, call: Call) -> bool:
        """Whether no call with weights comes after it."""
        return not any(later.has_weights for later in self.calls[self.calls.index(call) + 1 :])

    def before(self, call: Call) -> Call | None:
        """The last call with weights before it."""
        earlier = self.calls[: self.calls.index(call)]
        return next((one for one in reversed(earlier) if one.has_weights), None)

    def after(self, call: Call) -> Call | None:
        """The nonlinearity between it and the next call with weights; None where there is none."""
        for later in self.calls[self.calls.index(call) + 1 :]:
            if later.has_weights:
                return None
            if later.curve is not None:
                return later
        return None

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of a module."""
        return [call for call in self.calls if call.module is module]


def dissect(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Anatomy:
    """See one forward pass of the model. Raises what the pass raises."""
    probe = _Probe(model)
    try:
        with probe.mode:
            run_beside(model, args, kwargs)
    finally:
        probe.remove()
    return probe.anatomy


def run_beside(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a forward pass beside the training. Raises what the pass raises."""
    with undisturbed(model), torch.no_grad():
        return model(*args, **kwargs)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put random states and the model's buffers back at the end."""
    states, numpy_states = random.getstate(), np.random.get_state()
    devices = {one.device for one in (*model.parameters(), *model.buffers()) if one.device.type == "cuda"}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        try:
            yield
        finally:
            random.setstate(states)
            np.random.set_state(numpy_states)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


class _Probe:
    """Hooks on the modules and a function mode, which write down the calls."""

    def __init__(self, model: nn.Module) -> None:
        self.anatomy = Anatomy()
        self.mode = FunctionTap(NONLINEARITIES.keys() | _PRODUCTS, self._function)
        self._curves = FunctionalCurves()
        self._paths: list[str] = []
        self._opaque = 0
        self._kept: list[Tensor] = []
        self._makers: dict[int, Call] = {}
        self._hooks: list[RemovableHandle] = []
        ends = {id(module) for _, module in leaves(model)}
        for path, module in modules(model):
            self._hook(path, module, id(module) in ends)

    def remove(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, path: str, module: nn.Module, is_leaf: bool) -> None:
        curve = nonlinearity_curve(module) if is_leaf else None
        opaque = is_leaf and (curve is not None or type(module).__module__.startswith("torch."))

        def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._paths.append(path)
            self._opaque += opaque

        def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._paths.pop()
            self._opaque -= opaque
            if is_leaf and not self._opaque:
                self._note(Call(path, module, None, curve, _shape(args), _shape(output)), output)

        self._hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _function(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function in _PRODUCTS:
            self._multiplied(args)
            return function(*args, **kwargs)
        shape = _shape(args)
        output = function(*args, **kwargs)
        if not self._opaque and (curve := self._curves.of(function, args, kwargs)) is not None:
            frame = user_frame()
            path = self._paths[-1] if self._paths else ""
            call = Call(path, None, function, curve, shape, _shape(output), settings=args[1:], keywords=dict(kwargs))
            if frame is not None:
                call.code, call.span = frame.f_code, span_of_call(frame)
            self._note(call, output)
        return output

    def _note(self, call: Call, output: Any) -> None:
        self.anatomy.calls.append(call)
        tensor = first_tensor(output)
        if tensor is not None and tensor.layout is torch.strided:
            self._kept.append(tensor)  # so that its memory is no other tensor's while the pass runs
            self._makers[tensor.untyped_storage().data_ptr()] = call

    def _multiplied(self, factors: tuple[Any, ...]) -> None:
        tensors = [one for one in factors if isinstance(one, Tensor) and one.dim() and one.layout is torch.strided]
        if len(tensors) < 2:
            return
        for tensor in tensors:
            maker = self._makers.get(tensor.untyped_storage().data_ptr())
            if maker is not None and maker.curve is not None:
                maker.is_gate = True


def _shape(value: Any) -> torch.Size | None:
    tensor = first_tensor(value)
    return None if tensor is None else tensor.shape
