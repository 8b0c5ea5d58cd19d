"""The calls of a negative log likelihood in the user's source, and what each of them is given.

What is given is followed back by reading: through names, through the arguments of the functions that the call stands
in, and through what the user's functions return, up to the call of a softmax, of a logarithm or of a network.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from desat.cure.remedies.bypass import original_of
from desat.cure.remedies.output import FUNCTIONS, MODULES
from desat.cure.remedies.reading import Reading, Scope, first_argument, without_reshaping

Origin = Literal["output", "log_softmax", "log", "unknown"]
"""output: what a network returns. log_softmax: of something. log: a logarithm taken by hand. unknown: anything else."""

_NLL = F.nll_loss
_LOGARITHMS = (torch.log, Tensor.log)
_LOG_KINDS = ("log_softmax", "log_sigmoid")
_PERMUTING = {"transpose", "permute", "swapaxes", "movedim"}
_HARMLESS = {"argmax", "shape", "size", "dtype", "device"}
"""What may be asked of probabilities that become logarithms: the answer is the same."""


@dataclass(frozen=True, eq=False)
class Softmax:
    """A call of a softmax or sigmoid whose result is given to the loss. shared: why others may read that result."""

    reading: Reading
    call: ast.Call
    shared: str | None = None


@dataclass(frozen=True, eq=False)
class Use:
    """A call of nll_loss, or of an nn.NLLLoss. how: alias is another name for the function of torch's."""

    reading: Reading
    call: ast.Call
    how: Literal["function", "criterion", "alias"]
    given: frozenset[Origin]
    softmaxes: tuple[Softmax, ...] = ()


def nll_uses(readings: Sequence[Reading]) -> list[Use]:
    """All such calls in some files, in order."""
    found = []
    for reading in readings:
        for call in sorted(reading.calls, key=lambda node: (node.lineno, node.col_offset)):
            how = _how(reading, call)
            given = first_argument(call)
            if how is not None and given is not None:
                found.append(_Flow(readings).use(reading, call, how, given))
    return found


def _how(reading: Reading, call: ast.Call) -> Literal["function", "criterion", "alias"] | None:
    made = reading.made(call.func)
    if made is nn.NLLLoss:
        return "criterion"
    if made is _NLL:
        return "alias"
    return "function" if original_of(reading.object(call.func)) is _NLL else None


class _Flow:
    """Where what one call is given comes from."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = readings
        self._seen: set[ast.AST] = set()
        self._names: list[tuple[Reading, ast.AST, str]] = []

    def use(
        self, reading: Reading, call: ast.Call, how: Literal["function", "criterion", "alias"], given: ast.expr
    ) -> Use:
        found = list(self._of(reading, given))
        calls = [one for one in found if isinstance(one, Softmax)]
        shared = self._other_use() if calls else None
        softmaxes = tuple(Softmax(one.reading, one.call, shared) for one in calls)
        return Use(reading, call, how, frozenset(one for one in found if not isinstance(one, Softmax)), softmaxes)

    def _of(self, reading: Reading, node: ast.expr) -> Iterator[Origin | Softmax]:
        inner = without_reshaping(node, _PERMUTING)
        if inner in self._seen:
            return
        self._seen.add(inner)
        if isinstance(inner, ast.Name):
            yield from self._of_name(reading, inner)
        elif isinstance(inner, ast.Call):
            yield from self._of_call(reading, inner)
        elif isinstance(inner, ast.IfExp):
            yield from self._of(reading, inner.body)
            yield from self._of(reading, inner.orelse)
        else:
            yield "unknown"

    def _of_name(self, reading: Reading, name: ast.Name) -> Iterator[Origin | Softmax]:
        """From all that is assigned to it in the innermost function that does, and from the callers of that."""
        scopes = [one for one in reading.above(name) if isinstance(one, Scope)]
        for scope in scopes:
            named = (one for one in ast.walk(scope) if isinstance(one, ast.Name) and one.id == name.id)
            stores = [one for one in named if isinstance(one.ctx, ast.Store) and reading.scope(one) is scope]
            is_argument = not isinstance(scope, ast.Module) and name.id in _arguments(scope)
            if not stores and not is_argument:
                continue
            self._names.append((reading, scope, name.id))
            for store in stores:
                value = _assigned(reading, store)
                if value is None:
                    yield "unknown"
                else:
                    yield from self._of(reading, value)
            if is_argument and not isinstance(scope, ast.Module):
                yield from self._of_argument(reading, scope, name.id)
            return
        yield "unknown"

    def _of_argument(
        self, reading: Reading, function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, name: str
    ) -> Iterator[Origin | Softmax]:
        """What the callers hand over; what calls nobody sees hand over is taken for a network's output."""
        parent = reading.parents[function]
        own = getattr(function, "name", None)
        if isinstance(function, ast.Lambda) and isinstance(parent, ast.Assign) and len(parent.targets) == 1:
            own = getattr(parent.targets[0], "id", None)
        is_static = any(ast.unparse(one) == "staticmethod" for one in getattr(function, "decorator_list", ()))
        place = _arguments(function).index(name) - (isinstance(parent, ast.ClassDef) and not is_static)
        calls = [] if own in (None, "forward", "__call__") else list(self._calls_of(str(own)))
        if not calls:
            yield "output"
        for caller, call in calls:
            keyword = next((one.value for one in call.keywords if one.arg == name), None)
            is_plain = not any(isinstance(one, ast.Starred) for one in call.args)
            value = call.args[place] if is_plain and 0 <= place < len(call.args) else keyword
            if value is None:
                yield "unknown"
            else:
                yield from self._of(caller, value)

    def _of_call(self, reading: Reading, call: ast.Call) -> Iterator[Origin | Softmax]:
        attribute = getattr(call.func, "attr", "")
        made, function = reading.made(call.func), original_of(reading.object(call.func))
        if reading.looked_up(call) is not None:
            yield Softmax(reading, call)
        elif isinstance(made, type):
            yield "log_softmax" if MODULES.get(made) in _LOG_KINDS else "output"
        elif callable(function) and not isinstance(function, nn.Module):
            returned = list(self._returns(getattr(function, "__name__", "")))
            if function in _LOGARITHMS:
                yield "log"
            elif _kind(function) in _LOG_KINDS:
                yield "log_softmax"
            elif not returned:
                yield "unknown"
            for place, value in returned:
                yield from self._of(place, value)
        elif function is None and attribute in ("log", "log_softmax"):
            yield "log" if attribute == "log" else "log_softmax"
        elif function is None and (returned := list(self._returns(attribute or getattr(call.func, "id", "")))):
            for place, value in returned:
                yield from self._of(place, value)
        else:
            yield "unknown" if hasattr(Tensor, attribute) else "output"

    def _calls_of(self, name: str) -> Iterator[tuple[Reading, ast.Call]]:
        for reading in self._readings:
            for node in ast.walk(reading.tree):
                if isinstance(node, ast.Call) and name in (
                    getattr(node.func, "id", ""),
                    getattr(node.func, "attr", ""),
                ):
                    yield reading, node

    def _returns(self, name: str) -> Iterator[tuple[Reading, ast.expr]]:
        """What the user's functions of a name return; a network's forward method returns its output."""
        for reading in self._readings:
            for function in ast.walk(reading.tree):
                if isinstance(function, ast.FunctionDef) and function.name == name != "forward":
                    for node in ast.walk(function):
                        if isinstance(node, ast.Return) and node.value and reading.scope(node) is function:
                            yield reading, node.value

    def _other_use(self) -> str | None:
        """Why a name on the way from a softmax to the loss may be read by others."""
        for reading, scope, name in self._names:
            for node in ast.walk(scope):
                if not isinstance(node, ast.Name) or node.id != name or not isinstance(node.ctx, ast.Load):
                    continue
                above = next(reading.above(node))
                harmless = getattr(above, "attr", getattr(getattr(above, "func", None), "attr", "")) in _HARMLESS
                if node not in self._seen and not harmless:
                    return f"{name} is used elsewhere, too"
        return None


def _kind(function: object) -> str | None:
    try:
        return FUNCTIONS.get(function)
    except TypeError:  # what cannot be hashed
        return None


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    own = function.args
    return [one.arg for one in (*own.posonlyargs, *own.args, *own.kwonlyargs)]


def _assigned(reading: Reading, store: ast.Name) -> ast.expr | None:
    """What is assigned to a name as a whole."""
    parent = reading.parents[store]
    if isinstance(parent, ast.Assign):
        return parent.value if store in parent.targets else None
    return parent.value if isinstance(parent, ast.AnnAssign | ast.NamedExpr) else None
