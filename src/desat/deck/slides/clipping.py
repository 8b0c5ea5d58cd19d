"""Slide 8: a cliff in the loss, the step that it throws a training back by, and the limit that holds it."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn

from desat.api import apply
from desat.deck.cliff import BEGIN, RATE, TARGET, TIME, Descent, Recurrence, descend, loss_and_slopes
from desat.deck.drawing import BLUE, GREY, INK, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.reference.clipping import clip_by_norm, clip_by_value, global_norm

Array = NDArray[np.float64]

LIMIT = 1.0
"""Norm that gradients are clipped at; the remedy's default."""

VALUE_LIMIT = 0.001
"""Magnitude that the entries are clipped at for comparison."""

DEPTH, TOO_LARGE = 10, 5.0
"""Layers of the network whose gradient explodes, and the factor on the weights that torch draws."""

TINY_LIMIT = 0.001
"""A norm that no gradient of a network in training stays below."""

SIZES = {True: (100, 300, 80), False: (400, 400, 300)}
"""Starts, steps from each, and steps of the training on digits; fast or not."""

WATCHED = 40
"""Steps of the descent that is made in PyTorch and watched, from the start whose gradient grows the most in them."""


@dataclass(frozen=True, eq=False)
class Clipped:
    """The gradients of one step: as they came, as the remedy left them, and clipped by value, each as one vector.

    error: the largest difference of `after` to desat.reference.clipping. findings: of the step.
    """

    before: Array
    after: Array
    by_value: Array
    error: float
    findings: tuple[str, ...]


@dataclass(frozen=True)
class Starved:
    """A training on digits under a limit, or none."""

    findings: tuple[str, ...]
    accuracy: float
    factor: float


@dataclass(frozen=True)
class Watched:
    """One descent in PyTorch: what desat finds in it, and where the weight ended."""

    findings: tuple[str, ...]
    weight: float


def build(settings: Settings) -> Page:
    starts, steps, short = SIZES[settings.fast]
    settings.progress("one gradient, clipped", 0.0)
    clipped = _clip_one(settings)
    settings.progress("descents at the cliff", 0.1)
    weights, biases = _starts(settings.seed, starts)
    free = descend(weights, biases, steps, None)
    held = descend(weights, biases, steps, LIMIT)
    thrown = int(np.argmax(free.norms[:WATCHED].max(axis=0) / free.norms[0]))
    watched = [
        _watch_descent(settings, float(weights[thrown]), float(biases[thrown]), remedies, begun)
        for remedies, begun in (((), 0.3), ((f"clipping={LIMIT}",), 0.5))
    ]
    plain, starved = (_train(settings, short, limit, begun) for limit, begun in ((None, 0.7), (TINY_LIMIT, 0.85)))
    return Page(
        words=(
            "Where a recurrence tips over, its loss has a cliff. There the gradient is hundreds of times what it is "
            "elsewhere, and a single step along it throws the training out of the landscape. Clipping by the norm "
            "shortens that step and keeps its direction.",
            "The landscape is that of one sigmoid unit fed back to itself, `h = σ(w h + b)`, "
            f"{TIME} times over, which is to end at {TARGET:g}. A limit far below the usual norm is no guard any more: "
            "then it says how far each step goes.",
        ),
        figures=(_histogram_picture(clipped), _cliff_picture(free, held, thrown), _loss_picture(free, held, thrown)),
        statements=(
            _same_direction(clipped),
            _arrives(free, held),
            _found(watched, free, thrown),
            _dominates(plain, starved),
        ),
        readings=(
            Reading(
                "Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks",
                "https://proceedings.mlr.press/v28/pascanu13.html",
            ),
            Reading(
                "Zhang, He, Sra and Jadbabaie 2020, Why gradient clipping accelerates training",
                "https://openreview.net/forum?id=BJgnXpVYwS",
            ),
        ),
    )


def _starts(seed: int, number: int) -> tuple[Array, Array]:
    """On the high side of the cliff: with weight / 2 + bias above zero the state rises from a half."""
    generator = np.random.default_rng(seed)
    weights = generator.uniform(4.5, 6.5, number)
    return weights, -weights / 2.0 + generator.uniform(0.05, 0.5, number)


def _watch_descent(settings: Settings, weight: float, bias: float, remedies: tuple[str, ...], begun: float) -> Watched:
    model = Recurrence(weight, bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    apply(model, optimizer, *remedies)
    pair = torch.full((1,), BEGIN, dtype=torch.float64), torch.full((1,), TARGET, dtype=torch.float64)
    with trained(
        model,
        optimizer,
        [pair] * WATCHED,
        WATCHED,
        criterion=nn.functional.mse_loss,
        tell=lambda what, share: settings.progress(what, begun + share / 5),
        what="a descent at the cliff, watched",
    ) as record:
        return Watched(diagnose(record).codes("error", "warning"), model.weight.item())


def _clip_one(settings: Settings) -> Clipped:
    """One gradient of a deep network whose weights are too large, clipped by the remedy before a step of none."""
    torch.manual_seed(settings.seed)
    data = digits(settings.seed)
    model = stack([64, *[64] * DEPTH, 10], nn.ReLU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(TOO_LARGE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    apply(model, optimizer, f"clipping={LIMIT}")
    before: list[Array] = []
    batch = data.inputs[:256], data.labels[:256]
    with trained(model, optimizer, [batch], 1, before_step=lambda: before.extend(_gradients(model))) as record:
        found = diagnose(record).codes("error", "warning")
    findings = tuple(code for code in found if code != "update-too-small")  # by a rate of 0, as it is
    after = _gradients(model)
    expected, _ = clip_by_norm(before, LIMIT)
    error = max(float(np.abs(one - other).max()) for one, other in zip(after, expected, strict=True))
    cut = clip_by_value(before, VALUE_LIMIT)
    return Clipped(_vector(before), _vector(after), _vector(cut), error, findings)


def _vector(arrays: list[Array]) -> Array:
    return np.concatenate([one.ravel() for one in arrays])


def _gradients(model: nn.Module) -> list[Array]:
    return [one.grad.double().numpy().copy() for one in model.parameters() if one.grad is not None]


def _train(settings: Settings, steps: int, limit: float | None, begun: float) -> Starved:
    torch.manual_seed(settings.seed)
    data = digits(settings.seed)
    model = stack([64, 64, 64, 10], nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    clip = None if limit is None else lambda: nn.utils.clip_grad_norm_(model.parameters(), limit)
    with trained(
        model,
        optimizer,
        batches(data.inputs, data.labels, 64, settings.seed),
        steps,
        every=max(1, steps // 40),
        before_step=clip,
        tell=lambda what, share: settings.progress(what, begun + 0.15 * share),
        what="training on digits" + ("" if limit is None else f", clipped at {limit:g}"),
    ) as record:
        (site,) = record.sites("optimizer")
        factor = float(np.median(record.readings(site)["clip_factor"]["value"]))
        found = diagnose(record).codes("error", "warning")
        return Starved(found, accuracy(model, data.test_inputs, data.test_labels), factor)


def _same_direction(clipped: Clipped) -> Statement:
    before, after = global_norm([clipped.before]), global_norm([clipped.after])
    cosine, of_values = (_cosine(clipped.before, other) for other in (clipped.after, clipped.by_value))
    cut = float((np.abs(clipped.before) > VALUE_LIMIT).mean())
    return Statement(
        claim="Clipping by the norm shortens a gradient and keeps its direction.",
        sentence=f"Of {DEPTH} layers with weights {TOO_LARGE:g} times too large `desat diagnose` says "
        f"{listed(clipped.findings)}. `clipping={LIMIT}` brought the norm from {before:,.0f} to {after:.3g}, "
        f"each entry "
        f"by one factor: the cosine of before and after is {cosine:.6f}. Clipped by value at {VALUE_LIMIT:g}, which "
        f"cuts {cut:.0%} of the entries, the gradient turns, to a cosine of {of_values:.2f}.",
        holds=after <= LIMIT * (1.0 + 1e-5) < before
        and cosine > 1.0 - 1e-6
        and of_values < 0.99
        and "exploding-gradient" in clipped.findings,
        values={
            "before": before,
            "after": after,
            "cosine": cosine,
            "cosine_by_value": of_values,
            "error": clipped.error,
        },
    )


def _cosine(one: Array, other: Array) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _arrives(free: Descent, held: Descent) -> Statement:
    number = free.losses.shape[1]
    return Statement(
        claim="With clipping the descent comes down at the foot of the cliff; without, many are thrown away.",
        sentence=f"Of {number} starts near the cliff, {free.arrived:.0%} arrive in {len(free.losses)} steps without "
        f"clipping, {held.arrived:.0%} with it. The farthest was thrown to w = {free.farthest:.0f}; with clipping "
        f"none came beyond {held.farthest:.1f}.",
        holds=held.arrived > free.arrived + 0.2 and held.farthest < 10.0,
        values={
            "arrived_free": free.arrived,
            "arrived_clipped": held.arrived,
            "farthest_free": free.farthest,
            "farthest_clipped": held.farthest,
        },
    )


def _found(watched: list[Watched], free: Descent, thrown: int) -> Statement:
    sick, cured = watched
    start = float(free.weights[0, thrown])
    first, most = float(free.norms[0, thrown]), float(free.norms[:WATCHED, thrown].max())
    return Statement(
        claim="desat finds the step that threw the training away.",
        sentence=f"From the start whose gradient grows the most its norm goes from {first:.2g} to {most:.0f}, and "
        f"the weight from {start:.1f} to {sick.weight:.0f}: `desat diagnose` says {listed(sick.findings)}. With "
        f"`clipping={LIMIT}` the weight comes to {cured.weight:.1f}, and it says {listed(cured.findings)}.",
        holds="update-too-large" in sick.findings and "update-too-large" not in cured.findings,
        values={
            "first_norm": first,
            "largest_norm": most,
            "weight_free": sick.weight,
            "weight_by_formula": float(free.weights[WATCHED, thrown]),
            "weight_clipped": cured.weight,
        },
    )


def _dominates(plain: Starved, starved: Starved) -> Statement:
    return Statement(
        claim="A limit that is too small takes the place of the gradient.",
        sentence=f"On digits a limit of {TINY_LIMIT:g} leaves {starved.factor:.1%} of the gradient's norm, and "
        f"the network knows {starved.accuracy:.0%} of the unseen digits, {plain.accuracy:.0%} without it. `desat "
        f"diagnose` says {listed(starved.findings)} of the one and {listed(plain.findings)} of the other.",
        holds="clipping-dominates" in starved.findings and "clipping-dominates" not in plain.findings,
        values={"kept": starved.factor, "accuracy": starved.accuracy, "accuracy_without": plain.accuracy},
    )


def _histogram_picture(clipped: Clipped) -> Figure:
    ranges = np.logspace(-8.0, 4.0, 97).tolist()

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for values, colour, name in (
            (clipped.before, VERMILION, "as it came"),
            (clipped.by_value, GREY, f"by value at {VALUE_LIMIT:g}"),
            (clipped.after, BLUE, f"by norm at {LIMIT:g}"),
        ):
            axes.hist(np.abs(values[values != 0.0]), ranges, color=colour, label=name, histtype="step", linewidth=1.8)
        axes.set(xscale="log", yscale="log", xlabel="magnitude of an entry", ylabel="entries", title="One gradient")
        axes.legend(loc="upper left")

    return picture(
        "histogram",
        draw,
        alt="Histogram of the magnitudes of a gradient's entries. Clipped by norm it has the same shape, moved to "
        f"smaller magnitudes, from a norm of {np.linalg.norm(clipped.before):.3g} to "
        f"{np.linalg.norm(clipped.after):.3g}; clipped by value all that was above {VALUE_LIMIT:g} stands there in one "
        "column.",
        caption="A deep network on digits whose weights are too large.",
    )


def _cliff_picture(free: Descent, held: Descent, thrown: int) -> Figure:
    weights, biases = np.meshgrid(np.linspace(2.0, 7.5, 141), np.linspace(-3.6, -0.4, 101))
    losses, _, _ = loss_and_slopes(weights, biases)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.contourf(weights, biases, np.sqrt(losses), levels=12, cmap="Greys", alpha=0.7)
        for descent, colour, name, style in (
            (free, VERMILION, "not clipped", "o-"),
            (held, BLUE, f"clipped at {LIMIT:g}", ".-"),
        ):
            axes.plot(
                descent.weights[:, thrown], descent.biases[:, thrown], style, color=colour, label=name, markersize=4
            )
        axes.plot(free.weights[0, thrown], free.biases[0, thrown], "D", color=INK, markersize=7, label="start")
        axes.set(xlim=(2.0, 7.5), ylim=(-3.6, -0.4), xlabel="w", ylabel="b", title="The cliff, from above")
        axes.grid(visible=False)
        axes.legend(loc="upper right", frameon=True)

    return picture(
        "cliff",
        draw,
        alt="The loss over w and b from above: a cliff runs across from the upper left to the lower right. Without "
        f"clipping the descent leaves the picture in one step, to w = {free.weights[-1, thrown]:.0f}; with clipping it "
        f"stays at the cliff and ends at w = {held.weights[-1, thrown]:.2f}.",
        caption="Dark is a large loss. The path without clipping leaves the picture in one step.",
    )


def _loss_picture(free: Descent, held: Descent, thrown: int) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for descent, colour, name in ((free, VERMILION, "not clipped"), (held, BLUE, f"clipped at {LIMIT:g}")):
            axes.semilogy(np.maximum(descent.losses[:, thrown], 1e-6), color=colour, label=name)
        axes.set(xlabel="step", ylabel="loss", title="The two descents")
        axes.set_ylim(1e-6, 10.0)
        axes.legend(loc="upper right")

    return picture(
        "losses",
        draw,
        alt=f"Loss by step of the two descents: without clipping it ends at {free.losses[-1, thrown]:.2g}, where the "
        f"unit is saturated and no gradient is left; with clipping at {held.losses[-1, thrown]:.2g}.",
        caption="After the throw the unit is saturated, and no gradient leads back.",
    )


SLIDE = Slide(
    8,
    "clipping",
    "Gradient clipping",
    build,
    rules=("exploding-gradient", "update-too-large", "clipping-dominates"),
    remedies=("clipping=1.0", "clipping=percentile", "clipping=agc"),
)
