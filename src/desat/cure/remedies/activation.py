"""activation: nonlinearities that saturate at both ends give way to others.

Rectified units keep a gain of 1 for half of their inputs (Glorot, Bordes and Bengio 2011, section 3), where a sigmoid's
gain is at most 1/4.
"""

from collections.abc import Callable

from torch import nn

from desat.cure.family import Change, Family
from desat.cure.order import has_weights, leaves
from desat.nonlinearity import curve_of

_MAKERS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def apply_activation(model: nn.Module, value: str) -> list[Change]:
    """Swap every bounded nonlinearity module for `value`, but not one that is meant to saturate.

    Meant to saturate are an output that is a probability (no weights come after it) and a gate (its module has no
    place of its own to be swapped in, or torch keeps it inside a recurrent layer, where it is no module at all).
    """
    remedy = f"activation={value}"
    ordered = list(leaves(model))
    last_weights = max((place for place, (_, module) in enumerate(ordered) if has_weights(module)), default=-1)
    changes = []
    for place, (path, module) in enumerate(ordered):
        curve = curve_of(module)
        if curve is None or curve.shape != "bounded":
            continue
        before = _described(module)
        if place > last_weights:
            reason = "no weights come after it, so it is the network's output"
            changes.append(Change(remedy, path, before, before, refused=reason))
            continue
        replacement = _MAKERS[value]().train(module.training)
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                if child is module:
                    parent._modules[name] = replacement
        changes.append(Change(remedy, path, before, _described(replacement)))
    return changes


def _described(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


ACTIVATION = Family("activation", tuple(_MAKERS), apply_activation)
