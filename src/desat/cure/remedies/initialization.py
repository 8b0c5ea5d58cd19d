"""initialization: weights drawn anew, so that the signal keeps its variance from layer to layer."""

import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from desat.cure.family import Change, Family
from desat.cure.order import following, has_weights, modules, parent_of

SEED = 0
"""Weights come from a generator of their own, so that the script's random numbers, and its batches, stay the same."""

_INITIALIZED = (nn.Linear, nn.modules.conv._ConvNd)


def apply_initialization(model: nn.Module, value: str) -> list[Change]:
    """Draw the weights of linear and convolutional layers anew and set their biases to zero.

    he: normal with standard deviation gain / sqrt(fan_in), gain sqrt(2) before a rectifier (He et al. 2015, equation
    10), 1 before a bounded nonlinearity, another layer or the output. Where no nonlinearity module follows inside a
    forward method, it is called there as a function, and the gain is He's sqrt(2). xavier: uniform with bound
    sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16).
    """
    remedy = f"initialization={value}"
    generator = torch.Generator().manual_seed(SEED)
    kept = _parameters_of_others(model)
    seen: set[int] = set()
    changes = []
    for path, module in modules(model):
        if not has_weights(module):
            continue
        before = type(module).__name__
        refused = _refusal(module, kept)
        weight = module._parameters.get("weight")
        if refused is not None:
            changes.append(Change(remedy, path, before, before, refused=refused))
        elif weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            after = _draw(module, weight, value, _gain(model, path), generator)
            changes.append(Change(remedy, path, before, after))
    return changes


def _parameters_of_others(model: nn.Module) -> set[int]:
    """The ids of the parameters that belong to modules whose weights are not drawn."""
    others = [module for _, module in modules(model) if not isinstance(module, _INITIALIZED)]
    return {id(parameter) for module in others for parameter in module.parameters(recurse=False)}


def _refusal(module: nn.Module, kept: set[int]) -> str | None:
    """Why the weights of a module must stay, if they must; kept: the ids of parameters that are not drawn."""
    if not isinstance(module, _INITIALIZED):
        return "only linear and convolutional layers are drawn"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weights are computed from other parameters"
    if is_lazy(weight):
        return "its shape is known after the first forward pass"
    if weight.is_meta or not weight.is_floating_point():
        return f"weights of {weight.dtype} on {weight.device} are not drawn"
    if not weight.requires_grad:
        return "its weights are frozen, so they are meant to stay"
    if id(weight) in kept:
        return "it shares its weights with a module that is not drawn"
    return None


@torch.no_grad()
def _draw(module: nn.Module, weight: Tensor, value: str, gain: float, generator: torch.Generator) -> str:
    # Drawn on the CPU, so that a network gets the same weights on every device.
    fresh = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    fan_in, fan_out = _fans(module, weight)
    if value == "he":
        deviation = gain / math.sqrt(fan_in)
        fresh.normal_(0.0, deviation, generator=generator)
        told = f"normal, standard deviation {deviation:.4g}"
    else:
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        fresh.uniform_(-bound, bound, generator=generator)
        told = f"uniform within {bound:.4g}"
    weight.copy_(fresh)
    if isinstance(module.bias, Tensor):
        module.bias.zero_()
    return f"{type(module).__name__} with weights {told}"


def _fans(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """How many inputs one output sums over, and how many outputs one input reaches."""
    window = math.prod(weight.shape[2:])
    first, second = weight.shape[0] // getattr(module, "groups", 1) * window, weight.shape[1] * window
    fan_in, fan_out = (first, second) if getattr(module, "transposed", False) else (second, first)
    return max(1, fan_in), max(1, fan_out)


def _gain(model: nn.Module, path: str) -> float:
    curve, weights_follow = following(model, path)
    if curve is not None:
        return 1.0 if curve.shape == "bounded" else math.sqrt(2.0)
    # A Sequential calls nothing between its children; a forward method of the user's may.
    return math.sqrt(2.0) if weights_follow and not isinstance(parent_of(model, path), nn.Sequential) else 1.0


INITIALIZATION = Family("initialization", ("xavier", "he"), apply_initialization)
