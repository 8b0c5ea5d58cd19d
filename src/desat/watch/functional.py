"""Functional nonlinearities: which calls are seen, and their curves.

The list says only what is looked at; whether and where such a function saturates is found from its derivative.
"""

import types
from collections.abc import Callable, Container
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
    resolve_name,
)
from torch.utils._device import DeviceContext

from desat.nonlinearity import Curve, measure_curve

Call = Callable[..., Any]

_NAMES = """
    relu relu_ relu6 leaky_relu leaky_relu_ rrelu rrelu_ elu elu_ selu selu_ celu celu_ gelu silu mish softplus
    softsign sigmoid sigmoid_ logsigmoid tanh tanh_ hardtanh hardtanh_ hardsigmoid hardswish tanhshrink
    hardshrink softshrink threshold threshold_ erf erf_ atan atan_ arctan sin sin_
""".split()  # noqa: SIM905 - a list of words is read as words

NONLINEARITIES: dict[Any, str] = {
    getattr(home, name): f"{prefix}.{name}"
    for prefix, home in (("Tensor", Tensor), ("torch", torch), ("F", F))
    for name in _NAMES
    if hasattr(home, name)
}
"""The functions that are looked at, and how they are called in findings."""


def _opened(function: Any) -> Call:
    """A function of torch's, written in Python, that does not hand itself to a function mode as one whole."""
    names = function.__globals__ | {"has_torch_function": lambda tensors: False}
    opened = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


OPENED: dict[Any, Call] = {F.multi_head_attention_forward: _opened(F.multi_head_attention_forward)}
"""Functions that are looked into, since what is measured happens inside."""


class FunctionTap(TorchFunctionMode):
    """While it is entered, each call of one of the `functions` goes through `handle(function, args, kwargs)`."""

    def __init__(
        self, functions: Container[Any], handle: Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        super().__init__()
        self._functions = functions
        self._handle = handle

    def __torch_function__(
        self, func: Call, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._functions:
            return self._handle(func, args, kwargs)
        if func in OPENED and not _others_listen():
            with self:
                return OPENED[func](*args, **kwargs)
        return func(*args, **kwargs)

    def leave(self) -> None:
        """Take it out of this thread's modes, wherever it is among them."""
        above = []
        while self in _get_current_function_mode_stack():
            mode = _pop_mode()
            if mode is not self:
                above.append(mode)
        for mode in reversed(above):
            _push_mode(mode)


def _others_listen() -> bool:
    """Whether there are function modes of the user's, which would be handed the insides of what is opened."""
    return any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


class FunctionalCurves:
    """Curves of functional nonlinearities, measured once for each function and its settings."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Curve | None] = {}

    def of(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Curve | None:
        """The curve of `function(z, *args[1:], **kwargs)` in z; None if a setting is a tensor."""
        settings = (*args[1:], *kwargs.values())
        if any(not isinstance(setting, (int, float, bool, str, type(None))) for setting in settings):
            return None
        key = (function, args[1:], tuple(sorted(kwargs.items())))
        if key not in self._known:
            self._known[key] = measure_curve(lambda z: function(z, *args[1:], **kwargs))
        return self._known[key]


def name_of(function: Call) -> str:
    """How a function is called in findings, such as `torch.tanh`."""
    return NONLINEARITIES.get(function) or resolve_name(function) or "function"
