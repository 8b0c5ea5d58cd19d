"""Glorot and Bengio 2010, figure 3: how layers of tanh and of softsign saturate in the course of learning."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike, NDArray
from torch import nn

from desat.deck.drawing import SERIES, picture
from desat.deck.papers.experiment import Estimate, Outcome, Paper, estimate, named, seeds
from desat.deck.papers.glorot import READING, draw_standard
from desat.deck.slide import Figure, Settings, Statement
from desat.deck.training import batches, digits, stack, trained
from desat.record.histogram import LOWEST_EXPONENT
from desat.reference.activations import softsign, tanh

Array = NDArray[np.float64]

DEPTH = 4
WIDTH = 64
"""The paper has 4 to 5 hidden layers of 1000 units, and batches of 10; learning rates are ours."""

BATCH = 20
LEARNING_RATE = 0.1
MOMENTUM = 0.9
STEPS = {True: 200, False: 400}
SAMPLES = {True: 20, False: 40}

SHARE = 0.98
"""The paper's percentile of the magnitude of the activations."""

FILLED = 0.2
"""Share of a layer's activations that are saturated from which on the layer counts as saturating; ours."""

KNEE = 1.0
"""Magnitude of softsign's argument at which its slope, 1 / (1 + |z|)**2, is a quarter of the steepest."""


@dataclass(frozen=True)
class Kind:
    """A network by its nonlinearity: desat.reference's and torch's."""

    reference: Callable[[ArrayLike], ArrayLike]
    module: type[nn.Module]


KINDS = {"tanh": Kind(tanh, nn.Tanh), "softsign": Kind(softsign, nn.Softsign)}


@dataclass(frozen=True, eq=False)
class Run:
    """Of each hidden layer by sampled step, (layers, steps). arguments: SHARE of the magnitudes of what goes into the
    nonlinearity are below, and percentiles: so of the activations. deviations: of the activations. saturated: shares.
    """

    steps: NDArray[np.int64]
    arguments: Array
    percentiles: Array
    deviations: Array
    saturated: Array

    def first(self, reached: NDArray[np.bool_]) -> Array:
        """The first sampled step at which each layer is where `reached`, (layers, steps), says; the last for never."""
        return np.where(reached.any(axis=1), self.steps[np.argmax(reached, axis=1)], self.steps[-1]).astype(np.float64)


def measure(settings: Settings) -> Outcome:
    runs = {name: [train(name, seed, settings.fast) for seed in seeds(settings)] for name in KINDS}
    return Outcome(
        (_first(runs["tanh"]), _less(runs), _together(runs["softsign"])),
        _figure({name: group[0] for name, group in runs.items()}),
    )


def train(name: str, seed: int, fast: bool) -> Run:
    """One network of that kind, on handwritten digits."""
    kind, steps = KINDS[name], STEPS[fast]
    torch.manual_seed(seed)
    data = digits(seed)
    model = stack([64, *[WIDTH] * DEPTH, 10], kind.module)
    draw_standard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    source = batches(data.inputs, data.labels, BATCH, seed)
    with trained(model, optimizer, source, steps, every=steps // SAMPLES[fast]) as record:
        level = record.grid("output", "rms", "nonlinearity")
        mean = record.grid("output", "mean", "nonlinearity").values
        low, high = (record.grid("input", f"saturated_{end}", "nonlinearity").values for end in ("low", "high"))
        sites = record.sites("nonlinearity")
        arguments = np.array([_percentiles(record.histograms(site, "input")[1]) for site in sites])
    # Both functions rise and are odd, so that the percentile of what they give is what they give of the percentile.
    percentiles = np.asarray(kind.reference(arguments), dtype=np.float64)
    return Run(level.steps, arguments, percentiles, np.sqrt(level.values**2 - mean**2), low + high)


def _percentiles(counts: Array) -> Array:
    """The magnitude below which SHARE of the values lie, from counts by powers of two, (steps, bins).

    Within a bin as a normal distribution about zero has it, to which sums of many terms are close.
    """
    whole = counts.sum(axis=1, keepdims=True)
    reached = np.cumsum(counts, axis=1) / whole
    place = np.argmax(reached >= SHARE, axis=1)[:, None]
    above = np.minimum(np.take_along_axis(reached, place, 1), 1.0 - 0.5 / whole)  # of all values it would be infinite
    below = np.take_along_axis(reached, place, 1) - np.take_along_axis(counts, place, 1) / whole
    ends = [torch.special.ndtri(torch.from_numpy((1.0 + share) / 2.0)).numpy() for share in (below, above)]
    wanted = float(torch.special.ndtri(torch.tensor((1.0 + SHARE) / 2.0, dtype=torch.float64)))
    return (np.exp2(LOWEST_EXPONENT + place) * (1.0 + np.clip((wanted - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)))[
        :, 0
    ]


def _first(runs: list[Run]) -> Statement:
    filled = np.array([run.first(run.saturated > FILLED) for run in runs])
    shares = np.array([run.saturated.mean(axis=1) for run in runs])
    lead = estimate(shares[:, 0] - shares[:, 1:].max(axis=1))
    order = estimate((shares[:, 1:-1] - shares[:, 2:]).min(axis=1))
    return Statement(
        claim="Glorot and Bengio 2010: of a network of tanh the first hidden layer saturates first, then the second, "
        "and so on.",
        sentence=f"A fifth of the first layer's activations is saturated from step {_listed(filled[:, :1])} on, of the "
        f"others from {_listed(filled[:, 1:])}. Over the whole training {_listed(100 * shares)} % are, from the first "
        f"layer to the last: the first is ahead by {_points(lead)} points at least, each other of the next by "
        f"{_points(order)}.",
        holds=lead.is_positive and order.is_positive,
        values=named(lead=lead, order=order)
        | {f"filled_{layer + 1}": float(step) for layer, step in enumerate(filled.mean(axis=0))}
        | {f"share_{layer + 1}": float(share) for layer, share in enumerate(shares.mean(axis=0))},
    )


def _less(runs: dict[str, list[Run]]) -> Statement:
    ends = {name: np.array([run.saturated[:, -1] for run in group]) for name, group in runs.items()}
    less = estimate((ends["tanh"] - ends["softsign"]).min(axis=1))
    return Statement(
        claim="Glorot and Bengio 2010: softsign, which comes to its limits slowly, saturates less.",
        sentence=f"At the last sampled step {_listed(100 * ends['tanh'])} % of the activations are saturated in the "
        f"layers of tanh, and {_listed(100 * ends['softsign'])} % in those of softsign, by the same measure, a slope "
        f"below 5 % of the steepest: in each layer less, by {_points(less)} points at least.",
        holds=less.is_positive,
        values=named(less=less)
        | {f"{name}_{layer + 1}": float(one) for name in ends for layer, one in enumerate(ends[name].mean(axis=0))},
    )


def _together(runs: list[Run]) -> Statement:
    reached = np.array([run.first(run.arguments > KNEE) for run in runs])
    apart = estimate(reached.max(axis=1) - reached.min(axis=1))
    others = estimate(reached[:, 1:].max(axis=1) - reached[:, 1:].min(axis=1))
    spacing = float(runs[0].steps[1])
    holds = max(apart.values) <= 2.0 * spacing
    why = (
        "."
        if holds
        else f": here the first is ahead, and between the others are {others:.0f} steps. It is fed with images, "
        "whose scale is larger than that of activations."
    )
    return Statement(
        claim="Glorot and Bengio 2010: the layers of softsign move together towards the knee of the curve.",
        sentence=f"The 98th percentile of the layers' activations is beyond the knee, a quarter of the steepest slope, "
        f"from step {_listed(reached)} on{why}",
        holds=holds,
        values=named(apart=apart, others_apart=others)
        | {f"reached_{layer + 1}": float(step) for layer, step in enumerate(reached.mean(axis=0))},
    )


def _listed(values: Array) -> str:
    """Means over the seeds, of values (seeds, layers), as a sentence lists them."""
    told = [f"{value:.0f}" for value in values.mean(axis=0)]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def _points(share: Estimate) -> str:
    """A difference of shares in percentage points."""
    return f"{estimate(100.0 * value for value in share.values):.1f}"


def _figure(runs: dict[str, Run]) -> Figure:
    def draw(canvas: Canvas) -> None:
        both = canvas.subplots(1, 2, sharey=True)
        for axes, (name, run) in zip(both, runs.items(), strict=True):
            for layer, colour in zip(range(DEPTH), SERIES, strict=False):
                axes.plot(run.steps, run.percentiles[layer], "o", color=colour, markersize=3)
                axes.plot(run.steps, run.deviations[layer], color=colour, linewidth=1.5, label=f"layer {layer + 1}")
            axes.set(xlabel="step", ylim=(0.0, 1.05), title=name)
        both[0].set_ylabel("activation")
        both[0].legend(loc="lower right")

    told = "; ".join(
        f"with {name} the percentile ends at {', '.join(f'{one:.2f}' for one in run.percentiles[:, -1])}, the "
        f"deviation at {', '.join(f'{one:.2f}' for one in run.deviations[:, -1])}"
        for name, run in runs.items()
    )
    return picture(
        "layers",
        draw,
        alt=f"98th percentile of the magnitude of the activations, and their standard deviation, of {DEPTH} hidden "
        f"layers over the steps; from the first layer to the last {told}.",
        caption="Glorot and Bengio 2010, figure 3. Dots: 98th percentile. Lines: standard deviation.",
    )


PAPER = Paper("Glorot and Bengio 2010", READING, measure)
