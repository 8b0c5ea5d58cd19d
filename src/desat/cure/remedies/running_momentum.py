"""The momentum of a batch normalization: by what share of each batch its running statistics follow."""

import ast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from desat.cure import origins
from desat.cure.edit import Edit
from desat.cure.family import Change
from desat.cure.order import modules

MOMENTUM = 0.1
"""As torch has it by default: half of what is kept is of the last seven batches."""

_PLACE = 2
"""Of momentum among the arguments of the constructors."""


def follow(model: nn.Module, remedy: str, momentum: float) -> list[Change]:
    """Give each batch normalization that keeps running statistics a momentum, in place."""
    norms = [(path, one) for path, one in modules(model) if isinstance(one, _BatchNorm)]
    if not norms:
        kind = type(model).__name__
        return [Change(remedy, "", kind, kind, refused="it has no batch normalization")]
    treated = {id(one) for _, one in norms}
    return [_followed(remedy, path, one, momentum, treated) for path, one in norms]


def _followed(remedy: str, path: str, norm: _BatchNorm, momentum: float, treated: set[int]) -> Change:
    before = f"{type(norm).__name__} of momentum {norm.momentum}"
    refused = None
    if not norm.track_running_stats:
        refused = "it keeps no running statistics"
    elif norm.momentum == momentum:
        refused = "it has that momentum"
    if refused is not None:
        return Change(remedy, path, before, before, refused=refused)
    norm.momentum = momentum
    return Change(remedy, path, before, f"momentum {momentum:g}", edits=_edits(norm, momentum, treated))


def _edits(norm: _BatchNorm, momentum: float, treated: set[int]) -> tuple[Edit, ...]:
    made = origins.constructor(norm, treated)
    if made is None:
        return ()
    span, source, call = made
    if any(isinstance(one, ast.Starred) for one in call.args) or None in {one.arg for one in call.keywords}:
        return ()
    text = f"{momentum:g}"
    places = [ast.get_source_segment(source, one) or "" for one in call.args]
    named = {str(one.arg): ast.get_source_segment(source, one.value) or "" for one in call.keywords}
    if len(places) > _PLACE:
        places[_PLACE] = text
    else:
        named["momentum"] = text
    arguments = [*places, *(f"{name}={value}" for name, value in named.items())]
    return (Edit(span, f"{ast.get_source_segment(source, call.func)}({', '.join(arguments)})"),)
