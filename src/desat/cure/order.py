"""The order of a network's modules, as they were registered: what is known before the first forward pass."""

from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from desat.nonlinearity import Curve, curve_of
from desat.watch.modules import ADDED_PREFIX

_PARAMETRIZATIONS = "parametrizations"
"""The child under which torch.nn.utils.parametrize keeps what a parameter is computed from; no layer of its own."""

REMEDY_PREFIX = ADDED_PREFIX
"""A child so called was put there by a remedy; the module that bears it is the layer that it was."""


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each module, in the order of registration; a shared module comes once."""
    for path, module in model.named_modules():
        if _PARAMETRIZATIONS not in path.split("."):
            yield path, module


def leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those of the modules that have no children but what a parametrization or a remedy has put there.

    What a remedy has put there is among them, unless it has weights: such a projection runs beside the chain of layers.
    """
    for path, module in modules(model):
        if of_remedy(path) and has_weights(module):
            continue
        if all(name == _PARAMETRIZATIONS or name.startswith(REMEDY_PREFIX) for name, _ in module.named_children()):
            yield path, module


def of_remedy(path: str) -> bool:
    """Whether a remedy has put there the module at `path`."""
    return any(name.startswith(REMEDY_PREFIX) for name in path.split("."))


def has_weights(module: nn.Module) -> bool:
    """Whether a module multiplies by weights of its own: a matrix, a kernel, one of unknown shape or a computed one."""
    own = module.parameters(recurse=False)
    return is_parametrized(module) or any(is_lazy(parameter) or parameter.dim() >= 2 for parameter in own)


def nonlinearity_curve(module: nn.Module) -> Curve | None:
    """The curve of a module that is a nonlinearity; None for any other, and where its parameters have no shape yet."""
    if is_parametrized(module) or any(is_lazy(parameter) for parameter in module.parameters()):
        return None
    return curve_of(module)


def parent_of(model: nn.Module, path: str) -> nn.Module | None:
    """The module that holds the one at `path`; None for the model itself."""
    return model.get_submodule(path.rpartition(".")[0]) if path else None


def following(model: nn.Module, path: str) -> tuple[nn.Module | None, bool]:
    """The nonlinearity between the leaf at `path` and the next leaf with weights, and whether there is such a leaf."""
    ordered = list(leaves(model))
    nonlinearity = None
    for _, module in ordered[_place(ordered, path) + 1 :]:
        if has_weights(module):
            return nonlinearity, True
        if nonlinearity is None and nonlinearity_curve(module) is not None:
            nonlinearity = module
    return nonlinearity, False


def preceding(model: nn.Module, path: str) -> list[nn.Module]:
    """The leaves between the leaf at `path` and the one with weights before it, the nearest first."""
    ordered = list(leaves(model))
    between = []
    for _, module in reversed(ordered[: _place(ordered, path)]):
        if has_weights(module):
            break
        between.append(module)
    return between


def _place(ordered: list[tuple[str, nn.Module]], path: str) -> int:
    return next((place for place, (name, _) in enumerate(ordered) if name == path), len(ordered))
