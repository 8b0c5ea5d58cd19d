"""The order of a network's leaf modules, as they were registered: what is known before the first forward pass."""

from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from desat.nonlinearity import curve_of


def leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each leaf, in the order of registration; a shared module comes once."""
    for path, module in model.named_modules():
        if next(module.children(), None) is None:
            yield path, module


def has_weights(module: nn.Module) -> bool:
    """Whether a leaf multiplies by weights: its parameters include a matrix, a kernel, or one of unknown shape."""
    return any(is_lazy(parameter) or parameter.dim() >= 2 for parameter in module.parameters(recurse=False))


def following_nonlinearity(model: nn.Module, path: str) -> nn.Module | None:
    """The nonlinearity between the leaf at `path` and the next leaf with weights; None if there is none."""
    following = iter(leaves(model))
    for name, _ in following:
        if name == path:
            break
    for _, module in following:
        if has_weights(module):
            return None
        if curve_of(module) is not None:
            return module
    return None
