"""Goodfellow et al. 2016, section 8.2.4: gradient descent at a cliff, with clipping and without."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn

from desat.cure.judgement import mean_and_interval
from desat.deck.cliff import TARGET, Descent, Recurrence, descend, loss_and_slopes
from desat.deck.drawing import GREEN, GREY, VERMILION, picture
from desat.deck.papers.experiment import Outcome, Paper
from desat.deck.slide import Figure, Reading, Settings, Statement
from desat.deck.training import trained
from desat.reference.activations import sigmoid

STEPS_IN_TIME = 25
FIRST_STATE = float(sigmoid(0.5))
"""Pascanu, Mikolov and Bengio 2013, figure 6, take 50 steps; their state begins at 0.5 before the sigmoid."""

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


@dataclass(frozen=True)
class Run:
    """One descent, as desat saw it. places: weight and bias before each step, (steps, 2). losses; norms of the gradient
    before clipping is done to it; lengths of the steps.
    """

    places: Array
    losses: Array
    norms: Array
    lengths: Array


def measure(settings: Settings) -> Outcome:
    steps = STEPS[settings.fast]
    weights, biases = _starts(settings.seed)
    free, clipped = (_watched(weights[0], biases[0], steps, norm) for norm in (None, LARGEST_NORM))
    all_free, all_clipped = (
        descend(weights, biases, steps, norm, rate=LEARNING_RATE, time=STEPS_IN_TIME, begin=FIRST_STATE)
        for norm in (None, LARGEST_NORM)
    )
    return Outcome(
        (_thrown(free, clipped, all_free, all_clipped), _ends(all_free, all_clipped)), _figure(free, clipped)
    )


def _starts(seed: int) -> tuple[Array, Array]:
    """Weights and biases to begin with, STARTS of each."""
    generator = np.random.default_rng(seed)
    return generator.normal(*WEIGHT, size=STARTS), generator.normal(*BIAS, size=STARTS)


def _watched(weight: float, bias: float, steps: int, largest_norm: float | None) -> Run:
    model = Recurrence(weight, bias, STEPS_IN_TIME)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    places: list[Array] = []
    norms: list[float] = []

    def before_step() -> None:
        places.append(np.array([model.weight.item(), model.bias.item()]))
        if largest_norm is not None:
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), largest_norm)))

    batch = (torch.full((1,), FIRST_STATE, dtype=torch.float64), torch.full((1,), TARGET, dtype=torch.float64))
    with trained(
        model, optimizer, [batch] * steps, steps, criterion=nn.functional.mse_loss, before_step=before_step
    ) as record:
        of_weight, of_bias = (record.parameter(site) for site in record.sites("parameter"))
        return Run(
            np.array(places),
            record.steps()["loss"],
            np.array(norms) if norms else np.hypot(of_weight["gradient_rms"], of_bias["gradient_rms"]),
            np.hypot(of_weight["update_rms"], of_bias["update_rms"]),
        )


def _share_thrown(descent: Descent) -> float:
    """Of the starts, those with a step longer than THROWN."""
    return float((descent.lengths.max(axis=0) > THROWN).mean())


def _late(descent: Descent) -> Array:
    """The mean loss of each start in the last quarter of its steps."""
    return descent.losses[-len(descent.losses) // 4 :].mean(axis=0)


def _thrown(free: Run, clipped: Run, all_free: Descent, all_clipped: Descent) -> Statement:
    bound = LEARNING_RATE * LARGEST_NORM
    thrown, held = _share_thrown(all_free), _share_thrown(all_clipped)
    return Statement(
        claim="Goodfellow et al. 2016: at a cliff one step of gradient descent throws the parameters far away; "
        "clipping the gradient prevents it.",
        sentence=f"In the descent that is drawn, down the loss of a recurrence of {STEPS_IN_TIME} steps, the gradient "
        f"is {free.norms[0]:.2f} at the start and {free.norms.max():.1f} at the cliff; the longest step is "
        f"{free.lengths.max():.1f}, and {clipped.lengths.max():.2f} when clipped to a norm of {LARGEST_NORM}. Of "
        f"{STARTS} starts around it {thrown:.0%} take a step longer than {THROWN:g}, and clipped "
        f"{held:.0%}.",
        holds=thrown > 0.5 and held == 0.0 and float(clipped.lengths.max()) <= bound * (1.0 + 1e-6),
        values={
            "thrown": thrown,
            "thrown_clipped": held,
            "largest_norm": float(free.norms.max()),
            "longest": float(free.lengths.max()),
            "longest_clipped": float(clipped.lengths.max()),
            "longest_computed": float(all_free.lengths[:, 0].max()),
        },
    )


def _ends(free: Descent, clipped: Descent) -> Statement:
    late, late_clipped = _late(free), _late(clipped)
    gained, interval = mean_and_interval(late - late_clipped)
    assert interval is not None
    low, high = interval
    return Statement(
        claim="Goodfellow et al. 2016: so the descent goes on where without clipping most of it is undone.",
        sentence=f"In the last quarter of the steps the mean loss of all starts is {late_clipped.mean():.3f} with "
        f"clipping and {late.mean():.3f} without: {gained:.3f} less ({low:.3f} to {high:.3f}).",
        holds=low > 0.0,
        values={
            "late": float(late.mean()),
            "late_clipped": float(late_clipped.mean()),
            "gained": gained,
            "gained_low": low,
            "gained_high": high,
        },
    )


def _figure(free: Run, clipped: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        weight, bias = np.meshgrid(np.linspace(3.6, 6.4, 141), np.linspace(-3.0, -1.6, 141))
        axes.contour(
            weight,
            bias,
            loss_and_slopes(weight, bias, STEPS_IN_TIME, FIRST_STATE)[0],
            levels=HEIGHTS,
            colors=[GREY],
            linewidths=0.9,
        )
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
