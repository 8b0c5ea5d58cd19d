"""Slide 2: sigmoid, tanh and ReLU: curve, slope, class, and where each saturates."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor

from desat.deck.drawing import BLUE, GREEN, picture, shade
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement
from desat.nonlinearity import Curve, measure_curve
from desat.reference.activations import relu_derivative, sigmoid_derivative, tanh_derivative

EDGE = 8.0
POINTS = 1601
EXACT = 1e-12
"""Difference between autograd's slope in float64 and the formula's that rounding explains."""

CLASSES = {
    "bounded": "bounded: its slope goes to zero at both ends",
    "rectifier": "a rectifier: its slope goes to zero at one end",
    "open": "open: its slope goes to zero at neither end",
}


@dataclass(frozen=True)
class Function:
    """One activation. ends: where it saturates by algebra, low and high; infinite where it does not."""

    key: str
    name: str
    torch: Callable[[Tensor], Tensor]
    derivative: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    formula: str
    ends: tuple[float, float]


SIGMOID_END = 2.0 * math.atanh(math.sqrt(0.95))
"""The sigmoid's slope is (1 - tanh(z/2)**2) / 4, which is 5 % of its maximum here."""

FUNCTIONS = (
    Function("sigmoid", "Sigmoid", torch.sigmoid, sigmoid_derivative, "σ′ = σ (1 − σ)", (-SIGMOID_END, SIGMOID_END)),
    Function("tanh", "Tanh", torch.tanh, tanh_derivative, "tanh′ = 1 − tanh²", (-SIGMOID_END / 2, SIGMOID_END / 2)),
    Function("relu", "ReLU", torch.relu, relu_derivative, "1 above zero, else 0", (0.0, math.inf)),
)


def build(settings: Settings) -> Page:
    figures, statements = [], []
    for place, function in enumerate(FUNCTIONS):
        settings.progress(function.name, place / len(FUNCTIONS))
        curve = measure_curve(function.torch)
        assert curve is not None
        slope = _slope(function)
        figures.append(_picture(function, curve, slope))
        statements.append(_statement(function, curve, slope))
    return Page(
        words=(
            "An activation is judged by its slope, for that is the factor by which it passes the gradient on. Sigmoid "
            "and tanh are flat at both ends; tanh is four times as steep in the middle and centred on zero.",
            "ReLU passes everything on one side and nothing on the other. So about half of its inputs are saturated "
            "when all is well, and a unit that sees only negative ones has stopped learning.",
        ),
        figures=tuple(figures),
        statements=tuple(statements),
        readings=(
            Reading("Nair and Hinton 2010, Rectified linear units improve restricted Boltzmann machines"),
            Reading(
                "Glorot, Bordes and Bengio 2011, Deep sparse rectifier neural networks",
                "https://proceedings.mlr.press/v15/glorot11a.html",
            ),
        ),
    )


def _grid() -> NDArray[np.float64]:
    return np.linspace(-EDGE, EDGE, POINTS)


def _slope(function: Function) -> NDArray[np.float64]:
    """The derivative on the grid, by autograd in float64."""
    z = torch.tensor(_grid(), requires_grad=True)
    function.torch(z).sum().backward()
    assert z.grad is not None
    return z.grad.numpy()


def _statement(function: Function, curve: Curve, slope: NDArray[np.float64]) -> Statement:
    error = float(np.abs(slope - function.derivative(_grid())).max())
    where = " and ".join(
        f"z {sign} {end:.4g}" for sign, end in (("≤", curve.low), ("≥", curve.high)) if math.isfinite(end)
    )
    agrees = all(
        found == expected or abs(found - expected) < 1e-6
        for found, expected in zip((curve.low, curve.high), function.ends, strict=True)
    )
    precisely = f"within {error:.0e}" if error else "exactly"
    return Statement(
        claim=f"{function.name} is {CLASSES[curve.shape]}.",
        sentence=f"It is saturated at {where}, its slope is {curve.peak_gain:g} at most, and autograd's slope is that "
        f"of the formula, {function.formula}, {precisely}.",
        holds=agrees and error < EXACT,
        values={"low": curve.low, "high": curve.high, "steepest_slope": curve.peak_gain, "largest_error": error},
    )


def _picture(function: Function, curve: Curve, slope: NDArray[np.float64]) -> Figure:
    z = _grid()
    value = function.torch(torch.tensor(z)).numpy()

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(z, value, color=BLUE, label=function.name)
        axes.plot(z, slope, color=GREEN, linestyle="--", label="slope")
        axes.set_xlim(-EDGE, EDGE)
        shade(axes, curve.intervals)
        axes.set_ylim(-1.2 if value.min() < 0.0 else -0.1, min(float(value.max()), 2.0) * 1.1)
        axes.set(xlabel="z", title=f"{function.name}: {curve.shape}")
        axes.legend(loc="lower right" if function.key == "tanh" else "upper left")

    ends = " and ".join(
        f"{side} {end:.2f}" for side, end in (("below", curve.low), ("above", curve.high)) if math.isfinite(end)
    )
    return picture(
        function.key,
        draw,
        alt=f"{function.name} and its slope between -8 and 8; shaded {ends}, where its slope is below 5 % of "
        f"{curve.peak_gain:g}.",
        caption=f"`{function.formula}`",
    )


SLIDE = Slide(
    2,
    "activations",
    "Activation functions",
    build,
    rules=("saturated-activation", "dead-units"),
    remedies=("activation=relu", "activation=leaky_relu", "activation=gelu"),
)
