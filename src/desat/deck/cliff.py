"""A loss with a cliff: one sigmoid unit fed back to itself, and gradient descent on it from many starts.

Source: Pascanu, Mikolov and Bengio 2013, section 2.3 and figure 6, with the state behind the sigmoid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.reference.clipping import NORM_EPSILON

Array = NDArray[np.float64]

TIME = 50
"""Steps of the recurrence, as in the paper."""

BEGIN, TARGET = 0.5, 0.7
"""The first state, and what the last one is to be."""

RATE = 0.3
ARRIVED = 0.01
"""Loss below which a descent has arrived: the state ends within 0.1 of its target."""


class Recurrence(nn.Module):
    """h = sigmoid(w h + b), `time` times over, in float64. Takes the first state, of any shape, and gives the last."""

    def __init__(self, weight: float, bias: float, time: int = TIME) -> None:
        super().__init__()
        self.time = time
        self.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([bias], dtype=torch.float64))

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(self.time):
            state = torch.sigmoid(self.weight * state + self.bias)
        return state


@dataclass(frozen=True, eq=False)
class Descent:
    """weights, biases, losses, norms (of the gradient before clipping), lengths of the steps: shape (steps, starts)."""

    weights: Array
    biases: Array
    losses: Array
    norms: Array
    lengths: Array

    @property
    def farthest(self) -> float:
        """The largest magnitude of a weight, anywhere on the way."""
        return float(np.abs(self.weights).max())

    @property
    def arrived(self) -> float:
        """Share of the starts whose last loss is below ARRIVED."""
        return float((self.losses[-1] < ARRIVED).mean())


def loss_and_slopes(
    weights: Array, biases: Array, time: int = TIME, begin: float = BEGIN
) -> tuple[Array, Array, Array]:
    """(h - TARGET)**2 of the recurrence's last state, and its derivatives by weight and bias; all of one shape."""
    state = np.full(np.broadcast(weights, biases).shape, begin)
    by_weight, by_bias = np.zeros_like(state), np.zeros_like(state)
    for _ in range(time):
        following = 0.5 + 0.5 * np.tanh(0.5 * (weights * state + biases))  # the sigmoid, without overflow
        slope = following * (1.0 - following)
        by_weight = slope * (state + weights * by_weight)
        by_bias = slope * (1.0 + weights * by_bias)
        state = following
    apart = state - TARGET
    return apart**2, 2.0 * apart * by_weight, 2.0 * apart * by_bias


def descend(
    weights: Array,
    biases: Array,
    steps: int,
    limit: float | None,
    *,
    rate: float = RATE,
    time: int = TIME,
    begin: float = BEGIN,
) -> Descent:
    """Gradient descent from many starts at once; each clips its own gradient, as clip_by_norm does."""
    places, losses, norms, lengths = [], [], [], []
    for _ in range(steps):
        loss, by_weight, by_bias = loss_and_slopes(weights, biases, time, begin)
        norm = np.hypot(by_weight, by_bias)
        places.append((weights, biases))
        losses.append(loss)
        norms.append(norm)
        factor = rate * (1.0 if limit is None else np.minimum(1.0, limit / (norm + NORM_EPSILON)))
        lengths.append(factor * norm)
        weights, biases = weights - factor * by_weight, biases - factor * by_bias
    trail = np.array(places)
    return Descent(trail[:, 0], trail[:, 1], np.array(losses), np.array(norms), np.array(lengths))
