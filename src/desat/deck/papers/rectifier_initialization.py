"""He et al. 2015, figure 3: thirty layers of rectifiers converge from He's initialization, and not from Xavier's."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn

from desat.cure.judgement import late_loss
from desat.deck.drawing import GREEN, INK, VERMILION, picture
from desat.deck.papers.experiment import Outcome, Paper, estimate, named, seeds, smoothed
from desat.deck.slide import Figure, Reading, Settings, Statement
from desat.deck.training import batches, digits, stack, trained
from desat.reference.initialization import he_std, xavier_std

DEPTH = 30
WIDTH = 64
BATCH = 64
LEARNING_RATE = 0.003
STEPS = {True: 60, False: 200}
SMOOTHING = 10

ONE_ANSWER = math.log(10)
"""Loss of the same answer for all digits, in nats."""

STALLED = 0.05
"""A loss that stays this close to ONE_ANSWER, in nats, has learned nothing."""

OF_A_LAYER = 20.0 * math.log10(math.sqrt(0.5))
"""Decibels that a layer takes: Xavier keeps the variance of what is linear, and a rectifier halves it."""


@dataclass(frozen=True)
class Run:
    """losses: by step. level: dB of the gradient at the output of the first rectifier against the last's."""

    losses: NDArray[np.float64]
    level: float


def measure(settings: Settings) -> Outcome:
    he, xavier = [], []
    for seed in seeds(settings):
        he.append(_train(seed, "he", STEPS[settings.fast]))
        xavier.append(_train(seed, "xavier", STEPS[settings.fast]))
    return Outcome((_converges(he, xavier), _levels(he, xavier)), _figure(he[0], xavier[0]))


def _train(seed: int, kind: str, steps: int) -> Run:
    torch.manual_seed(seed)
    data = digits(seed)
    model = stack([64, *[WIDTH] * DEPTH, 10], nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fan_out, fan_in = layer.weight.shape
            nn.init.normal_(layer.weight, std=he_std(fan_in) if kind == "he" else xavier_std(fan_in, fan_out))
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    source = batches(data.inputs, data.labels, BATCH, seed)
    with trained(model, optimizer, source, steps, every=steps) as record:
        gradient = record.grid("gradient", "rms", "nonlinearity").values[:, 0]
        return Run(record.steps()["loss"], float(20.0 * np.log10(gradient[0] / gradient[-1])))


def _converges(he: list[Run], xavier: list[Run]) -> Statement:
    losses = [estimate(late_loss(run.losses) for run in runs) for runs in (he, xavier)]
    gained = estimate(late_loss(one.losses) - late_loss(other.losses) for one, other in zip(xavier, he, strict=True))
    return Statement(
        claim=f"He et al. 2015: {DEPTH} layers of rectifiers converge from He's weights and stall from Xavier's.",
        sentence=f"In the last quarter of the steps the training loss is {losses[0]:.2f} from He's and {losses[1]:.2f} "
        f"from Xavier's; {ONE_ANSWER:.2f} is the loss of the same answer for all digits.",
        holds=gained.is_positive and abs(losses[1].mean - ONE_ANSWER) < STALLED,
        values=named(he=losses[0], xavier=losses[1], gained=gained),
    )


def _levels(he: list[Run], xavier: list[Run]) -> Statement:
    levels = [estimate(run.level for run in runs) for runs in (he, xavier)]
    expected = (DEPTH - 1) * OF_A_LAYER
    return Statement(
        claim="He et al. 2015: from Xavier's the gradient shrinks by the root of a half at each layer of rectifiers.",
        sentence=f"Over {DEPTH - 1} layers that makes {expected:.0f} dB. At the first step desat finds {levels[1]:.0f} "
        f"dB between the last rectifier and the first from Xavier's, and {levels[0]:+.0f} dB from He's.",
        holds=abs(levels[1].mean - expected) < 0.2 * abs(expected) and levels[0].mean > expected / 4.0,
        values=named(he_db=levels[0], xavier_db=levels[1]) | {"expected_db": expected},
    )


def _figure(he: Run, xavier: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for run, colour, label in ((xavier, VERMILION, "Xavier"), (he, GREEN, "He")):
            curve = smoothed(run.losses, SMOOTHING)
            axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, label=label)
        axes.axhline(ONE_ANSWER, color=INK, linewidth=1.0, linestyle="--", label="one answer for all")
        axes.set(xlabel="step", ylabel="training loss", title=f"{DEPTH} layers of rectifiers")
        axes.legend(loc="lower left")

    return picture(
        "rectifiers",
        draw,
        alt=f"Training loss of {DEPTH} layers of rectifiers over the steps. From Xavier's initialization it ends at "
        f"{late_loss(xavier.losses):.2f}, where it began; from He's it comes down to {late_loss(he.losses):.2f}.",
        caption=f"He et al. 2015, figure 3. Means of {SMOOTHING} steps.",
    )


PAPER = Paper(
    "He et al. 2015",
    Reading(
        "He, Zhang, Ren and Sun 2015, Delving deep into rectifiers: surpassing human-level performance on ImageNet "
        "classification",
        "https://arxiv.org/abs/1502.01852",
    ),
    measure,
)
