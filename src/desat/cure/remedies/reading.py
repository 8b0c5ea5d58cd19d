"""What is known of one source file without running it: what its names stand for, and what calls what."""

import ast
import functools
import os
import sys
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from desat.cure.edit import KEPT, parsed, read_source
from desat.cure.remedies.bypass import original_of
from desat.cure.remedies.output import FUNCTIONS, LOSSES_OF_SCORES, MODULES

KINDS = ("softmax", "sigmoid")

_LOSSES = {
    getattr(home, name) for home in (F, nn) for name in set().union(*LOSSES_OF_SCORES.values()) if hasattr(home, name)
}
_LOSS_FUNCTIONS = _LOSSES | {F.nll_loss}
_RESHAPING = {"squeeze", "unsqueeze", "view", "reshape", "flatten", "contiguous", "float", "double"}
"""Methods that may stand between it and the loss: they leave the numbers as they are."""

_MOVING = {"to", "cuda", "cpu"}
"""Methods of a module that return the module."""

Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True, eq=False)
class _Text:
    """What a file's text alone tells. stored: what is assigned to, with the value where it is assigned as a whole."""

    tree: ast.Module
    parents: dict[ast.AST, ast.AST]
    calls: list[ast.Call]
    stored: list[tuple[str, ast.expr | None]]
    imports: dict[str, str]


@functools.lru_cache(KEPT)
def _parsed(source: str) -> _Text:
    """Raises SyntaxError or ValueError where it is none of Python's."""
    tree = parsed(source)
    nodes = list(ast.walk(tree))
    parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
    stored: list[tuple[str, ast.expr | None]] = []
    for node in nodes:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            parent = parents[node]
            value = parent.value if isinstance(parent, ast.Assign | ast.AnnAssign) else None
            stored.append((ast.unparse(node), value))
    return _Text(tree, parents, [node for node in nodes if isinstance(node, ast.Call)], stored, _imports(tree))


class Reading:
    """One source file. Raises SyntaxError or ValueError where it is none of Python's."""

    def __init__(self, file: str, source: str) -> None:
        self.file = file
        self.source = source
        self._text = _parsed(source)
        self.tree, self.parents, self.calls = self._text.tree, self._text.parents, self._text.calls
        self._named: dict[str, Any] = {}
        for _ in range(2):  # the second time for a name that another is assigned to
            self._named = self._names_of_modules()

    def probabilities(self, node: ast.expr) -> ast.Call | None:
        """The call of a softmax or sigmoid that an expression is, up to its shape."""
        inner = without_reshaping(node)
        return inner if isinstance(inner, ast.Call) and self.looked_up(inner) is not None else None

    def looked_up(self, call: ast.Call) -> tuple[Any, str] | None:
        """Where a call of a softmax or sigmoid looks up what it runs."""
        made = self.made(call.func)
        if made is not None:
            return (made, "__call__") if MODULES.get(made) in KINDS else None
        function = self.object(call.func)
        if callable(function):
            return self.home(call.func) if FUNCTIONS.get(original_of(function)) in KINDS else None
        return (Tensor, call.func.attr) if isinstance(call.func, ast.Attribute) and _is_method(call) else None

    def home(self, function: ast.expr) -> tuple[Any, str] | None:
        """Where a dotted name is looked up, and as what: None, for a name of the file's own, and that name."""
        if isinstance(function, ast.Attribute):
            return self.object(function.value), function.attr
        return (None, function.id) if isinstance(function, ast.Name) else None

    def is_method(self, call: ast.Call) -> bool:
        """Whether a call of a softmax or sigmoid is that of a tensor's own method."""
        return self.looked_up(call) == (Tensor, getattr(call.func, "attr", "")) and self.object(call.func) is None

    def is_loss(self, call: ast.Call) -> bool:
        made = self.made(call.func)
        return self._is_function_of_scores(call.func) if made is None else made in _LOSSES

    def _is_function_of_scores(self, node: ast.expr) -> bool:
        function = self.object(node)
        return isinstance(function, FunctionType) and function in _LOSSES

    def made(self, node: ast.expr) -> Any:
        """The class of the module that an expression is, as `nn.Softmax(1)`, or a name that always stands for such.

        The loss itself for a name of a function that is one, as after `criterion = F.cross_entropy`.
        """
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in _MOVING:
                return self.made(node.func.value)
            made = self.object(node.func)
            return made if isinstance(made, type) and issubclass(made, nn.Module) else None
        return self._named.get(ast.unparse(node)) if isinstance(node, ast.Name | ast.Attribute) else None

    def _names_of_modules(self) -> dict[str, Any]:
        known: dict[str, set[Any]] = {}
        for name, value in self._text.stored:
            made = None if value is None else self.made(value)
            function = None if value is None else original_of(self.object(value))
            if made is None and isinstance(function, FunctionType) and function in _LOSS_FUNCTIONS:
                made = function
            known.setdefault(name, set()).add(made)
        return {name: made.pop() for name, made in known.items() if len(made) == 1 and made != {None}}

    def object(self, node: ast.expr) -> Any:
        """What a dotted name stands for that begins with an imported one; None where that is not known."""
        parts = ast.unparse(node).split(".") if isinstance(node, ast.Name | ast.Attribute) else [""]
        full = self._text.imports.get(parts[0])
        if full is None:
            return None
        first, *rest = [*full.split("."), *parts[1:]]
        return functools.reduce(lambda home, name: getattr(home, name, None), rest, sys.modules.get(first))

    def above(self, node: ast.AST, end: ast.AST | None = None) -> Iterator[ast.AST]:
        while (parent := self.parents.get(node)) is not None and parent is not end:
            yield parent
            node = parent

    def scope(self, node: ast.AST) -> ast.AST:
        return next((one for one in self.above(node) if isinstance(one, Scope)), self.tree)


def readings_of(files: Iterable[str]) -> list[Reading]:
    """The files that can be read, each once."""
    found: list[Reading] = []
    for file in dict.fromkeys(os.path.abspath(file) for file in files):
        try:
            found.append(Reading(file, read_source(file)))
        except (OSError, SyntaxError, ValueError):
            continue
    return found


def _imports(tree: ast.Module) -> dict[str, str]:
    """What the imported names of a file stand for; without those that it gives another meaning somewhere."""
    known: dict[str, set[str]] = {}
    methods = {one for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for one in node.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                own = one.name.partition(".")[0]
                known.setdefault(one.asname or own, set()).add(one.name if one.asname else own)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for one in node.names:
                known.setdefault(one.asname or one.name, set()).add(f"{node.module}.{one.name}")
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            known.setdefault(node.id, set()).add("")
        elif isinstance(node, ast.arg):
            known.setdefault(node.arg, set()).add("")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node not in methods:
            known.setdefault(node.name, set()).add("")
    return {name: next(iter(full)) for name, full in known.items() if len(full) == 1 and "" not in full}


def bounds_of(call: ast.Call) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a call begins and ends: lines from 1, columns in bytes from 0, as Python's compiler counts."""
    return (call.lineno, call.col_offset), (call.end_lineno or call.lineno, call.end_col_offset or 0)


def first_argument(call: ast.Call) -> ast.expr | None:
    keyword = next((one.value for one in call.keywords if one.arg == "input"), None)
    return call.args[0] if call.args else keyword


def without_reshaping(node: ast.expr, besides: Container[str] = ()) -> ast.expr:
    """What an expression is but for its shape. besides: names of further methods that are looked through."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr not in _RESHAPING and node.func.attr not in besides:
            break
        node = node.func.value
    return node


def _is_method(call: ast.Call) -> bool:
    """Whether a call reads as that of a tensor's own softmax or sigmoid, and not as that of a module so called."""
    name = getattr(call.func, "attr", "")
    if name == "sigmoid":
        return not call.args and not call.keywords
    written = [*call.args, *(one.value for one in call.keywords if one.arg == "dim")]
    return name == "softmax" and bool(written) and isinstance(_constant(written[0]), int)


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
