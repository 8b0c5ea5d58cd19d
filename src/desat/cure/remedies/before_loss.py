"""A softmax or sigmoid in the training loop, or in a function of the script, right before a loss that has its own.

It is found by reading the source: its result is the first argument of the loss, written there or under one name that
is used for nothing else. How it is left out of a program that runs: see desat.cure.remedies.bypass.
"""

import ast
from collections.abc import Iterable

from desat.cure.edit import Edit, span_of
from desat.cure.remedies.bypass import Place
from desat.cure.remedies.output import argument_of, argument_text
from desat.cure.remedies.reading import Reading, bounds_of, first_argument, readings_of, without_reshaping


def places_in(files: Iterable[str]) -> list[Place]:
    """All such places in Python files, in order; a file that cannot be read has none."""
    return [place for reading in readings_of(files) for place in _places(reading)]


def _places(reading: Reading) -> list[Place]:
    found = []
    for node in ast.walk(reading.tree):
        if isinstance(node, ast.Call) and reading.is_loss(node):
            given = first_argument(node)
            place = None if given is None else _place(reading, given, node)
            if place is not None:
                found.append(place)
    return sorted(found, key=lambda place: place.span)


def _place(reading: Reading, given: ast.expr, loss: ast.Call) -> Place | None:
    call = reading.probabilities(given)
    if call is not None:
        return _described(reading, call, loss, None)
    inner = without_reshaping(given)
    if not isinstance(inner, ast.Name):
        return None
    assignment = _assignment(reading, inner)
    if assignment is None or assignment.value is None:
        return None
    call = reading.probabilities(assignment.value)
    if call is None:
        return None
    return _described(reading, call, loss, _other_use(reading, inner, assignment, assignment.value))


def _described(reading: Reading, call: ast.Call, loss: ast.Call, refused: str | None) -> Place | None:
    looked_up = reading.looked_up(call)
    if looked_up is None:
        return None
    home, attribute = looked_up
    is_method = reading.is_method(call)
    argument = argument_of(call, is_method)
    parent = reading.parents[call]
    whole = parent is loss or isinstance(parent, ast.Assign | ast.AnnAssign | ast.keyword)
    text = None if argument is None else argument_text(reading.source, argument, whole)
    if text is None:
        return None
    most = 1 if is_method else 2
    if len(call.args) > most or any(one.arg in ("dtype", "out", None) for one in call.keywords):
        refused = refused or "it does more than make probabilities"
    written = f"{ast.unparse(call.func)} before {ast.unparse(loss.func)}"
    span = span_of(call, reading.file, reading.source)
    start, end = bounds_of(call)
    return Place(span, written, Edit(span, text), home, attribute, start, end, refused=refused)


def _assignment(reading: Reading, name: ast.Name) -> ast.Assign | ast.AnnAssign | None:
    """The only assignment to a name, in the function that reads it, that makes probabilities of something."""
    scope = reading.scope(name)
    found: list[ast.Assign | ast.AnnAssign] = []
    for node in ast.walk(scope):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None or reading.scope(node) is not scope:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        is_it = len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == name.id
        if is_it and reading.probabilities(node.value) is not None:
            found.append(node)
    return found[0] if len(found) == 1 else None


def _other_use(reading: Reading, name: ast.Name, assignment: ast.stmt, value: ast.expr) -> str | None:
    """Why what is assigned may be read by others than the loss, or the loss be given something else."""
    scope = reading.scope(name)
    own = set(ast.walk(assignment))
    named = [one for one in ast.walk(scope) if isinstance(one, ast.Name) and one.id == name.id and one not in own]
    shared = (node for node in ast.walk(scope) if isinstance(node, ast.Global | ast.Nonlocal))
    if any(isinstance(one.ctx, ast.Load) and one is not name for one in named):
        return f"{name.id} is used elsewhere, too"
    if any(name.id in node.names for node in shared):
        return f"{name.id} is a name of other functions, too"
    block = _block(reading, assignment)
    number = block.index(assignment)
    above = set(reading.above(name))
    reader = next((place for place, one in enumerate(block) if place > number and one in above), None)
    stores = {one for one in named if not isinstance(one.ctx, ast.Load)}
    if reader is None or stores & _nodes(block[number + 1 : reader + 1]):
        return f"it is not certain that {name.id} is what the loss is given"
    reads_itself = any(isinstance(one, ast.Name) and one.id == name.id for one in ast.walk(value))
    loops = any(isinstance(node, ast.For | ast.While | ast.AsyncFor) for node in reading.above(assignment, scope))
    if reads_itself and loops and not stores & _nodes(block[:number]):
        return f"{name.id} is carried from one turn of the loop to the next"
    return None


def _block(reading: Reading, statement: ast.stmt) -> list[ast.stmt]:
    """The statements among which one stands."""
    fields = (value for _, value in ast.iter_fields(reading.parents[statement]))
    return next(value for value in fields if isinstance(value, list) and statement in value)


def _nodes(statements: Iterable[ast.stmt]) -> set[ast.AST]:
    return {node for statement in statements for node in ast.walk(statement)}
