"""activation: nonlinearities that saturate at both ends give way to others.

Rectified units keep a gain of 1 for half of their inputs (Glorot, Bordes and Bengio 2011, section 3), where a sigmoid's
gain is at most 1/4.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from desat.cure.family import Change, Family
from desat.cure.order import has_weights, leaves, nonlinearity_curve, parent_of

_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def apply_activation(model: nn.Module, value: str) -> list[Change]:
    """Swap every bounded nonlinearity module for `value`, but not one that is meant to saturate.

    Taken to be meant are an output (no weights are registered after it) and a gate. What is a gate cannot be known
    before the first forward pass; taken for one is a module called so, and one that ends its parent after a
    nonlinearity that is not bounded: the author had a rectifier at hand and chose otherwise (squeeze-and-excitation,
    Hu et al. 2018, section 3). A gate that shows neither sign is swapped, and stands among the changes.
    """
    remedy = f"activation={value}"
    changes = []
    # All are judged before the first is swapped: what is put in must not speak for what stands beside it.
    for path, module, refused in list(_bounded(model)):
        before = after = _described(module)
        if refused is None:
            replacement = _MAKERS[value]().train(module.training)
            _replace(model, module, replacement)
            after = _described(replacement)
        changes.append(Change(remedy, path, before, after, refused=refused))
    return changes


def _bounded(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Path and module of each bounded nonlinearity, and why it must stay, if it must."""
    ordered = list(leaves(model))
    last_weights = max((place for place, (_, module) in enumerate(ordered) if has_weights(module)), default=-1)
    for place, (path, module) in enumerate(ordered):
        curve = nonlinearity_curve(module)
        if curve is None or curve.shape != "bounded":
            continue
        refused = _refusal(model, module)
        if place > last_weights:
            refused = "no weights are registered after it, so it is taken for the network's output"
        yield path, module, refused


def _refusal(model: nn.Module, module: nn.Module) -> str | None:
    """Why the module must stay, if one of its places says so."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled by TorchScript: apply the remedy before torch.jit"
    for path in [name for name, other in model.named_modules(remove_duplicate=False) if other is module]:
        parent = parent_of(model, path)
        if parent is None:
            continue
        if type(parent).__name__ == "OptimizedModule":
            return "it is compiled by itself and would run on as it was: apply the remedy before torch.compile"
        if "gate" in path.rpartition(".")[2].lower():
            return "it is called a gate, which has to saturate"
        if _ends_after_another_kind(parent, module):
            return "it ends its module after a nonlinearity of another kind, so it is taken for a gate"
    return None


def _ends_after_another_kind(parent: nn.Module, module: nn.Module) -> bool:
    children = list(parent.children())
    if isinstance(parent, nn.ModuleList | nn.ModuleDict) or children[-1] is not module:
        return False
    curves = [nonlinearity_curve(child) for child in children]
    return any(curve is not None and curve.shape != "bounded" for curve in curves)


def _replace(model: nn.Module, module: nn.Module, replacement: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is module:
                parent._modules[name] = replacement


def _described(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


ACTIVATION = Family("activation", tuple(_MAKERS), apply_activation)
