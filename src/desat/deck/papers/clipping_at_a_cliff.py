"""Goodfellow et al. 2016, section 8.2.4: gradient descent at a cliff, with clipping and without."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.cure.judgement import mean_and_interval
from desat.deck.drawing import GREEN, GREY, VERMILION, picture
from desat.deck.papers.experiment import Outcome, Paper
from desat.deck.slide import Figure, Reading, Settings, Statement
from desat.deck.training import trained
from desat.reference.activations import sigmoid, sigmoid_derivative
from desat.reference.clipping import NORM_EPSILON

STEPS_IN_TIME = 25
FIRST_STATE = 0.5
TARGET = 0.7
"""The recurrence of one unit and its loss are of Pascanu, Mikolov and Bengio 2013, figure 6; they take 50 steps."""

STARTS = 200
WEIGHT, BIAS = (5.0, 0.1), (-2.4, 0.05)
"""Mean and standard deviation of weight and bias at the start: on the slope that leads down to the cliff."""

LEARNING_RATE = 1.0
LARGEST_NORM = 0.2
"""What the gradient is clipped to; at the start it is about 0.1."""

STEPS = {True: 40, False: 150}
THROWN = 1.0
"""A step longer than this leaves the region that is drawn, and all that was learned; ours."""

HEIGHTS = np.arange(0.12, 0.48, 0.04)
"""Of the contours that are drawn: those of the cliff and of the plateau behind it."""

Array = NDArray[np.float64]


class Recurrence(nn.Module):
    """x = weight * sigmoid(x) + bias, STEPS_IN_TIME times; returns the sigmoid of the last x."""

    def __init__(self, weight: float, bias: float) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor([weight, bias], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.place
        for _ in range(STEPS_IN_TIME):
            x = weight * torch.sigmoid(x) + bias
        return torch.sigmoid(x)


@dataclass(frozen=True)
class Run:
    """One descent, as desat saw it. places: weight and bias before each step, (steps, 2). losses; norms of the gradient
    before clipping is done to it; lengths of the steps.
    """

    places: Array
    losses: Array
    norms: Array
    lengths: Array


@dataclass(frozen=True)
class Descents:
    """Of STARTS descents the longest step of each, and the mean loss in the last quarter of its steps."""

    longest: Array
    late: Array

    @property
    def thrown(self) -> float:
        return float((self.longest > THROWN).mean())


def measure(settings: Settings) -> Outcome:
    steps = STEPS[settings.fast]
    starts = _starts(settings.seed)
    free, clipped = (_watched(starts[:, 0], steps, norm) for norm in (None, LARGEST_NORM))
    all_free, all_clipped = (descend(starts, steps, norm) for norm in (None, LARGEST_NORM))
    return Outcome(
        (_thrown(free, clipped, all_free, all_clipped), _ends(all_free, all_clipped)), _figure(free, clipped)
    )


def _starts(seed: int) -> Array:
    """Weights and biases to begin with, (2, STARTS)."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.normal(*of, size=STARTS) for of in (WEIGHT, BIAS)])


def _watched(start: Array, steps: int, largest_norm: float | None) -> Run:
    model = Recurrence(*start.tolist())
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    places: list[Array] = []
    norms: list[float] = []

    def before_step() -> None:
        places.append(model.place.detach().numpy().copy())
        if largest_norm is not None:
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), largest_norm)))

    batch = (torch.tensor(FIRST_STATE, dtype=torch.float64), torch.tensor(TARGET, dtype=torch.float64))
    with trained(
        model, optimizer, [batch] * steps, steps, criterion=nn.functional.mse_loss, before_step=before_step
    ) as record:
        (site,) = record.sites("parameter")
        seen = record.parameter(site)
        scale = np.sqrt(seen["elements"])
        return Run(
            np.array(places),
            record.steps()["loss"],
            np.array(norms) if norms else scale * seen["gradient_rms"],
            scale * seen["update_rms"],
        )


def descend(starts: Array, steps: int, largest_norm: float | None) -> Descents:
    """All descents at once, from `starts` (2, number).

    Clipped as desat.reference.clipping.clip_by_norm does, each descent by itself.
    """
    weight, bias = starts.copy()
    longest, losses = np.zeros(starts.shape[1]), []
    for _ in range(steps):
        loss, gradient = loss_and_gradient(weight, bias)
        norm = np.hypot(*gradient)
        factor = 1.0 if largest_norm is None else np.minimum(1.0, largest_norm / (norm + NORM_EPSILON))
        longest = np.maximum(longest, LEARNING_RATE * factor * norm)
        weight, bias = np.stack([weight, bias]) - LEARNING_RATE * factor * gradient
        losses.append(loss)
    return Descents(longest, np.mean(losses[-len(losses) // 4 :], axis=0))


def loss_and_gradient(weight: Array, bias: Array) -> tuple[Array, Array]:
    """The loss at weights and biases of one shape, and its gradient, (2, *shape).

    By forward differentiation: x' = sigmoid(x) + weight sigmoid'(x) x', and 1 + weight sigmoid'(x) x' for the bias.
    """
    x, slopes = np.full(weight.shape, FIRST_STATE), np.zeros((2, *weight.shape))
    for _ in range(STEPS_IN_TIME):
        value, steepness = sigmoid(x), weight * sigmoid_derivative(x)
        slopes = np.stack([value, np.ones_like(value)]) + steepness * slopes
        x = weight * value + bias
    wrong = sigmoid(x) - TARGET
    return wrong**2, 2.0 * wrong * sigmoid_derivative(x) * slopes


def _thrown(free: Run, clipped: Run, all_free: Descents, all_clipped: Descents) -> Statement:
    bound = LEARNING_RATE * LARGEST_NORM
    return Statement(
        claim="Goodfellow et al. 2016: at a cliff one step of gradient descent throws the parameters far away; "
        "clipping the gradient prevents it.",
        sentence=f"In the descent that is drawn, down the loss of a recurrence of {STEPS_IN_TIME} steps, the gradient "
        f"is {free.norms[0]:.2f} at the start and {free.norms.max():.1f} at the cliff; the longest step is "
        f"{free.lengths.max():.1f}, and {clipped.lengths.max():.2f} when clipped to a norm of {LARGEST_NORM}. Of "
        f"{STARTS} starts around it {all_free.thrown:.0%} take a step longer than {THROWN:g}, and clipped "
        f"{all_clipped.thrown:.0%}.",
        holds=all_free.thrown > 0.5
        and all_clipped.thrown == 0.0
        and float(clipped.lengths.max()) <= bound * (1.0 + 1e-6),
        values={
            "thrown": all_free.thrown,
            "thrown_clipped": all_clipped.thrown,
            "largest_norm": float(free.norms.max()),
            "longest": float(free.lengths.max()),
            "longest_clipped": float(clipped.lengths.max()),
            "longest_computed": float(all_free.longest[0]),
        },
    )


def _ends(free: Descents, clipped: Descents) -> Statement:
    gained, interval = mean_and_interval(free.late - clipped.late)
    assert interval is not None
    low, high = interval
    return Statement(
        claim="Goodfellow et al. 2016: so the descent goes on where without clipping most of it is undone.",
        sentence=f"In the last quarter of the steps the mean loss of all starts is {clipped.late.mean():.3f} with "
        f"clipping and {free.late.mean():.3f} without: {gained:.3f} less ({low:.3f} to {high:.3f}).",
        holds=low > 0.0,
        values={
            "late": float(free.late.mean()),
            "late_clipped": float(clipped.late.mean()),
            "gained": gained,
            "gained_low": low,
            "gained_high": high,
        },
    )


def _figure(free: Run, clipped: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        weight, bias = np.meshgrid(np.linspace(3.6, 6.4, 141), np.linspace(-3.0, -1.6, 141))
        axes.contour(weight, bias, loss_and_gradient(weight, bias)[0], levels=HEIGHTS, colors=[GREY], linewidths=0.9)
        axes.plot(*free.places.T, "o-", color=VERMILION, markersize=3, linewidth=1.0, label="without clipping")
        axes.plot(*clipped.places.T, "o-", color=GREEN, markersize=3, linewidth=1.0, label="clipped")
        axes.set(xlim=(3.6, 6.4), ylim=(-3.0, -1.6), xlabel="weight", ylabel="bias", title="Descent to a cliff")
        axes.grid(False)
        axes.legend(loc="upper right")

    return picture(
        "cliff",
        draw,
        alt="Contours of the loss over weight and bias, which lie close together at a cliff that crosses the picture. "
        f"Both descents come to it from the right. Without clipping one step of length {free.lengths.max():.1f} leads "
        f"out of the picture; clipped, no step is longer than {clipped.lengths.max():.2f}, and the last loss is "
        f"{clipped.losses[-1]:.4f}.",
        caption="Goodfellow et al. 2016, figure 8.3, on the recurrence of Pascanu et al. 2013.",
    )


PAPER = Paper(
    "Goodfellow et al. 2016",
    Reading("Goodfellow, Bengio and Courville 2016, Deep learning, section 8.2.4", "https://www.deeplearningbook.org"),
    measure,
)
