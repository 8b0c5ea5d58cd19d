"""How the source says log_softmax where it says softmax or sigmoid, and cross entropy where it says nll_loss."""

import ast
from collections.abc import Iterator

from torch import nn

from desat.cure.edit import Edit, Span, span_of
from desat.cure.remedies.optimizer_source import known_name
from desat.cure.remedies.output import argument_of, argument_text
from desat.cure.remedies.reading import Reading

FUNCTIONAL = "torch.nn.functional"
MODULES = "torch.nn"


def renamed(file: str, source: str, function: ast.expr, home: str, name: str) -> Edit | None:
    """A function, or class, called by another name of the same home; None where the file has no name for that.

    Of a dotted name the last part alone changes.
    """
    span = span_of(function, file, source)
    if isinstance(function, ast.Attribute):
        start = span.end_column - len(function.attr)
        return Edit(Span(file, span.end_line, start, span.end_line, span.end_column), name)
    known = known_name(source, f"{home}.{name}")
    return None if known is None else Edit(span, known)


def logarithm_of_call(file: str, source: str, call: ast.Call, kind: str, is_method: bool) -> Edit | None:
    """The call of a function as that of log_softmax: over the same dimension, for a sigmoid over the classes."""
    name = renamed(file, source, call.func, FUNCTIONAL, "log_softmax")
    if kind == "softmax" or name is None:
        return name
    argument = argument_of(call, is_method)
    text = None if argument is None else argument_text(source, argument, alone=not is_method)
    if text is None:
        return None
    if is_method:
        return Edit(span_of(call, file, source), f"{text}.log_softmax(dim=1)")
    prefix, dot, _ = (ast.get_source_segment(source, call.func) or "").rpartition(".")
    return Edit(
        span_of(call, file, source),
        f"{prefix}{dot}log_softmax({text}, dim=1)" if dot else f"{name.text}({text}, dim=1)",
    )


def logarithm_of_constructor(file: str, source: str, call: ast.Call, kind: str) -> Edit | None:
    """`nn.Softmax(dim=1)` as `nn.LogSoftmax(dim=1)`."""
    name = renamed(file, source, call.func, MODULES, "LogSoftmax")
    if kind == "softmax" or name is None:
        return name
    prefix, dot, _ = (ast.get_source_segment(source, call.func) or "").rpartition(".")
    return Edit(span_of(call, file, source), f"{prefix}.LogSoftmax(dim=1)" if dot else f"{name.text}(dim=1)")


def constructors(reading: Reading, called: ast.expr, kind: type[nn.Module]) -> list[ast.Call]:
    """The calls that make a module of a class that is called as `called`: in that, or in what is assigned to it."""
    if isinstance(called, ast.Call):
        return list(_made_in(reading, called, kind))
    name = ast.unparse(called)
    found: list[ast.Call] = []
    for node in ast.walk(reading.tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is not None and any(target is not None and ast.unparse(target) == name for target in targets):
            found += _made_in(reading, value, kind)
    return found or list(_made_in(reading, reading.tree, kind))


def _made_in(reading: Reading, node: ast.AST, kind: type[nn.Module]) -> Iterator[ast.Call]:
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and reading.object(one.func) is kind:
            yield one
