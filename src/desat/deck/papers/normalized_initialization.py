"""Glorot and Bengio 2010, figures 6 and 7: activations and gradients by layer, standard and normalized."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn

from desat.deck.drawing import GREEN, GREY, VERMILION, picture
from desat.deck.papers.experiment import Outcome, Paper, estimate, named, seeds
from desat.deck.papers.glorot import READING, draw_normalized, draw_standard
from desat.deck.slide import Figure, Settings, Statement
from desat.deck.training import digits, stack, trained

DEPTH = 5
WIDTH = {True: 200, False: 1000}
SAMPLES = 300
"""The paper's: 5 hidden layers of 1000 hyperbolic tangents, and the gradients of 300 images."""

OF_A_LAYER = 20.0 * math.log10(math.sqrt(1.0 / 3.0))
"""Decibels that a linear layer takes with standard weights, of variance 1 / (3 fan_in): the paper's equation 7."""

ALIKE = 20.0 * math.log10(2.0)
"""Decibels within which the first and the last layer count as alike, a factor of two; ours."""


@dataclass(frozen=True)
class Levels:
    """dB of the root mean square by hidden layer: outputs against the first layer's, gradients against the last's."""

    outputs: NDArray[np.float64]
    gradients: NDArray[np.float64]


def measure(settings: Settings) -> Outcome:
    width = WIDTH[settings.fast]
    standard = [_levels(seed, width, draw_standard) for seed in seeds(settings)]
    normalized = [_levels(seed, width, draw_normalized) for seed in seeds(settings)]
    return Outcome(
        (_gradients(standard, normalized), _outputs(standard, normalized)), _figure(standard[0], normalized[0])
    )


def _levels(seed: int, width: int, draw: Callable[[nn.Module], None]) -> Levels:
    torch.manual_seed(seed)
    data = digits(seed)
    model = stack([64, *[width] * DEPTH, 10], nn.Tanh)
    draw(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = (data.inputs[:SAMPLES], data.labels[:SAMPLES])
    with trained(model, optimizer, [batch], 1) as record:
        outputs = record.grid("output", "rms", "nonlinearity").values[:, 0]
        gradients = record.grid("gradient", "rms", "nonlinearity").values[:, 0]
    return Levels(20.0 * np.log10(outputs / outputs[0]), 20.0 * np.log10(gradients / gradients[-1]))


def _gradients(standard: list[Levels], normalized: list[Levels]) -> Statement:
    levels = [estimate(levels.gradients[0] for levels in group) for group in (standard, normalized)]
    expected = (DEPTH - 1) * OF_A_LAYER
    return Statement(
        claim="Glorot and Bengio 2010: with standard weights the gradients shrink from layer to layer on their way "
        "back; with normalized ones they are alike.",
        sentence=f"From the last of {DEPTH} layers of tanh to the first they change by {levels[0]:.1f} dB with "
        f"standard weights, of which the weights' variance explains {expected:.1f}, and by {levels[1]:+.1f} dB with "
        f"normalized ones, which the slope of tanh takes; less than a factor of two, {ALIKE:.1f} dB, counts as alike.",
        holds=max(levels[0].values) < -ALIKE and max(map(abs, levels[1].values)) < ALIKE,
        values=named(standard_db=levels[0], normalized_db=levels[1]) | {"expected_db": expected},
    )


def _outputs(standard: list[Levels], normalized: list[Levels]) -> Statement:
    levels = [estimate(levels.outputs[-1] for levels in group) for group in (standard, normalized)]
    less = estimate(one.outputs[-1] - other.outputs[-1] for one, other in zip(normalized, standard, strict=True))
    return Statement(
        claim="Glorot and Bengio 2010: the activations fade with standard weights, and are alike with normalized ones.",
        sentence=f"From the first layer to the last the outputs change by {levels[0]:.1f} dB with standard weights and "
        f"by {levels[1]:.1f} dB with normalized ones.",
        holds=less.is_positive and max(map(abs, levels[1].values)) < ALIKE,
        values=named(standard_db=levels[0], normalized_db=levels[1], less=less),
    )


def _figure(standard: Levels, normalized: Levels) -> Figure:
    layers = np.arange(1, DEPTH + 1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(layers, (DEPTH - layers) * OF_A_LAYER, color=GREY, linestyle="--", label="a third of the variance")
        axes.plot(layers, normalized.gradients, "o-", color=GREEN, label="normalized")
        axes.plot(layers, standard.gradients, "o-", color=VERMILION, label="standard")
        axes.set(xlabel="hidden layer", ylabel="gradient, dB", title="Tanh: gradient by layer, first step")
        axes.set_xticks(layers)
        axes.legend(loc="lower right")

    return picture(
        "tanh",
        draw,
        alt=f"Gradient by hidden layer against the last one's. With standard weights it falls to "
        f"{standard.gradients[0]:.1f} dB at the first layer, with normalized ones to {normalized.gradients[0]:.1f} dB.",
        caption="Glorot and Bengio 2010, figure 7. Root mean square, against the last layer's.",
    )


PAPER = Paper("Glorot and Bengio 2010", READING, measure)
