"""Kingma and Ba 2015, figure 1: logistic regression by Adam, SGD with Nesterov momentum, RMSprop and AdaGrad."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from desat.deck.drawing import SERIES, picture
from desat.deck.papers.experiment import Outcome, Paper, estimate, named, seeds, smoothed
from desat.deck.slide import Figure, Reading, Settings, Statement
from desat.deck.training import Data, batches, digits, trained

Losses = NDArray[np.float64]

OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter], float], Optimizer]] = {
    "Adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate),
    "SGD with Nesterov": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True),
    "RMSprop": lambda parameters, rate: torch.optim.RMSprop(parameters, lr=rate),
    "AdaGrad": lambda parameters, rate: torch.optim.Adagrad(parameters, lr=rate),
}

RATES = {True: (0.03, 0.1, 0.3, 1.0), False: (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)}
"""Learning rates that are tried, each divided by the root of the step's number as in the paper's figure."""

BATCH = 128
STEPS = {True: 40, False: 200}
SMOOTHING = 10

TUNING = 1000
"""Added to the deck's seed for the trainings that choose the rates, so that none of them is reported."""

ALIKE = 20.0
"""Percent of the other's mean loss by which two optimizers may differ and still count as alike; ours."""


def measure(settings: Settings) -> Outcome:
    steps, runs, rates = STEPS[settings.fast], {}, {}
    for name in OPTIMIZERS:
        rates[name] = _best_rate(name, RATES[settings.fast], steps, settings.seed + TUNING)
        runs[name] = [_watched(name, rates[name], steps, seed) for seed in seeds(settings)]
    means = {name: np.array([losses.mean() for losses in group]) for name, group in runs.items()}
    return Outcome((_faster(means, rates), _alike(means), _others(means, rates)), _figure(runs, rates))


def _best_rate(name: str, rates: tuple[float, ...], steps: int, seed: int) -> float:
    """The rate of the lowest mean loss over the steps."""
    data = digits(seed)

    def mean_loss(rate: float) -> float:
        model, optimizer, before_step = _prepared(name, rate, seed)
        losses = []
        for _, (inputs, labels) in zip(range(steps), batches(data.inputs, data.labels, BATCH, seed), strict=False):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            before_step()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    return min(rates, key=mean_loss)


def _watched(name: str, rate: float, steps: int, seed: int) -> Losses:
    data: Data = digits(seed)
    model, optimizer, before_step = _prepared(name, rate, seed)
    source = batches(data.inputs, data.labels, BATCH, seed)
    with trained(model, optimizer, source, steps, every=steps, before_step=before_step) as record:
        return record.steps()["loss"]


def _prepared(name: str, rate: float, seed: int) -> tuple[nn.Module, Optimizer, Callable[[], None]]:
    """Model, optimizer, and what sets the learning rate of a step: rate / root(step)."""
    torch.manual_seed(seed)
    model = nn.Linear(64, 10)
    optimizer = OPTIMIZERS[name](model.parameters(), rate)
    step = 0

    def before_step() -> None:
        nonlocal step
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = rate / math.sqrt(step)

    return model, optimizer, before_step


def _faster(means: dict[str, Losses], rates: dict[str, float]) -> Statement:
    ahead = [estimate(means["AdaGrad"] - means[name]) for name in ("Adam", "SGD with Nesterov")]
    told = {name: estimate(values) for name, values in means.items()}
    return Statement(
        claim="Kingma and Ba 2015: on logistic regression Adam and SGD with Nesterov momentum are faster than AdaGrad.",
        sentence=f"Averaged over the training, the loss is {told['Adam']:.2f} with Adam, "
        f"{told['SGD with Nesterov']:.2f} with SGD and {told['AdaGrad']:.2f} with AdaGrad, each at the best of the "
        f"learning rates tried (on another seed): {rates['Adam']:g}, {rates['SGD with Nesterov']:g} and "
        f"{rates['AdaGrad']:g}, divided by the root of the step.",
        holds=all(one.is_positive for one in ahead),
        values=named(adam=told["Adam"], sgd=told["SGD with Nesterov"], adagrad=told["AdaGrad"])
        | named(adam_ahead=ahead[0], sgd_ahead=ahead[1])
        | {"adam_rate": rates["Adam"], "sgd_rate": rates["SGD with Nesterov"], "adagrad_rate": rates["AdaGrad"]},
    )


def _alike(means: dict[str, Losses]) -> Statement:
    share = estimate(100.0 * (means["Adam"] / means["SGD with Nesterov"] - 1.0))
    ends = share.interval or (min(share.values), max(share.values))
    holds = ends[0] > -ALIKE and ends[1] < ALIKE
    return Statement(
        claim="Kingma and Ba 2015: Adam is about as fast there as SGD with Nesterov momentum.",
        sentence=f"Its mean loss differs from that of SGD by {share:+.0f} %: "
        + (
            f"within {ALIKE:.0f} %, they count as alike." if holds else f"here they are not alike within {ALIKE:.0f} %."
        ),
        holds=holds,
        values=named(percent=share),
    )


def _others(means: dict[str, Losses], rates: dict[str, float]) -> Statement:
    ahead = estimate(means["RMSprop"] - means["Adam"])
    told = estimate(means["RMSprop"])
    return Statement(
        claim="Kingma and Ba 2015: Adam, whose means are corrected for their start at zero, is ahead of RMSprop.",
        sentence=f"RMSprop's mean loss is {told:.2f}, at its best rate of {rates['RMSprop']:g}; Adam's is lower by "
        f"{ahead:.2f}.",
        holds=ahead.is_positive,
        values=named(rmsprop=told, ahead=ahead),
    )


def _figure(runs: dict[str, list[Losses]], rates: dict[str, float]) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for (name, group), colour in zip(runs.items(), SERIES, strict=False):
            curve = smoothed(group[0], SMOOTHING)
            axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, label=f"{name}, {rates[name]:g}")
        axes.set(xlabel="step", ylabel="training loss", yscale="log", title="Logistic regression on digits")
        axes.legend(loc="upper right")

    told = ", ".join(f"{name} {smoothed(group[0], SMOOTHING)[-1]:.3f}" for name, group in runs.items())
    return picture(
        "adam",
        draw,
        alt=f"Training loss over the steps, on a logarithmic scale, of four optimizers. At the end: {told}.",
        caption=f"Kingma and Ba 2015, figure 1. Name and learning rate; means of {SMOOTHING} steps.",
    )


PAPER = Paper(
    "Kingma and Ba 2015",
    Reading("Kingma and Ba 2015, Adam: a method for stochastic optimization", "https://arxiv.org/abs/1412.6980"),
    measure,
)
