"""A softmax or sigmoid in the training loop, or in a function of the script, right before a loss that has its own.

It is found by reading the source: its result is the first argument of the loss, written there or under one name that
is used for nothing else. How it is left out of a program that runs: see desat.cure.remedies.bypass.
"""

import ast
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from desat.cure.edit import read_source, span_of
from desat.cure.remedies.bypass import Place, original_of
from desat.cure.remedies.output import FUNCTIONS, LOSSES_OF_SCORES, MODULES, argument_of, argument_text

KINDS = ("softmax", "sigmoid")

_LOSSES = {
    getattr(home, name) for home in (F, nn) for name in set().union(*LOSSES_OF_SCORES.values()) if hasattr(home, name)
}
_RESHAPING = {"squeeze", "unsqueeze", "view", "reshape", "flatten", "contiguous", "float", "double"}
"""Methods that may stand between it and the loss: they leave the numbers as they are."""

_MOVING = {"to", "cuda", "cpu"}
"""Methods of a module that return the module."""

_Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def places_in(files: Iterable[str]) -> list[Place]:
    """All such places in Python files, in order; a file that cannot be read has none."""
    found: list[Place] = []
    for file in dict.fromkeys(os.path.abspath(file) for file in files):
        try:
            found += _Reading(file, read_source(file)).places()
        except (OSError, SyntaxError, ValueError):
            continue
    return found


class _Reading:
    """What is known of one source file without running it."""

    def __init__(self, file: str, source: str) -> None:
        self._file = file
        self._source = source
        self._tree = ast.parse(source)
        self._parents = {child: node for node in ast.walk(self._tree) for child in ast.iter_child_nodes(node)}
        self._imports = _imports(self._tree)
        self._named: dict[str, Any] = {}
        for _ in range(2):  # the second time for a name that another is assigned to
            self._named = self._names_of_modules()

    def places(self) -> list[Place]:
        found = []
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and self._is_loss(node):
                given = _first_argument(node)
                place = None if given is None else self._place(given, node)
                if place is not None:
                    found.append(place)
        return sorted(found, key=lambda place: place.span)

    def _place(self, given: ast.expr, loss: ast.Call) -> Place | None:
        call = self._probabilities(given)
        if call is not None:
            return self._described(call, loss, None)
        inner = _without_reshaping(given)
        if not isinstance(inner, ast.Name):
            return None
        assignment = self._assignment(inner)
        if assignment is None or assignment.value is None:
            return None
        call = self._probabilities(assignment.value)
        if call is None:
            return None
        return self._described(call, loss, self._other_use(inner, assignment, assignment.value))

    def _described(self, call: ast.Call, loss: ast.Call, refused: str | None) -> Place | None:
        looked_up = self._looked_up(call)
        if looked_up is None:
            return None
        home, attribute, position = looked_up
        is_method = home is Tensor and position == 0 and self._object(call.func) is None
        argument = argument_of(call, is_method)
        parent = self._parents[call]
        whole = parent is loss or isinstance(parent, ast.Assign | ast.AnnAssign | ast.keyword)
        text = None if argument is None else argument_text(self._source, argument, whole)
        if text is None:
            return None
        most = 1 if is_method else 2
        if len(call.args) > most or any(one.arg in ("dtype", "out", None) for one in call.keywords):
            refused = refused or "it does more than make probabilities"
        written = f"{ast.unparse(call.func)} before {ast.unparse(loss.func)}"
        span = span_of(call, self._file, self._source)
        start, end = (call.lineno, call.col_offset), (span.end_line, call.end_col_offset or 0)
        return Place(span, written, text, home, attribute, position, start, end, refused)

    def _probabilities(self, node: ast.expr) -> ast.Call | None:
        """The call of a softmax or sigmoid that an expression is, up to its shape."""
        inner = _without_reshaping(node)
        return inner if isinstance(inner, ast.Call) and self._looked_up(inner) is not None else None

    def _looked_up(self, call: ast.Call) -> tuple[Any, str, int] | None:
        """Where a call of a softmax or sigmoid looks up what it runs, and the position of its scores."""
        made = self._made(call.func)
        if made is not None:
            return (made, "__call__", 1) if MODULES.get(made) in KINDS else None
        function = self._object(call.func)
        if callable(function):
            if FUNCTIONS.get(original_of(function)) not in KINDS:
                return None
            if isinstance(call.func, ast.Attribute):
                return self._object(call.func.value), call.func.attr, 0
            return (None, call.func.id, 0) if isinstance(call.func, ast.Name) else None
        return (Tensor, call.func.attr, 0) if isinstance(call.func, ast.Attribute) and _is_method(call) else None

    def _is_loss(self, call: ast.Call) -> bool:
        made = self._made(call.func)
        return self._is_function_of_scores(call.func) if made is None else made in _LOSSES

    def _is_function_of_scores(self, node: ast.expr) -> bool:
        function = self._object(node)
        return isinstance(function, FunctionType) and function in _LOSSES

    def _made(self, node: ast.expr) -> Any:
        """The class of the module that an expression is, as `nn.Softmax(1)`, or a name that always stands for such.

        The loss itself for a name of a function that is one, as after `criterion = F.cross_entropy`.
        """
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in _MOVING:
                return self._made(node.func.value)
            made = self._object(node.func)
            return made if isinstance(made, type) and issubclass(made, nn.Module) else None
        return self._named.get(ast.unparse(node)) if isinstance(node, ast.Name | ast.Attribute) else None

    def _names_of_modules(self) -> dict[str, Any]:
        known: dict[str, set[Any]] = {}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                parent = self._parents[node]
                value = parent.value if isinstance(parent, ast.Assign | ast.AnnAssign) else None
                made = None if value is None else self._made(value)
                if value is not None and made is None and self._is_function_of_scores(value):
                    made = self._object(value)
                known.setdefault(ast.unparse(node), set()).add(made)
        return {name: made.pop() for name, made in known.items() if len(made) == 1 and made != {None}}

    def _object(self, node: ast.expr) -> Any:
        """What a dotted name stands for that begins with an imported one; None where that is not known."""
        parts = ast.unparse(node).split(".") if isinstance(node, ast.Name | ast.Attribute) else [""]
        full = self._imports.get(parts[0])
        if full is None:
            return None
        first, *rest = [*full.split("."), *parts[1:]]
        return functools.reduce(lambda home, name: getattr(home, name, None), rest, sys.modules.get(first))

    def _assignment(self, name: ast.Name) -> ast.Assign | ast.AnnAssign | None:
        """The only assignment to a name, in the function that reads it, that makes probabilities of something."""
        scope = self._scope(name)
        found: list[ast.Assign | ast.AnnAssign] = []
        for node in ast.walk(scope):
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None or self._scope(node) is not scope:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            is_it = len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == name.id
            if is_it and self._probabilities(node.value) is not None:
                found.append(node)
        return found[0] if len(found) == 1 else None

    def _other_use(self, name: ast.Name, assignment: ast.stmt, value: ast.expr) -> str | None:
        """Why what is assigned may be read by others than the loss, or the loss be given something else."""
        scope = self._scope(name)
        own = set(ast.walk(assignment))
        named = [one for one in ast.walk(scope) if isinstance(one, ast.Name) and one.id == name.id and one not in own]
        shared = (node for node in ast.walk(scope) if isinstance(node, ast.Global | ast.Nonlocal))
        if any(isinstance(one.ctx, ast.Load) and one is not name for one in named):
            return f"{name.id} is used elsewhere, too"
        if any(name.id in node.names for node in shared):
            return f"{name.id} is a name of other functions, too"
        block = self._block(assignment)
        number = block.index(assignment)
        above = set(self._above(name))
        reader = next((place for place, one in enumerate(block) if place > number and one in above), None)
        stores = {one for one in named if not isinstance(one.ctx, ast.Load)}
        if reader is None or stores & _nodes(block[number + 1 : reader + 1]):
            return f"it is not certain that {name.id} is what the loss is given"
        reads_itself = any(isinstance(one, ast.Name) and one.id == name.id for one in ast.walk(value))
        loops = any(isinstance(node, ast.For | ast.While | ast.AsyncFor) for node in self._above(assignment, scope))
        if reads_itself and loops and not stores & _nodes(block[:number]):
            return f"{name.id} is carried from one turn of the loop to the next"
        return None

    def _above(self, node: ast.AST, end: ast.AST | None = None) -> Iterator[ast.AST]:
        while (parent := self._parents.get(node)) is not None and parent is not end:
            yield parent
            node = parent

    def _scope(self, node: ast.AST) -> ast.AST:
        return next((one for one in self._above(node) if isinstance(one, _Scope)), self._tree)

    def _block(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statements among which one stands."""
        fields = (value for _, value in ast.iter_fields(self._parents[statement]))
        return next(value for value in fields if isinstance(value, list) and statement in value)


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


def _nodes(statements: Iterable[ast.stmt]) -> set[ast.AST]:
    return {node for statement in statements for node in ast.walk(statement)}


def _first_argument(call: ast.Call) -> ast.expr | None:
    keyword = next((one.value for one in call.keywords if one.arg == "input"), None)
    return call.args[0] if call.args else keyword


def _without_reshaping(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _RESHAPING:
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
