"""The order of a network's modules, as they were registered: what is known before the first forward pass."""

from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from desat.nonlinearity import Curve, curve_of

_PARAMETRIZATIONS = "parametrizations"
"""The child under which torch.nn.utils.parametrize keeps what a parameter is computed from; no layer of its own."""


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each module, in the order of registration; a shared module comes once."""
    for path, module in model.named_modules():
        if _PARAMETRIZATIONS not in path.split("."):
            yield path, module


def leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those of the modules that have no children."""
    for path, module in modules(model):
        if all(name == _PARAMETRIZATIONS for name, _ in module.named_children()):
            yield path, module


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


def following(model: nn.Module, path: str) -> tuple[Curve | None, bool]:
    """The nonlinearity between the leaf at `path` and the next leaf with weights, and whether there is such a leaf."""
    after = iter(leaves(model))
    for name, _ in after:
        if name == path:
            break
    curve = None
    for _, module in after:
        if has_weights(module):
            return curve, True
        curve = curve or nonlinearity_curve(module)
    return curve, False
