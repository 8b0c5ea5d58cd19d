"""Glorot and Bengio 2010, figure 2: the top layer of a deep network of sigmoids falls to zero, and recovers late."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn

from desat.deck.drawing import SERIES, VERMILION, picture
from desat.deck.papers.experiment import Outcome, Paper, estimate, named, seeds, smoothed
from desat.deck.papers.glorot import READING, draw_standard
from desat.deck.slide import Figure, Settings, Statement
from desat.deck.training import batches, digits, stack, trained

SIZES = {True: (3, 100, 0.3, 320), False: (4, 64, 0.2, 1800)}
"""Hidden layers, their width, learning rate and steps, fast or not; the paper has 4 layers of 1000 units."""

BATCH = 100
MOMENTUM = 0.9
SAMPLES = {True: 16, False: 60}

STEEPEST = 0.25
"""Of the sigmoid's slope."""

ONE_ANSWER = math.log(10)
"""Loss of the same answer for all digits, in nats."""

ESCAPED = 0.8
"""Share of ONE_ANSWER below which the network has begun to tell the digits apart; ours."""

SMOOTHING = 20

FALLEN = 0.1
"""Mean output of a sigmoid below which its layer counts as fallen to zero; it begins at a half."""


@dataclass(frozen=True)
class Run:
    """outputs, slopes: means of each hidden layer by sampled step, (layers, steps), slopes as a share of STEEPEST.

    escape: the step at which the loss was first below ESCAPED of ONE_ANSWER, the mean of SMOOTHING steps, or the last.
    """

    steps: NDArray[np.int64]
    outputs: NDArray[np.float64]
    slopes: NDArray[np.float64]
    losses: NDArray[np.float64]
    escape: int

    @property
    def top(self) -> NDArray[np.float64]:
        return self.outputs[-1]


def measure(settings: Settings) -> Outcome:
    runs = [_train(settings.fast, seed) for seed in seeds(settings)]
    return Outcome((_falls(runs), _recovers(runs)), _figure(runs[0]))


def _train(fast: bool, seed: int) -> Run:
    depth, width, rate, steps = SIZES[fast]
    torch.manual_seed(seed)
    data = digits(seed)
    model = stack([64, *[width] * depth, 10], nn.Sigmoid)
    draw_standard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    source = batches(data.inputs, data.labels, BATCH, seed)
    with trained(model, optimizer, source, steps, every=steps // SAMPLES[fast]) as record:
        outputs = record.grid("output", "mean", "nonlinearity")
        slopes = record.grid("input", "gain", "nonlinearity").values / STEEPEST
        losses = record.steps()["loss"]
    below = np.flatnonzero(smoothed(losses, SMOOTHING) < ESCAPED * ONE_ANSWER)
    return Run(outputs.steps, outputs.values, slopes, losses, int(below[0]) if len(below) else steps)


def _falls(runs: list[Run]) -> Statement:
    lowest = estimate(run.top.min() for run in runs)
    fallen = [int(np.argmin(run.top)) for run in runs]
    slope = estimate(100.0 * run.slopes[-1, place] for run, place in zip(runs, fallen, strict=True))
    below = estimate(run.outputs[:-1, place].min() for run, place in zip(runs, fallen, strict=True))
    return Statement(
        claim="Glorot and Bengio 2010: early on the top hidden layer of a deep network of sigmoids falls to zero, and "
        "the layers below it do not.",
        sentence=f"The mean output of the top layer, a half at first, falls to {lowest:.3f}, where its slope is "
        f"{slope:.0f} % of the steepest; of the layers below none is under {below:.2f} then.",
        holds=max(lowest.values) < FALLEN and min(below.values) > 3.0 * FALLEN,
        values=named(lowest=lowest, slope_percent=slope, lowest_below=below),
    )


def _recovers(runs: list[Run]) -> Statement:
    steps = len(runs[0].losses)
    escape = estimate(float(run.escape) for run in runs)
    before = estimate(run.losses[: max(1, run.escape // 2)].mean() for run in runs)
    last = estimate(run.top[-1] for run in runs)
    lowest = estimate(run.top.min() for run in runs)
    out = sum(run.escape < steps for run in runs)
    return Statement(
        claim="Glorot and Bengio 2010: it comes out of saturation by itself, but late; until then little is learned.",
        sentence=f"{out} of {len(runs)} networks came out of it. The loss stayed at {before:.2f} in the first half of "
        f"the way ({ONE_ANSWER:.2f} is that of one answer for all digits) and began to fall at step {escape:.0f} of "
        f"{steps}; at the end the top layer's mean output is {last:.2f}.",
        holds=out == len(runs) and min(last.values) > FALLEN and abs(before.mean - ONE_ANSWER) < 0.1,
        values=named(escape=escape, loss_before=before, last=last, lowest=lowest) | {"came_out": float(out)},
    )


def _figure(run: Run) -> Figure:
    depth = len(run.outputs)
    colours = [VERMILION, *(colour for colour in SERIES if colour != VERMILION)]

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for layer in reversed(range(depth)):
            is_top = layer == depth - 1
            axes.plot(
                run.steps,
                run.outputs[layer],
                color=colours[depth - 1 - layer],
                linestyle="-" if is_top else "--",
                label=f"layer {layer + 1}" + (", the top" if is_top else ""),
            )
        axes.set(xlabel="step", ylabel="mean output", ylim=(0.0, 1.0), title="Sigmoids, layer by layer")
        axes.legend(loc="upper right", ncols=2)

    return picture(
        "sigmoids",
        draw,
        alt=f"Mean output of {depth} hidden layers of sigmoids over the steps. That of the top layer falls from "
        f"{run.top[0]:.2f} to {run.top.min():.2f} and ends at {run.top[-1]:.2f}; those of the layers below stay "
        "around a half.",
        caption="Glorot and Bengio 2010, figure 2. A layer at zero passes hardly any gradient to those below it.",
    )


PAPER = Paper("Glorot and Bengio 2010", READING, measure)
