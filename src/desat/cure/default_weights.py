"""PyTorch's own initialization of its layers, drawn anew."""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from desat.cure.drawing import SEED, is_computed
from desat.cure.family import Change
from desat.cure.order import has_weights, modules, of_remedy

_WORKING = ("reset_parameters", "_reset_parameters")
"""The second is that of the attention and transformer modules, for the weights that their parts hold."""


def apply_default(model: nn.Module, remedy: str) -> list[Change]:
    """Give each module of PyTorch's the parameters that it is made with: weights, biases, embeddings, normalizations.

    A subclass of the user's gets what the class of PyTorch's below it draws. Statistics of batch normalization begin
    anew, too. The global random states stay: all is drawn in a fork of them from SEED.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)), torch.no_grad():
        torch.manual_seed(SEED)
        return list(_reset(model, remedy))


def _reset(model: nn.Module, remedy: str) -> Iterator[Change]:
    seen: set[int] = set()
    ordered = [(path, module) for path, module in modules(model) if not of_remedy(path)]
    for path, module in ordered:
        reset = _method(module, _WORKING[0])
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        before = type(module).__name__
        if not own or (reset is None and (_method(module, _WORKING[1]) or not has_weights(module))):
            continue
        refused = "PyTorch has no initialization of its own for it" if reset is None else _refusal(module)
        if refused is not None:
            yield Change(remedy, path, before, before, refused=refused)
        elif reset is not None and not own & seen:
            seen |= own
            reset(module)
            yield Change(remedy, path, before, f"{before} with the parameters PyTorch makes it with")
    for path, module in reversed(ordered):
        reset, before = _method(module, _WORKING[1]), type(module).__name__
        if reset is None:
            continue
        refused = next((reason for part in module.modules() if (reason := _refusal(part)) is not None), None)
        if refused is None:
            reset(module)
            seen |= {id(parameter) for parameter in module.parameters(recurse=False)}
        after = before if refused else f"{before} with the parameters PyTorch makes it with"
        yield Change(remedy, path, before, after, refused=refused)


def _method(module: nn.Module, name: str) -> Callable[[nn.Module], None] | None:
    """The method of the first class of PyTorch's among those of a module."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.") and name in vars(kind)]
    return getattr(kinds[0], name) if kinds else None


def _refusal(module: nn.Module) -> str | None:
    """Why the parameters of a module must stay, if they must."""
    own = list(module.parameters(recurse=False))
    if is_computed(module):
        return "its weights are computed from other parameters"
    if any(is_lazy(parameter) for parameter in own):
        return "its shape is known after the first forward pass"
    if any(parameter.is_meta or not parameter.is_floating_point() for parameter in own):
        return "its parameters are no real numbers in memory"
    if any(not parameter.requires_grad for parameter in own):
        return "its weights are frozen, so they are meant to stay"
    return None
