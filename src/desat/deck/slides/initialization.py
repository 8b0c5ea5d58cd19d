"""Slide 7: how large weights are drawn decides whether the signal survives thirty layers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import ArrayLike, NDArray
from torch import nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, ORANGE, PURPLE, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budgets
from desat.reference.activations import relu, tanh
from desat.reference.initialization import (
    Initialization,
    he_normal,
    he_std,
    variance_through,
    xavier_std,
    xavier_uniform,
)

Array = NDArray[np.float64]

DEPTH = 30
SIZES = {True: (128, 64), False: (256, 512)}
"""Width and samples, fast or not."""

INITIALIZATIONS: dict[str, Initialization] = {"Xavier": xavier_uniform, "He": he_normal}
CRITICAL = "initialization=critical"
REMEDIES = ("initialization=xavier", "initialization=he", CRITICAL)
CASES = (("ReLU", "Xavier"), ("ReLU", "He"), ("tanh", "Xavier"), ("tanh", "He"))
COLOURS = dict(zip(CASES, (VERMILION, GREEN, BLUE, ORANGE), strict=True))

AGREES = 1e-4
"""Relative difference of a variance by torch in float32 and by the formula in float64 that counts as none."""

CHANCE = 5.0
"""Over the width: variance of the factor by which one ReLU layer of He's weights multiplies the mean square, since of a
rectified normal value E x^4 / (E x^2)^2 - 1 is 5."""

DEVIATIONS = 4.0
"""Standard deviations that chance is granted."""

KEPT = 4.0
"""Factor within which the variance stays that the remedies keep; they draw by a seed of their own and are within 3."""

WRONG_STEPS = 6
TOO_LARGE = 2.0
CONSTANT = 0.1


@dataclass(frozen=True)
class Nonlinearity:
    reference: Callable[[Array], ArrayLike]
    module: Callable[[], nn.Module]


NONLINEARITIES = {"ReLU": Nonlinearity(relu, nn.ReLU), "tanh": Nonlinearity(tanh, nn.Tanh)}


@dataclass(frozen=True)
class Path:
    """Variances of the activations after each layer, (DEPTH,): as desat measured them, and by the formula.

    gradient_db: change of the gradient from the last layer to the first. weights: all that were drawn, flat.
    """

    measured: Array
    expected: Array
    gradient_db: float
    weights: Array

    @property
    def factor(self) -> float:
        """What each layer after the first multiplies the variance by, in the geometric mean."""
        return float((self.measured[-1] / self.measured[0]) ** (1.0 / (DEPTH - 1)))


def build(settings: Settings) -> Page:
    paths = {}
    for place, case in enumerate(CASES):
        settings.progress(f"{DEPTH} layers of {case[0]} with {case[1]}", 0.1 * place)
        paths[case] = _path(settings, *case)
    settings.progress("remedies", 0.4)
    cured = {(name, remedy): _cured_variance(settings, name, remedy) for name in NONLINEARITIES for remedy in REMEDIES}
    wrong = _wrong_starts(settings)
    return Page(
        words=(
            "A layer multiplies the variance of its signal by fan-in times the variance of its weights, and by what "
            "the nonlinearity leaves. Xavier chooses the weights so that the first two make one, between fan-in and "
            "fan-out; He doubles the variance, for ReLU takes half of the mean square.",
            f"Thirty layers raise any error to the thirtieth power. desat measured {DEPTH} layers in PyTorch, with the "
            "very weights of the NumPy formula. Its remedies measure the gain that a nonlinearity needs, whatever it "
            "is called.",
        ),
        figures=(_weight_picture(settings, paths), _variance_picture(paths), _remedy_picture(cured)),
        statements=(
            _sizes(settings, paths),
            _same(paths),
            _relu(settings, paths),
            _tanh(paths),
            _kept(cured),
            _found(wrong),
        ),
        readings=(
            Reading(
                "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks",
                "https://proceedings.mlr.press/v9/glorot10a.html",
            ),
            Reading("He, Zhang, Ren and Sun 2015, Delving deep into rectifiers", "https://arxiv.org/abs/1502.01852"),
            Reading("Schoenholz et al. 2017, Deep information propagation", "https://arxiv.org/abs/1611.01232"),
        ),
    )


def _deep(name: str, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(width, width), NONLINEARITIES[name].module()]
        assert isinstance(layers[-2], nn.Linear)
        nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers)


def _path(settings: Settings, name: str, initialization: str) -> Path:
    """By the formula, and then by a torch network of the same draws."""
    width, samples = SIZES[settings.fast]
    init, reference = INITIALIZATIONS[initialization], NONLINEARITIES[name].reference
    drawn: list[Array] = []

    def keep(shape: tuple[int, int], rng: np.random.Generator) -> Array:
        drawn.append(init(shape, rng))
        return drawn[-1]

    expected = variance_through(DEPTH, width, samples, reference, keep, np.random.default_rng(settings.seed))
    inputs = np.random.default_rng(settings.seed).standard_normal((samples, width))  # what the formula drew first
    model = _deep(name, width)
    with torch.no_grad():
        for layer, weights in zip(list(model)[::2], drawn, strict=True):
            layer.get_parameter("weight").copy_(torch.tensor(weights))
    variances, gradient_db = _measured(model, inputs)
    return Path(variances, expected[1:], gradient_db, np.concatenate([weights.ravel() for weights in drawn]))


def _measured(model: nn.Module, inputs: Array) -> tuple[Array, float]:
    """Variance after each nonlinearity by desat, and what becomes of the gradient, in decibels."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = (torch.tensor(inputs, dtype=torch.float32), torch.empty(0))
    with trained(model, optimizer, [batch], 1, criterion=lambda output, _: output.square().mean()) as record:
        sites = record.sites("nonlinearity")
        outputs = [record.tensor(site, "output") for site in sites]
        variances = [float(output["rms"][0] ** 2 - output["mean"][0] ** 2) for output in outputs]
        return np.array(variances), measure_link_budgets(record)[0].total_db


def _cured_variance(settings: Settings, name: str, remedy: str) -> Array:
    width, samples = SIZES[settings.fast]
    inputs = np.random.default_rng(settings.seed).standard_normal((samples, width))
    model = _deep(name, width)
    batch = torch.tensor(inputs, dtype=torch.float32) if remedy == CRITICAL else None  # the others need none
    apply(model, None, remedy, batch=batch)
    return _measured(model, inputs)[0]


def _wrong_starts(settings: Settings) -> dict[str, tuple[str, ...]]:
    """The findings of short trainings on digits with three wrong draws, by what desat should say."""
    starts: dict[str, tuple[str, Callable[[nn.Linear], object]]] = {
        "vanishing-signal": (
            "ReLU by Xavier",
            lambda layer: nn.init.normal_(layer.weight, std=xavier_std(layer.in_features, layer.out_features)),
        ),
        "exploding-signal": (
            "twice He's",
            lambda layer: nn.init.normal_(layer.weight, std=TOO_LARGE * he_std(layer.in_features)),
        ),
        "symmetric-units": ("constant", lambda layer: nn.init.constant_(layer.weight, CONSTANT)),
    }
    found = {}
    for place, (code, (what, draw)) in enumerate(starts.items()):
        settings.progress(f"training, weights {what}", 0.6 + 0.13 * place)
        depth = 4 if code == "symmetric-units" else DEPTH
        found[code] = _wrong(settings, depth, draw)
    return found


def _wrong(settings: Settings, depth: int, draw: Callable[[nn.Linear], object]) -> tuple[str, ...]:
    torch.manual_seed(settings.seed)
    data = digits(settings.seed)
    model = stack([64, *[64] * depth, 10], nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            draw(layer)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    source = batches(data.inputs, data.labels, 64, settings.seed)
    with trained(model, optimizer, source, WRONG_STEPS, every=2) as record:
        return diagnose(record).codes("error", "warning")


def _sizes(settings: Settings, paths: dict[tuple[str, str], Path]) -> Statement:
    width, _ = SIZES[settings.fast]
    xavier, he = paths["ReLU", "Xavier"].weights, paths["ReLU", "He"].weights
    expected = xavier_std(width, width), he_std(width)
    bound, largest = math.sqrt(3.0) * expected[0], float(np.abs(xavier).max())
    return Statement(
        claim="Xavier draws weights of variance 2 / (fan-in + fan-out), He of 2 / fan-in.",
        sentence=f"In {DEPTH} layers of {width} units Xavier's have standard deviation {xavier.std():.4f} (the "
        f"formula: {expected[0]:.4f}), none beyond ±{bound:.4f}, and He's {he.std():.4f} ({expected[1]:.4f}): with as "
        "many units in each layer, √2 times as much.",
        holds=abs(xavier.std() / expected[0] - 1.0) < 0.01
        and abs(he.std() / expected[1] - 1.0) < 0.01
        and largest <= bound,
        values={
            "xavier": float(xavier.std()),
            "he": float(he.std()),
            "xavier_by_formula": expected[0],
            "he_by_formula": expected[1],
            "largest_of_xavier": largest,
        },
    )


def _same(paths: dict[tuple[str, str], Path]) -> Statement:
    apart = {case: float(np.abs(path.measured / path.expected - 1.0).max()) for case, path in paths.items()}
    return Statement(
        claim="The network in PyTorch does what the formula says.",
        sentence=f"In all {DEPTH} layers of {len(paths)} networks the variance that desat measured is that of the "
        f"NumPy formula within {max(apart.values()):.0e} of it.",
        holds=max(apart.values()) < AGREES,
        values={"largest_difference": max(apart.values())},
    )


def _relu(settings: Settings, paths: dict[tuple[str, str], Path]) -> Statement:
    xavier, he = paths["ReLU", "Xavier"], paths["ReLU", "He"]
    chance = math.sqrt(CHANCE / SIZES[settings.fast][0])
    allowed = DEVIATIONS * chance / math.sqrt(DEPTH - 1)
    return Statement(
        claim="With ReLU, Xavier's weights lose half of the signal at each layer, and He's keep it but for chance.",
        sentence=f"Each layer multiplies the variance by {xavier.factor:.3f} with Xavier, so that after {DEPTH} layers "
        f"it is {xavier.measured[-1]:.0e}; by {he.factor:.3f} with He, and it is {he.measured[-1]:.2g}. In so many "
        f"units chance moves a layer's factor by {chance:.0%}, and the mean of all by "
        f"{chance / math.sqrt(DEPTH - 1):.1%}.",
        holds=abs(math.log(xavier.factor / 0.5)) < allowed and abs(math.log(he.factor)) < allowed,
        values={
            "xavier_factor": xavier.factor,
            "he_factor": he.factor,
            "xavier_last": float(xavier.measured[-1]),
            "he_last": float(he.measured[-1]),
            "allowed": allowed,
        },
    )


def _tanh(paths: dict[tuple[str, str], Path]) -> Statement:
    xavier, he = paths["tanh", "Xavier"], paths["tanh", "He"]
    return Statement(
        claim="With tanh, Xavier's weights let the signal fade slowly; He's keep it, but the gradient grows.",
        sentence=f"With Xavier the variance falls from {xavier.measured[0]:.2f} to {xavier.measured[-1]:.3f}, ever "
        f"more slowly, for near zero tanh is a straight line, and the gradient changes by {xavier.gradient_db:+.0f} dB "
        f"on its way back. With He the variance stays at {he.measured[-1]:.2f}, and the gradient changes by "
        f"{he.gradient_db:+.0f} dB.",
        holds=xavier.measured[-1] < 0.1 < he.measured[-1] and he.gradient_db > xavier.gradient_db + 6.0,
        values={
            "xavier_first": float(xavier.measured[0]),
            "xavier_last": float(xavier.measured[-1]),
            "he_last": float(he.measured[-1]),
            "xavier_gradient_db": xavier.gradient_db,
            "he_gradient_db": he.gradient_db,
        },
    )


def _kept(cured: dict[tuple[str, str], Array]) -> Statement:
    changes = {case: float(variances[-1] / variances[0]) for case, variances in cured.items()}
    told = "; ".join(
        f"`{remedy}` {', '.join(f'{changes[name, remedy]:.2f} with {name}' for name in NONLINEARITIES)}"
        for remedy in REMEDIES
    )
    return Statement(
        claim="desat's remedies keep the signal through thirty layers, of either nonlinearity.",
        sentence=f"The last layer's variance over the first's: {told}.",
        holds=all(1.0 / KEPT < change < KEPT for change in changes.values()),
        values={f"{name}_{remedy.partition('=')[2]}": change for (name, remedy), change in changes.items()},
    )


def _found(wrong: dict[str, tuple[str, ...]]) -> Statement:
    told = {code: listed(found) for code, found in wrong.items()}
    return Statement(
        claim="desat finds weights that were drawn wrongly in the first steps.",
        sentence=f"Of {DEPTH} layers of ReLU on handwritten digits `desat diagnose` says {told['vanishing-signal']} "
        f"with Xavier's weights and {told['exploding-signal']} with weights twice He's; of a network whose weights all "
        f"are {CONSTANT:g}, {told['symmetric-units']}.",
        holds=all(code in found for code, found in wrong.items()),
        values={code: float(code in found) for code, found in wrong.items()},
    )


def _weight_picture(settings: Settings, paths: dict[tuple[str, str], Path]) -> Figure:
    width, _ = SIZES[settings.fast]
    reach = 3.5 * he_std(width)
    edges = np.linspace(-reach, reach, 91)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for name, colour in (("Xavier", BLUE), ("He", GREEN)):
            density, _ = np.histogram(paths["ReLU", name].weights, edges, density=True)
            axes.stairs(density, edges, color=colour, fill=True, alpha=0.6, label=name)
        axes.set(xlabel="weight", ylabel="density", title=f"Weights of {DEPTH} layers, {width} units each")
        axes.legend(loc="upper right")

    return picture(
        "weights",
        draw,
        alt=f"Histograms of the weights: Xavier's are uniform, with standard deviation {xavier_std(width, width):.3f}, "
        f"He's a normal bell with {he_std(width):.3f}.",
        caption="Xavier uniform, He normal, as in the papers.",
    )


def _variance_picture(paths: dict[tuple[str, str], Path]) -> Figure:
    layers = np.arange(1, DEPTH + 1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for case, path in paths.items():
            axes.plot(layers, path.expected, color=COLOURS[case], linewidth=1.5, label=", ".join(case))
            axes.plot(layers[::2], path.measured[::2], "o", color=COLOURS[case], markersize=5)
        axes.set_yscale("log")
        axes.set(xlabel="layer", title="Variance of the activations")
        axes.legend(loc="lower left")

    return picture(
        "variance",
        draw,
        alt=f"Variance of the activations by layer, at layer {DEPTH}: "
        + ", ".join(f"{name} with {init} {path.measured[-1]:.1e}" for (name, init), path in paths.items())
        + ".",
        caption="Lines: the NumPy formula. Dots: desat in PyTorch, every second layer.",
    )


def _remedy_picture(cured: dict[tuple[str, str], Array]) -> Figure:
    layers = np.arange(1, DEPTH + 1)
    colours = (BLUE, GREEN, PURPLE)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for (name, remedy), variances in cured.items():
            colour = colours[REMEDIES.index(remedy)]
            style = "-" if name == "ReLU" else "--"
            label = f"{name}, {remedy.partition('=')[2]}"
            axes.plot(layers, variances, style, color=colour, linewidth=1.8, label=label)
        axes.set_yscale("log")
        low = min(float(variances.min()) for variances in cured.values())
        axes.set(xlabel="layer", title="Variance, with desat's remedies", ylim=(low / 30.0, 3.0))
        axes.legend(loc="lower center", ncols=2)

    return picture(
        "remedies",
        draw,
        alt="Variance of the activations by layer with desat's remedies; at the last layer "
        + ", ".join(
            f"{variances[-1]:.2f} with {name} and {remedy.partition('=')[2]}"
            for (name, remedy), variances in cured.items()
        )
        + ".",
        caption="With tanh, xavier and he coincide; critical holds it small, where it is nearly straight.",
    )


SLIDE = Slide(
    7,
    "initialization",
    "Initialization",
    build,
    rules=("vanishing-signal", "exploding-signal", "symmetric-units"),
    remedies=REMEDIES,
)
