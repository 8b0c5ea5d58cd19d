"""What both experiments of Glorot and Bengio 2010 share: their two initializations."""

import math

from torch import nn

from desat.deck.slide import Reading
from desat.reference.initialization import UNIFORM_REACH, xavier_std

READING = Reading(
    "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks",
    "https://proceedings.mlr.press/v9/glorot10a.html",
)


def draw_standard(model: nn.Module) -> None:
    """Weights uniform within 1 / root(fan_in) to both sides, biases zero: the paper's equation 1."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            bound = 1.0 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


def draw_normalized(model: nn.Module) -> None:
    """Weights uniform within root(6 / (fan_in + fan_out)) to both sides, biases zero: the paper's equation 16."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            bound = UNIFORM_REACH * xavier_std(layer.in_features, layer.out_features)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
