"""Ioffe and Szegedy 2015, figure 1: three layers of a hundred sigmoids, with and without batch normalization."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn

from desat.api import apply
from desat.deck.drawing import GREEN, VERMILION, picture
from desat.deck.papers.digit_images import digit_images, has_mnist
from desat.deck.papers.experiment import Outcome, Paper, estimate, named, seeds, smoothed
from desat.deck.papers.signed_percentiles import signed_percentiles
from desat.deck.slide import Figure, Reading, Settings, Statement
from desat.deck.training import Data, accuracy, batches, stack, trained

SHARES = (0.15, 0.5, 0.85)
WIDTH = 100
BATCH = 60
"""The paper's network, batch and percentiles. Its weights are "small random Gaussian values"; the rest is ours."""

DEVIATION = 0.1
LEARNING_RATE = 1.0
STEPS = {True: 120, False: 600}
SAMPLES = {True: 10, False: 40}

LEARNED = 0.5
"""Training loss, in nats, the mean of SMOOTHING steps; the loss of one answer for all digits is 2.3."""

SMOOTHING = 20


@dataclass(frozen=True)
class Run:
    """percentiles: of the inputs to the last sigmoid, (steps, shares), in z. reached: steps until LEARNED, or all."""

    steps: NDArray[np.int64]
    percentiles: NDArray[np.float64]
    reached: int
    accuracy: float

    @property
    def move(self) -> float:
        """The way between the lowest and the highest value of that percentile which moves most."""
        return float(np.ptp(self.percentiles, axis=0).max())


def measure(settings: Settings) -> Outcome:
    plain, normalized = [], []
    for seed in seeds(settings):
        data = digit_images(settings.data, seed)
        plain.append(_train(settings, data, seed, ()))
        normalized.append(_train(settings, data, seed, ("normalization=batch",)))
    where = "MNIST" if has_mnist(settings.data) else "scikit-learn's digits"
    return Outcome(
        (_faster(plain, normalized, STEPS[settings.fast], where), _stable(plain, normalized)),
        _figure(plain[0], normalized[0]),
    )


def _train(settings: Settings, data: Data, seed: int, remedies: tuple[str, ...]) -> Run:
    steps, samples = STEPS[settings.fast], SAMPLES[settings.fast]
    torch.manual_seed(seed)
    model = stack([data.inputs.shape[1], WIDTH, WIDTH, WIDTH, 10], nn.Sigmoid)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=DEVIATION)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    apply(model, optimizer, *remedies)
    source = batches(data.inputs, data.labels, BATCH, seed)
    with trained(model, optimizer, source, steps, every=steps // samples) as record:
        last = record.sites("nonlinearity")[-1]
        losses = smoothed(record.steps()["loss"], SMOOTHING)
        below = np.flatnonzero(losses < LEARNED)
        return Run(
            *signed_percentiles(record, last, SHARES),
            int(below[0]) + 1 if len(below) else steps,
            accuracy(model, data.test_inputs, data.test_labels),
        )


def _faster(plain: list[Run], normalized: list[Run], steps: int, where: str) -> Statement:
    reached = [estimate(float(run.reached) for run in runs) for runs in (plain, normalized)]
    known = [estimate(100.0 * run.accuracy for run in runs) for runs in (plain, normalized)]
    saved = estimate(float(one.reached - other.reached) for one, other in zip(plain, normalized, strict=True))
    never = sum(run.reached == steps for run in plain)
    told = f", where {never} of {len(plain)} had not got there by step {steps} and count as {steps}" if never else ""
    return Statement(
        claim="Ioffe and Szegedy 2015: batch normalization makes a network of sigmoids learn faster.",
        sentence=f"On {where} the training loss is below {LEARNED} after {reached[1]:.0f} steps with it and after "
        f"{reached[0]:.0f} without{told}. By the end the networks know {known[1]:.0f} % of the digits that were held "
        f"out, and {known[0]:.0f} % without.",
        holds=saved.is_positive,
        values=named(steps_with=reached[1], steps_without=reached[0], steps_saved=saved)
        | named(accuracy_with=known[1], accuracy_without=known[0]),
    )


def _stable(plain: list[Run], normalized: list[Run]) -> Statement:
    moves = [estimate(run.move for run in runs) for runs in (plain, normalized)]
    less = estimate(one.move - other.move for one, other in zip(plain, normalized, strict=True))
    return Statement(
        claim="Ioffe and Szegedy 2015: with it the inputs of the last sigmoids keep their distribution.",
        sentence="Of the 15th, 50th and 85th percentile of these inputs, that which moves most moves by "
        f"{moves[1]:.1f} in the course of the training with it and by {moves[0]:.1f} without.",
        holds=less.is_positive,
        values=named(move_with=moves[1], move_without=moves[0], less=less),
    )


def _figure(plain: Run, normalized: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for run, colour, label in (
            (plain, VERMILION, "without"),
            (normalized, GREEN, "with batch normalization"),
        ):
            low, middle, high = run.percentiles.T
            axes.fill_between(run.steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(run.steps, middle, color=colour, label=label)
        axes.set(xlabel="step", ylabel="input z of the last sigmoids", title="15th, 50th and 85th percentile")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.3 * (high - low))
        axes.legend(loc="upper right", ncols=2)

    ends = [", ".join(f"{value:.1f}" for value in run.percentiles[-1]) for run in (plain, normalized)]
    return picture(
        "batchnorm",
        draw,
        alt="The 15th, 50th and 85th percentile of the inputs to the last hidden sigmoids over the steps. Without "
        f"batch normalization they move by up to {plain.move:.1f} and end at {ends[0]}; with it they move by up to "
        f"{normalized.move:.1f} and end at {ends[1]}.",
        caption="Ioffe and Szegedy 2015, figure 1: line, the median; band, 15th to 85th percentile, all units pooled.",
    )


PAPER = Paper(
    "Ioffe and Szegedy 2015",
    Reading(
        "Ioffe and Szegedy 2015, Batch normalization: accelerating deep network training by reducing internal "
        "covariate shift",
        "https://arxiv.org/abs/1502.03167",
    ),
    measure,
)
