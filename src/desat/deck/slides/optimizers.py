"""Slide 9: optimizers that divide by the gradient's size: what they gain, and where that ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.reference.optimizers import adagrad_step, adam_step, momentum_step, rmsprop_step, sgd_step

Array = NDArray[np.float64]
Step = Callable[..., tuple[Array, Any]]

CURVATURES = np.array([1.0, 100.0])
"""Of the quadratic, along its two axes: a hundred times as steep one way as the other."""

NOISE = 1.0
"""Standard deviation of what is added to each component of the gradient."""

STEPS, DESCENTS, LAST = 100, 20, 20
"""Steps of a descent; descents with noise of their own, over which the loss is averaged; last steps that are judged."""

RATES = np.logspace(-4.0, 0.0, 13)
"""Each optimizer descends with the one of these that is best for it."""

TURN = np.pi / 4.0
"""Angle by which the valley lies across the parameters' axes, radians."""


@dataclass(frozen=True)
class Method:
    """One optimizer. step: of desat.reference. remedy: what makes it of plain SGD; None for one not tried on digits."""

    name: str
    step: Step
    torch: type[Optimizer]
    colour: str
    remedy: str | None = None
    options: tuple[tuple[str, float], ...] = ()
    style: str = "-"


METHODS = (
    Method("SGD", sgd_step, torch.optim.SGD, GREY, ""),
    Method("momentum", momentum_step, torch.optim.SGD, ORANGE, None, (("momentum", 0.9),)),
    Method("Adagrad", adagrad_step, torch.optim.Adagrad, PURPLE, "optimizer=adagrad:0.03"),
    Method("RMSprop", rmsprop_step, torch.optim.RMSprop, GREEN, "optimizer=rmsprop:0.01", style="--"),
    Method("Adam", adam_step, torch.optim.Adam, BLUE, "optimizer=adam:0.01"),
)
ADAPTIVE = ("Adagrad", "RMSprop", "Adam")

TOO_LARGE = "optimizer=adam:0.3"
SHALLOW, DEEP = 3, 12
"""Layers of sigmoids: in the deep network the first layer's gradient is below Adam's epsilon."""

EPSILON = 1e-8
"""Adam's, as in PyTorch."""

WIDTH = 32
JUDGED = ("SGD", "too large", "deep")
"""Trainings whose findings a statement tells."""

TRAINING_STEPS = {True: 100, False: 400}


@dataclass(frozen=True, eq=False)
class Descent:
    """losses: the mean over the descents, of each step; end: their mean over the last steps. path: of one descent."""

    rate: float
    losses: Array
    path: Array

    @property
    def end(self) -> float:
        return float(self.losses[-LAST:].mean())


@dataclass(frozen=True, eq=False)
class Training:
    """One training on digits. gradient, ratio: of the first layer, rms at the first step and median update ratio.

    findings: of those of JUDGED.
    """

    losses: Array
    accuracy: float
    gradient: float
    ratio: float
    findings: tuple[str, ...]


def build(settings: Settings) -> Page:
    settings.progress("descents in a valley", 0.0)
    straight, turned = ({one.name: _best(one, turn, settings.seed) for one in METHODS} for turn in (0.0, TURN))
    apart = max(_difference(one, settings.seed) for one in METHODS)
    runs = {one.name: (SHALLOW, one.remedy) for one in METHODS if one.remedy is not None}
    runs |= {
        "faster": (SHALLOW, "optimizer=rate:100"),
        "too large": (SHALLOW, TOO_LARGE),
        "deep": (DEEP, "optimizer=adam:0.01"),
    }
    trainings = {
        name: _train(settings, depth, remedy, name, 0.2 + 0.8 * place / len(runs))
        for place, (name, (depth, remedy)) in enumerate(runs.items())
    }
    return Page(
        words=(
            "Adagrad, RMSprop and Adam divide each parameter's step by the size of its own gradients. So a step is as "
            "long where the gradient has all but gone as where it is large, which is what a saturated network needs.",
            f"Measured in a valley {CURVATURES[1]:.0f} times as steep one way as the other, with noise on the gradient "
            "and each optimizer at the best of the same rates for it, and on sigmoid networks on handwritten digits, "
            "whose SGD remedies change in place.",
        ),
        figures=(_path_picture(straight), _valley_picture(straight, turned), _training_picture(trainings)),
        statements=(
            _adapts(straight, apart),
            _only_along_axes(straight, turned),
            _learns(trainings),
            _ends(trainings),
        ),
        readings=(
            Reading(
                "Duchi, Hazan and Singer 2011, Adaptive subgradient methods for online learning",
                "https://jmlr.org/papers/v12/duchi11a.html",
            ),
            Reading("Tieleman and Hinton 2012, Lecture 6.5: RMSprop, Neural networks for machine learning, Coursera"),
            Reading(
                "Kingma and Ba 2015, Adam: a method for stochastic optimization", "https://arxiv.org/abs/1412.6980"
            ),
        ),
    )


def descend(method: Method, rate: float, turn: float, seed: int) -> Descent:
    """DESCENTS descents at once, shape (descents, 2), from one point, each with noise of its own."""
    generator = np.random.default_rng(seed)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    curvature = rotation @ np.diag(CURVATURES) @ rotation.T
    place, state = np.tile(rotation @ np.ones(2), (DESCENTS, 1)), None
    losses, path = [], []
    for _ in range(STEPS):
        slope = place @ curvature
        losses.append(0.5 * float((slope * place).sum(axis=1).mean()))
        path.append(place[0])
        noisy = slope + NOISE * generator.standard_normal(place.shape)
        place, state = method.step(place, noisy, state, learning_rate=rate, **dict(method.options))
        if not np.isfinite(losses[-1]) or losses[-1] > 1e6:
            return Descent(rate, np.full(STEPS, np.inf), np.array(path))
    return Descent(rate, np.array(losses), np.array(path))


def _best(method: Method, turn: float, seed: int) -> Descent:
    return min((descend(method, float(rate), turn, seed) for rate in RATES), key=lambda one: one.end)


def _difference(method: Method, seed: int) -> float:
    """Largest difference of a parameter between desat.reference and torch.optim, float64, given the same gradients."""
    gradients = np.random.default_rng(seed).standard_normal((STEPS, 4))
    ours, state = np.ones(4), None
    theirs = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = method.torch([theirs], lr=0.01, **dict(method.options))  # pyright: ignore[reportCallIssue]
    largest = 0.0
    for gradient in gradients:
        ours, state = method.step(ours, gradient, state, learning_rate=0.01, **dict(method.options))
        theirs.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        largest = max(largest, float(np.abs(ours - theirs.detach().numpy()).max()))
    return largest


def _train(settings: Settings, depth: int, remedy: str, name: str, begun: float) -> Training:
    torch.manual_seed(settings.seed)
    data, steps = digits(settings.seed), TRAINING_STEPS[settings.fast]
    model = stack([64, *[WIDTH] * depth, 10], nn.Sigmoid)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    apply(model, optimizer, *([remedy] if remedy else []))
    with trained(
        model,
        optimizer,
        batches(data.inputs, data.labels, 64, settings.seed),
        steps,
        every=steps // 12,
        tell=lambda what, share: settings.progress(what, begun + share / 9),
        what=f"{depth} layers, {name}",
    ) as record:
        gradient, update, size = (
            record.grid("parameter", statistic).values[0] for statistic in ("gradient_rms", "update_rms", "rms")
        )
        return Training(
            losses=record.steps()["loss"],
            accuracy=accuracy(model, data.test_inputs, data.test_labels),
            gradient=float(gradient[0]),
            ratio=float(np.median(update / size)),
            findings=diagnose(record).codes() if name in JUDGED else (),
        )


def _adapts(straight: dict[str, Descent], apart: float) -> Statement:
    ends = {name: descent.end for name, descent in straight.items()}
    worst = max(ends[name] for name in ADAPTIVE)
    return Statement(
        claim="In a steep valley that lies along the axes, adaptive steps arrive where SGD's do not.",
        sentence=f"After {STEPS} steps the loss is {_listed(ends)}, each at its best rate. The formulas are those of "
        f"torch.optim within {apart:.0e}.",
        holds=worst < 0.5 * ends["SGD"] and apart < 1e-9,
        values={**{f"end_{name}": end for name, end in ends.items()}, "apart": apart},
    )


def _only_along_axes(straight: dict[str, Descent], turned: dict[str, Descent]) -> Statement:
    ends = {name: descent.end for name, descent in turned.items()}
    lost = [ends[name] / straight[name].end for name in ("Adagrad", "RMSprop")]
    return Statement(
        claim="The size of each parameter's gradient tells nothing of a valley that lies across the axes.",
        sentence=f"The same valley turned by 45°: {_listed(ends)}. What Adagrad and RMSprop had gained is mostly gone; "
        "SGD does not care for the turn. Adam keeps its lead by its momentum: SGD with momentum does about as well.",
        holds=min(lost) > 3.0
        and abs(ends["SGD"] / straight["SGD"].end - 1.0) < 0.25
        and ends["Adam"] < 0.5 * ends["SGD"],
        values={f"end_{name}": end for name, end in ends.items()},
    )


def _listed(ends: dict[str, float]) -> str:
    told = [f"{end:.2g} with {name}" for name, end in ends.items()]
    return f"{', '.join(told[:-1])} and {told[-1]}"


def _learns(trainings: dict[str, Training]) -> Statement:
    plain = trainings["SGD"]
    faster = trainings["faster"]
    found = "update-too-small" in plain.findings
    told = ", ".join(f"{trainings[name].accuracy:.0%} with {name}" for name in ADAPTIVE)
    return Statement(
        claim="They take a saturated network off the plateau.",
        sentence=f"With SGD a step changes the first of {SHALLOW} layers by {plain.ratio:.0e} of its size, and the "
        f"network knows {plain.accuracy:.0%} of the unseen digits, {faster.accuracy:.0%} with a rate a hundred times "
        f"as large; `desat diagnose` says {listed(plain.findings)}. From the same weights it knows {told}; a "
        f"step of Adam is "
        f"{trainings['Adam'].ratio:.0e} of the weights.",
        holds=found and all(trainings[name].accuracy > plain.accuracy + 0.2 for name in ADAPTIVE),
        values={
            **{f"accuracy_{name}": trainings[name].accuracy for name in ("SGD", *ADAPTIVE)},
            "accuracy_SGD_faster": faster.accuracy,
            "ratio_SGD": plain.ratio,
            "ratio_Adam": trainings["Adam"].ratio,
        },
    )


def _ends(trainings: dict[str, Training]) -> Statement:
    large, deep = trainings["too large"], trainings["deep"]
    return Statement(
        claim="A rate can be too large for them, and a gradient too small.",
        sentence=f"With `{TOO_LARGE}` the network knows {large.accuracy:.0%}, and desat finds "
        f"{listed(large.findings)}. In "
        f"{DEEP} layers the first one's gradient of {deep.gradient:.0e} is below Adam's epsilon of {EPSILON:g}, which "
        f"then sets the step: it knows {deep.accuracy:.0%}, and desat finds {listed(deep.findings)}. That takes "
        "other activations.",
        holds="update-too-large" in large.findings
        and "degenerate-optimizer" in deep.findings
        and deep.gradient < EPSILON
        and max(large.accuracy, deep.accuracy) < 0.3,
        values={
            "accuracy_too_large": large.accuracy,
            "accuracy_deep": deep.accuracy,
            "gradient_deep": deep.gradient,
            "gradient_shallow": trainings["Adam"].gradient,
            "ratio_deep": deep.ratio,
        },
    )


def _path_picture(straight: dict[str, Descent]) -> Figure:
    across, along = np.meshgrid(np.linspace(-0.5, 1.3, 120), np.linspace(-1.1, 1.3, 120))
    losses = 0.5 * (CURVATURES[0] * across**2 + CURVATURES[1] * along**2)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.contour(across, along, np.sqrt(losses), levels=12, colors=GREY, linewidths=0.6, alpha=0.6)
        for method in METHODS:
            path = straight[method.name].path
            axes.plot(path[:, 0], path[:, 1], method.style, color=method.colour, label=method.name, linewidth=1.4)
        axes.plot(0.0, 0.0, "+", color=VERMILION, markersize=12, markeredgewidth=2)
        axes.set(xlim=(-0.5, 1.3), ylim=(-1.1, 1.3), xlabel="flat direction", ylabel="steep direction")
        axes.set_title("One descent of each")
        axes.legend(loc="lower left")

    return picture(
        "paths",
        draw,
        alt="Contours of a valley and one descent of each optimizer from (1, 1) to the cross at its bottom. SGD drops "
        "to the floor at once and creeps along it; Adagrad, RMSprop and Adam go down both ways alike.",
        caption="Each at its best rate.",
    )


def _valley_picture(straight: dict[str, Descent], turned: dict[str, Descent]) -> Figure:
    def draw(canvas: Canvas) -> None:
        for place, (descents, title) in enumerate(((straight, "along the axes"), (turned, "turned by 45°")), 1):
            axes = canvas.add_subplot(1, 2, place)
            for method in METHODS:
                losses = descents[method.name].losses
                axes.semilogy(losses, method.style, color=method.colour, label=method.name, linewidth=1.6)
            axes.set(ylim=(3e-3, 100.0), xlabel="step", title=f"Valley {title}")
            if place == 1:
                axes.set_ylabel("loss")
                axes.legend(loc="upper right")

    return picture(
        "valley",
        draw,
        alt="Loss by step in the valley. "
        + " ".join(
            f"{title}: " + ", ".join(f"{name} ends at {one.end:.2g}" for name, one in descents.items()) + "."
            for descents, title in ((straight, "Along the axes"), (turned, "Turned by 45 degrees"))
        ),
        caption=f"Mean of {DESCENTS} descents, each optimizer at its best rate.",
    )


def _training_picture(trainings: dict[str, Training]) -> Figure:
    colours = {method.name: method.colour for method in METHODS} | {
        "faster": INK,
        "too large": VERMILION,
        "deep": ORANGE,
    }
    names = {"faster": "SGD, rate 1", "too large": "Adam, rate 0.3", "deep": f"Adam, {DEEP} layers"}

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for name, training in trainings.items():
            smooth = np.convolve(training.losses, np.ones(5) / 5.0, mode="valid")
            axes.plot(smooth, color=colours[name], label=names.get(name, name), linewidth=1.6)
        axes.set(xlabel="step", ylabel="loss", ylim=(0.0, 4.5), title="Sigmoid networks on digits")
        axes.legend(loc="upper right", ncols=2)

    return picture(
        "digits",
        draw,
        alt="Loss by step of sigmoid networks on digits. At the end: "
        + ", ".join(f"{names.get(name, name)} {one.losses[-5:].mean():.2f}" for name, one in trainings.items())
        + ".",
        caption=f"{SHALLOW} layers where nothing else is said; means of 5 steps. That of one answer for all is 2.3.",
    )


SLIDE = Slide(
    9,
    "optimizers",
    "Adaptive optimizers",
    build,
    rules=("update-too-small", "update-too-large", "loss-plateau", "degenerate-optimizer"),
    remedies=("optimizer=adam", "optimizer=rmsprop", "optimizer=adagrad"),
)
