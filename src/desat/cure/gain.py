"""The gain that weights need for a nonlinearity, from its curve: no table of names.

Everything is an expectation over z ~ N(0, 1), by the trapezoidal rule on a grid: it is as exact as Gauss-Hermite
quadrature for smooth curves, and does not depend on where a kink lies.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from desat.cure.anatomy import undisturbed

Elementwise = Callable[[Tensor], Tensor]

RANGE = 10.0
"""The grid goes from -RANGE to RANGE standard deviations; what lies outside has a probability of 1e-23."""

POINTS = 2001

LARGEST_GAIN = 4.0
"""A gain that is paid in advance is at most this; before a rectifier it is sqrt(2), before a slope of 1/2 it is 2."""

_SMALLEST_GAIN = 0.1
_SCALES = 41
_REFINEMENTS = 5
"""Scales are tried in even steps of their logarithm, then between the two that hold the crossing, and so on."""


@dataclass(frozen=True)
class Gain:
    """What the weights around a nonlinearity f make up for.

    Measured is what f passes on of what differs from input to input: f(z) - f(0), since a constant that all units add
    is no signal. before: the g with E[(f(g z) - f(0))^2] = 1, for the layer that feeds f; sqrt(2) for ReLU (He et al.
    2015, equation 10), 1 for SELU. None where no g does that, as for a bounded f, whose weights must not grow with what
    it holds back: then the layer that f feeds has the gain `after` = 1 / sqrt(E[(f(z) - f(0))^2]), about 1.59 for tanh
    and 4.80 for the sigmoid; 1 elsewhere. offset: f(0), such as the sigmoid's 1/2.
    """

    before: float | None
    after: float
    offset: float


_PROBES = torch.linspace(-6.0, 6.0, 65, dtype=torch.float64, device="cpu")

NONE = Gain(None, 1.0, 0.0)
"""Of no nonlinearity."""


def gain_of(function: Elementwise) -> Gain:
    """The gain of an elementwise function on float64 tensors. Raises what the function raises."""
    points, weights = normal_grid()
    offset = function(torch.zeros(1, dtype=torch.float64)).item()

    def passed_on(scales: Tensor) -> Tensor:
        return ((function(scales[:, None] * points) - offset).square() * weights).sum(dim=1)

    before = _smallest(passed_on)
    after = 1.0 if before is not None else 1.0 / math.sqrt(passed_on(torch.ones(1, dtype=torch.float64)).item())
    return Gain(before, after, offset)


def fingerprint(function: Elementwise) -> tuple[float, ...]:
    """Values of a nonlinearity: those that agree are the same, of which a network has many copies."""
    return tuple(function(_PROBES).tolist())


def normal_grid() -> tuple[Tensor, Tensor]:
    """Points of a standard normal distribution and their weights, which sum to 1; float64."""
    points = torch.linspace(-RANGE, RANGE, POINTS, dtype=torch.float64, device="cpu")
    weights = torch.exp(-points.square() / 2)
    return points, weights / weights.sum()


def elementwise(
    module: nn.Module | None, function: Any, settings: tuple[Any, ...], keywords: dict[str, Any]
) -> Elementwise:
    """A nonlinearity, a module or a function with its settings, on float64 tensors of the CPU, without a trace."""
    bare: Elementwise = (
        (lambda z: function(z, *settings, **keywords))
        if module is None
        else copy.deepcopy(module).to("cpu", torch.float64).eval().forward
    )

    def evaluated(points: Tensor) -> Tensor:
        # A copy is handed in for those that work in place.
        with undisturbed(nn.Module()), torch._C.DisableTorchFunction(), torch.autocast("cpu", enabled=False):
            return bare(points.clone())

    return evaluated


def _smallest(passed_on: Callable[[Tensor], Tensor]) -> float | None:
    """The smallest scale up to LARGEST_GAIN at which 1 is passed on; None if there is none."""
    low, high = _SMALLEST_GAIN, LARGEST_GAIN
    for _ in range(_REFINEMENTS):
        scales = torch.logspace(math.log10(low), math.log10(high), _SCALES, dtype=torch.float64, device="cpu")
        values = passed_on(scales)
        crossings = ((values[:-1] <= 1.0) & (values[1:] >= 1.0)).nonzero()
        if len(crossings) == 0:
            return None
        place = int(crossings[0])
        low, high = scales[place].item(), scales[place + 1].item()
    return math.sqrt(low * high)
