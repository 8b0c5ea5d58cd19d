"""initialization: weights drawn anew, so that the signal keeps its variance from layer to layer."""

import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from desat.cure.family import Change, Family
from desat.cure.order import following_nonlinearity, has_weights, leaves
from desat.nonlinearity import curve_of

SEED = 0
"""Weights come from a generator of their own, so that the script's random numbers, and its batches, stay the same."""

_INITIALIZED = (nn.Linear, nn.modules.conv._ConvNd)


def apply_initialization(model: nn.Module, value: str) -> list[Change]:
    """Draw the weights of linear and convolutional layers anew and set their biases to zero.

    he: normal with standard deviation gain / sqrt(fan_in), gain sqrt(2) before a rectifier (He et al. 2015, equation
    10), 1 before anything else. xavier: uniform with bound gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010,
    equation 16), gain 1.
    """
    remedy = f"initialization={value}"
    generator = torch.Generator().manual_seed(SEED)
    seen: set[int] = set()
    changes = []
    for path, module in leaves(model):
        if not has_weights(module):
            continue
        before = type(module).__name__
        weight = getattr(module, "weight", None)
        if not isinstance(module, _INITIALIZED) or not isinstance(weight, Tensor):
            changes.append(
                Change(remedy, path, before, before, refused="only linear and convolutional layers are drawn")
            )
        elif is_lazy(weight):
            changes.append(
                Change(remedy, path, before, before, refused="its shape is known after the first forward pass")
            )
        elif id(weight) not in seen:
            seen.add(id(weight))
            after = _draw(model, path, module, weight, value, generator)
            changes.append(Change(remedy, path, before, after))
    return changes


@torch.no_grad()
def _draw(
    model: nn.Module, path: str, module: nn.Module, weight: Tensor, value: str, generator: torch.Generator
) -> str:
    # Drawn on the CPU, so that a network gets the same weights on every device.
    fresh = torch.empty(weight.shape)
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(fresh)
    if getattr(module, "transposed", False):
        fan_in, fan_out = fan_out, fan_in
    if value == "he":
        deviation = _gain(following_nonlinearity(model, path)) / math.sqrt(fan_in)
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


def _gain(nonlinearity: nn.Module | None) -> float:
    curve = None if nonlinearity is None else curve_of(nonlinearity)
    return math.sqrt(2.0) if curve is not None and curve.shape != "bounded" else 1.0


INITIALIZATION = Family("initialization", ("xavier", "he"), apply_initialization)
