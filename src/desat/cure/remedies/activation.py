"""activation: nonlinearities that saturate at both ends, or die below zero, give way to others.

Rectified units keep a gain of 1 for half of their inputs (Glorot, Bordes and Bengio 2011, section 3), where a sigmoid's
gain is at most 1/4.
"""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from desat.cure import origins
from desat.cure.anatomy import Anatomy, Call
from desat.cure.edit import Edit, call_at, read_source
from desat.cure.family import Change, Choice, Family
from desat.cure.order import has_weights, leaves, nonlinearity_curve, parent_of
from desat.cure.patient import Patient
from desat.cure.remedies.placement import replace_module
from desat.cure.rewrite import functions_of, rewrite

_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}

_ALIVE_BELOW_ZERO = frozenset({"leaky_relu", "prelu", "elu"})
"""What keeps a slope where a ReLU has none, so that its units do not die (Maas et al. 2013; Clevert et al. 2016)."""

_OUTPUT = "no weights come after it, so it is taken for the network's output"
_GATE = "its result is multiplied by another tensor: it is a gate, which has to saturate"


def apply_activation(patient: Patient, value: str, number: float | None) -> list[Change]:
    """Swap every bounded nonlinearity for `value`, modules and calls, but not one that is meant to saturate.

    A ReLU gives way too where `value` keeps a slope below zero.

    Meant are an output and a gate. With a batch at hand a gate is what is multiplied by another tensor in the forward
    pass. Without one it is taken for a gate if it is called so, or ends its parent after a nonlinearity that is not
    bounded: the author had a rectifier at hand and chose otherwise (squeeze-and-excitation, Hu et al. 2018, section
    3). Calls of functions are seen with a batch alone.
    """
    anatomy = patient.anatomy
    changes = _swap_modules(patient, anatomy, value)
    if anatomy is not None:
        changes += _swap_calls(anatomy, value)
    return changes


def _swap_modules(patient: Patient, anatomy: Anatomy | None, value: str) -> list[Change]:
    model, remedy = patient.model, f"activation={value}"
    changes, swapped = [], []
    # All are judged before the first is swapped: what is put in must not speak for what stands beside it.
    for path, module, refused in list(_due(model, anatomy, value)):
        before = after = _described(module)
        if refused is None:
            replacement = _replacement(model, module, value)
            replace_module(model, module, replacement)
            patient.adopt(replacement.parameters(), beside=next(model.parameters()))
            after = _described(replacement)
            swapped.append((len(changes), module))
        changes.append(Change(remedy, path, before, after, refused=refused))
    gone = {id(module) for _, module in swapped}
    for place, module in swapped:
        edits = _constructor_edits(module, gone, value)
        changes[place] = Change(remedy, changes[place].site, changes[place].before, changes[place].after, edits=edits)
    return changes


def _due(model: nn.Module, anatomy: Anatomy | None, value: str) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Path and module of each nonlinearity to be swapped, and why it must stay, if it must."""
    ordered = list(leaves(model))
    last_weights = max((place for place, (_, module) in enumerate(ordered) if has_weights(module)), default=-1)
    for place, (path, module) in enumerate(ordered):
        curve = nonlinearity_curve(module)
        dies = value in _ALIVE_BELOW_ZERO and isinstance(module, nn.ReLU | nn.ReLU6)
        if curve is None or (curve.shape != "bounded" and not dies):
            continue
        calls = [] if anatomy is None else anatomy.of(module)
        refused = _frozen_by_compiler(model, module)
        if refused is None and calls and anatomy is not None:
            refused = _refusal_by_calls(anatomy, calls)
        elif refused is None:
            refused = _OUTPUT if place > last_weights else _refusal_by_names(model, module)
        yield path, module, refused


def _refusal_by_calls(anatomy: Anatomy, calls: Sequence[Call]) -> str | None:
    if any(call.is_gate for call in calls):
        return _GATE
    return _OUTPUT if any(anatomy.is_output(call) for call in calls) else None


def _frozen_by_compiler(model: nn.Module, module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript: apply the remedy before torch.jit"
    if any(type(parent).__name__ == "OptimizedModule" for parent in _parents(model, module)):
        return "it is compiled by itself and would run on as it was: apply the remedy before torch.compile"
    return None


def _refusal_by_names(model: nn.Module, module: nn.Module) -> str | None:
    """Why the module must stay, if one of its places says so."""
    for path in [name for name, other in model.named_modules(remove_duplicate=False) if other is module]:
        if "gate" in path.rpartition(".")[2].lower():
            return "it is called a gate, which has to saturate"
    if any(_ends_after_another_kind(parent, module) for parent in _parents(model, module)):
        return "it ends its module after a nonlinearity of another kind, so it is taken for a gate"
    return None


def _parents(model: nn.Module, module: nn.Module) -> list[nn.Module]:
    paths = [name for name, other in model.named_modules(remove_duplicate=False) if other is module]
    return [parent for path in paths if (parent := parent_of(model, path)) is not None]


def _ends_after_another_kind(parent: nn.Module, module: nn.Module) -> bool:
    children = list(parent.children())
    if isinstance(parent, nn.ModuleList | nn.ModuleDict) or children[-1] is not module:
        return False
    curves = [nonlinearity_curve(child) for child in children]
    return any(curve is not None and curve.shape != "bounded" for curve in curves)


def _replacement(model: nn.Module, module: nn.Module, value: str) -> nn.Module:
    like = next(model.parameters(), None)
    made = _MAKERS[value]().train(module.training)
    return made if like is None else made.to(like.device, like.dtype)


def _described(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


# In the user's source


def _constructor_edits(module: nn.Module, gone: set[int], value: str) -> tuple[Edit, ...]:
    """`nn.ReLU()` in the place of `nn.Tanh()`, where all that was made at that place is swapped."""
    made = origins.constructor(module, gone)
    if made is None:
        return ()
    span, _, call = made
    if not isinstance(call.func, ast.Attribute):
        return ()
    return (Edit(span, f"{ast.unparse(call.func.value)}.{type(_MAKERS[value]()).__name__}()"),)


def _swap_calls(anatomy: Anatomy, value: str) -> list[Change]:
    remedy = f"activation={value}"
    by_place: dict[Any, list[Call]] = defaultdict(list)
    for call in anatomy.nonlinearities:
        dies = value in _ALIVE_BELOW_ZERO and call.name in ("relu", "relu_", "relu6")
        if call.module is None and call.curve is not None and (call.curve.shape == "bounded" or dies):
            by_place[call.span or id(call)].append(call)
    changes, edits, due = [], defaultdict(list), defaultdict(list)
    for calls in by_place.values():
        call, refused = calls[0], _refusal_by_calls(anatomy, calls)
        edit = None if refused is not None else _call_edit(call, value)
        if refused is None and (edit is None or call.code is None):
            refused = "the call could not be read in the source, or the file has no name for torch"
        if refused is not None or edit is None or call.code is None:
            changes.append(Change(remedy, _site(call), call.name, call.name, refused=refused))
            continue
        edits[call.code].append(edit)
        due[call.code].append((call, edit))
    for code, ones in due.items():
        failed = rewrite(code, edits[code])
        for call, edit in ones:
            kept = () if failed else (edit,)
            after = call.name if failed else edit.text
            changes.append(Change(remedy, _site(call), call.name, after, refused=failed, edits=kept))
    return changes


def _site(call: Call) -> str:
    line = "" if call.span is None else f" (line {call.span.line})"
    return f"{call.path}{line}" if call.path else line.strip(" ()")


def _call_edit(call: Call, value: str) -> Edit | None:
    """`torch.relu(h)` in the place of `torch.tanh(h)` or `h.tanh()`."""
    if call.span is None or call.code is None or value == "prelu":
        return None
    source = read_source(call.span.file)
    node = call_at(call.span, source)
    home = _name_of_functions(call.code)
    if node is None or home is None or not isinstance(node.func, ast.Attribute | ast.Name):
        return None
    is_method = isinstance(node.func, ast.Attribute) and not _is_module(node.func.value, call.code)
    inner = node.func.value if is_method and isinstance(node.func, ast.Attribute) else next(iter(node.args), None)
    argument = None if inner is None else ast.get_source_segment(source, inner)
    return None if argument is None else Edit(call.span, f"{home}.{value}({argument})")


def _name_of_functions(code: CodeType) -> str | None:
    """How the file calls torch.nn.functional."""
    for function in functions_of(code):
        for wanted, suffix in ((F, ""), (nn, ".functional"), (torch, ".nn.functional")):
            for name, value in function.__globals__.items():
                if value is wanted:
                    return f"{name}{suffix}"
    return None


def _is_module(node: ast.expr, code: CodeType) -> bool:
    """Whether an expression such as `torch.nn.functional` names a module of Python's."""
    root = node
    while isinstance(root, ast.Attribute):
        root = root.value
    if not isinstance(root, ast.Name):
        return False
    found = [function.__globals__.get(root.id) for function in functions_of(code)]
    return bool(found) and all(type(value) is type(ast) for value in found)


ACTIVATION = Family(
    "activation", tuple(Choice(name, f"nn.{maker.__name__}") for name, maker in _MAKERS.items()), apply_activation
)
