"""The line that clips gradients, written before the statement that makes the step."""

import ast
from collections.abc import Iterable, Iterator

from torch.optim import Optimizer

from desat.cure.edit import Edit, Span
from desat.cure.remedies.optimizer_source import Constructor, constructor_of, known_name

_FUNCTIONS = {"norm": "clip_grad_norm_", "value": "clip_grad_value_"}

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Module


def clipping_edits(optimizer: Optimizer, treated: Iterable[Optimizer], choice: str, limit: float) -> tuple[Edit, ...]:
    """A call of torch's function for it, before the only step of the optimizer in the file that makes it.

    Nothing where the file makes no such step, or several; where it does not stand on lines of its own; where torch has
    no function for the choice; and where the file has no name for torch.
    """
    made = constructor_of(optimizer, treated)
    if made is None or choice not in _FUNCTIONS:
        return ()
    function = known_name(made.source, f"torch.nn.utils.{_FUNCTIONS[choice]}")
    tree = ast.parse(made.source)
    scopes = _scopes(tree)
    assignment = _assignment(tree, made)
    if function is None or assignment is None:
        return ()
    name, place = assignment
    statements = [one for one in ast.walk(tree) if isinstance(one, ast.Expr)]
    steps = [(one, scaler) for one in statements if (scaler := _stepped(one, name)) is not None]
    if len(steps) != 1:
        return ()
    statement, scaler = steps[0]
    line = made.source.split("\n")[statement.lineno - 1]
    indentation = line[: len(line) - len(line.lstrip())]
    if len(indentation) != statement.col_offset or ";" in line:
        return ()
    parameters = _parameters(made, name, scopes.get(place), scopes.get(statement))
    lines = [f"{function}({parameters}, {limit:g})"]
    if scaler and "unscale_(" not in made.source:
        lines.insert(0, f"{scaler}.unscale_({name})")
    start = Span(made.span.file, statement.lineno, len(indentation), statement.lineno, len(indentation))
    return (Edit(start, "".join(f"{one}\n{indentation}" for one in lines)),)


def _assignment(tree: ast.Module, made: Constructor) -> tuple[str, ast.stmt] | None:
    """What the optimizer is called, a name or an attribute, and where it is made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target = node.targets[0] if len(node.targets) == 1 else None
        else:
            target = node.target if isinstance(node, ast.AnnAssign) else None
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name | ast.Attribute):
            continue
        value = node.value
        if isinstance(value, ast.Call) and (value.lineno, value.end_lineno) == (made.span.line, made.span.end_line):
            return ast.unparse(target), node
    return None


def _stepped(statement: ast.Expr, name: str) -> str | None:
    """The scaler by which a statement steps the optimizer `name`, empty for none; None if it does not step it."""
    call = statement.value
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr != "step" or call.keywords:
        return None
    if not call.args and ast.unparse(call.func.value) == name:
        return ""
    if len(call.args) == 1 and ast.unparse(call.args[0]) == name:
        return ast.unparse(call.func.value)
    return None


def _parameters(made: Constructor, name: str, there: Scope | None, here: Scope | None) -> str:
    """The parameters as the constructor names them, if these names are known at the step; else those of the groups."""
    expression = ast.parse(made.parameters.removeprefix("params="), mode="eval").body
    root = _owner(expression)
    while isinstance(root, ast.Attribute):
        root = root.value
    if isinstance(root, ast.Name) and here is not None and there is not None:
        is_known = here is there or isinstance(there, ast.Module) or root.id in _arguments(here)
        if is_known:
            return ast.unparse(expression)
    return f'[p for group in {name}.param_groups for p in group["params"]]'


def _owner(node: ast.expr) -> ast.expr | None:
    """`model` of `model.parameters()`."""
    if isinstance(node, ast.Call) and not node.args and not node.keywords and isinstance(node.func, ast.Attribute):
        return node.func.value if node.func.attr == "parameters" else None
    return None


def _arguments(scope: Scope) -> set[str]:
    if isinstance(scope, ast.Module):
        return set()
    arguments = scope.args
    return {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}


def _scopes(tree: ast.Module) -> dict[ast.AST, Scope]:
    """By statement: the function that it is in, or the module."""

    def inside(node: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield child, scope
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from inside(child, child if is_function else scope)

    return dict(inside(tree, tree))
