"""Slide 5: ReLU, leaky ReLU and ELU: what is left of the slope on the negative side, and which units die."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, INK, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import Data, accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.diagnose.rules.dead_units import WINDOW
from desat.nonlinearity import SATURATION_LIMIT, Curve, measure_curve
from desat.record.reader import Record
from desat.reference.activations import elu_derivative, leaky_relu_derivative, relu_derivative

HIDDEN = (64, 64)
BATCH = 64
EVERY = 2

STEPS = {True: 60, False: 200}
RATES = {True: (0.1, 1.0), False: (0.03, 0.1, 0.3, 1.0, 3.0)}

BORN_OFF = -6.0
"""Bias that the first layer begins with, by which nearly every unit is below zero for every sample."""
BORN_OFF_RATE = 0.1
BORN_OFF_STEPS = {True: 150, False: 400}

SICK_SHARE = 0.1
"""Share of dead units that speaks of a sick layer; at usual learning rates at most 2.4 % are here."""

SLOPE_RANGE = 8.0


@dataclass(frozen=True)
class Variant:
    """A rectifier. low: where it is saturated by algebra, at and below."""

    key: str
    name: str
    torch: Callable[[Tensor], Tensor]
    derivative: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    shape: str
    low: float
    colour: str


VARIANTS = (
    Variant("relu", "ReLU", torch.relu, relu_derivative, "rectifier", 0.0, VERMILION),
    Variant("leaky_relu", "Leaky ReLU", nn.functional.leaky_relu, leaky_relu_derivative, "open", 0.0, BLUE),
    Variant("elu", "ELU", nn.functional.elu, elu_derivative, "rectifier", math.log(SATURATION_LIMIT), GREEN),
)


@dataclass(frozen=True)
class Run:
    """What was measured of one training.

    off: share of all hidden units that were saturated on every sample of the last sampled steps. gain: mean slope of
    the first nonlinearity at the first step; expected_gain: the same of the formula. losses: by step. findings: of the
    networks that were born off alone.
    """

    off: float
    gain: float
    expected_gain: float
    losses: NDArray[np.float64]
    findings: tuple[str, ...]
    accuracy: float

    @property
    def diverged(self) -> bool:
        """Whether it ended with a loss that is no number, or larger than the first."""
        return not float(np.median(self.losses[-5:])) <= float(self.losses[0])


def build(settings: Settings) -> Page:
    data = digits(settings.seed)
    curves = {variant.key: _curve(variant) for variant in VARIANTS}
    born_off, sweep = _trainings(settings, data)
    return Page(
        words=(
            "Below zero ReLU is flat: a unit that is below zero for every sample gets no gradient, and so it stays "
            "there. Leaky ReLU keeps a hundredth of the slope, and ELU a slope of eᶻ, which fades.",
            "By desat's test leaky ReLU is saturated below zero as well, since 0.01 is less than 5 % of its steepest "
            "slope; but it is open, not a rectifier, and its units are never called dead.",
        ),
        figures=(
            _curve_picture(),
            _slope_picture(curves),
            _loss_picture(born_off),
            _rate_picture(sweep),
        ),
        statements=(
            _classes(curves),
            _born(born_off),
            _found(born_off),
            _killed(sweep),
        ),
        readings=(
            Reading("Maas, Hannun and Ng 2013, Rectifier nonlinearities improve neural network acoustic models"),
            Reading(
                "Clevert, Unterthiner and Hochreiter 2016, Fast and accurate deep network learning by ELUs",
                "https://arxiv.org/abs/1511.07289",
            ),
        ),
    )


def _curve(variant: Variant) -> Curve:
    curve = measure_curve(variant.torch)
    assert curve is not None
    return curve


def _trainings(settings: Settings, data: Data) -> tuple[dict[str, Run], dict[str, dict[float, Run]]]:
    """By variant: the network whose first layer was born off, and the one of the usual start by learning rate."""
    rates = RATES[settings.fast]
    number, done = len(VARIANTS) * (len(rates) + 1), 0
    born_off, sweep = {}, {}
    for variant in VARIANTS:
        settings.progress(f"training {variant.name}, born off", done / number)
        born_off[variant.key] = _train(
            settings, data, variant, BORN_OFF_RATE, BORN_OFF_STEPS[settings.fast], bias=BORN_OFF
        )
        done += 1
        sweep[variant.key] = {}
        for rate in rates:
            settings.progress(f"training {variant.name} at a learning rate of {rate:g}", done / number)
            sweep[variant.key][rate] = _train(settings, data, variant, rate, STEPS[settings.fast])
            done += 1
    return born_off, sweep


def _train(
    settings: Settings, data: Data, variant: Variant, rate: float, steps: int, *, bias: float | None = None
) -> Run:
    """A tanh network whose activation and weights desat's remedies replace, so that all begin alike."""
    torch.manual_seed(settings.seed)
    model = stack([64, *HIDDEN, 10], nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.0 if bias is None else 0.9)
    apply(model, optimizer, f"activation={variant.key}", "initialization=he")
    first = model[0]
    assert isinstance(first, nn.Linear)
    if bias is not None:
        nn.init.constant_(first.bias, bias)
    with torch.no_grad():
        expected = float(variant.derivative(first(data.inputs).double().numpy()).mean())
    source = batches(data.inputs, data.labels, BATCH, settings.seed)
    with trained(model, optimizer, source, steps, every=max(EVERY if bias is None else 5, steps // 40)) as record:
        return _measured(record, expected, accuracy(model, data.test_inputs, data.test_labels), bias is not None)


def _measured(record: Record, expected_gain: float, share: float, diagnosed: bool) -> Run:
    sites = record.sites("nonlinearity")
    flags = np.concatenate([record.saturated_units(site)[1] for site in sites], axis=1)
    return Run(
        off=float(flags[-int(WINDOW.value) :].all(axis=0).mean()),
        gain=float(record.tensor(sites[0], "input")["gain"][0]),
        expected_gain=expected_gain,
        losses=record.steps()["loss"],
        findings=diagnose(record).codes("error", "warning") if diagnosed else (),
        accuracy=share,
    )


def _classes(curves: dict[str, Curve]) -> Statement:
    agrees = all(curves[one.key].shape == one.shape and abs(curves[one.key].low - one.low) < 1e-6 for one in VARIANTS)
    elu = curves["elu"].low
    return Statement(
        claim="ReLU and ELU are rectifiers, leaky ReLU is open.",
        sentence=f"From the derivative: ReLU is saturated at z ≤ {curves['relu'].low:g}, ELU at z ≤ {elu:.3f}, which "
        f"is ln {SATURATION_LIMIT:g}; leaky ReLU's slope of 0.01 at z ≤ {curves['leaky_relu'].low:g} is under the "
        "limit, but does not go to zero.",
        holds=agrees,
        values={f"{one.key}_low": curves[one.key].low for one in VARIANTS}
        | {f"{one.key}_is_open": float(curves[one.key].shape == "open") for one in VARIANTS},
    )


def _born(born_off: dict[str, Run]) -> Statement:
    relu, leaky, elu = (born_off[variant.key] for variant in VARIANTS)
    told = {key: f"{run.gain:.2g} and {run.accuracy:.0%}" for key, run in (("leaky", leaky), ("elu", elu))}
    agrees = all(abs(run.gain - run.expected_gain) <= 0.2 * run.expected_gain for run in born_off.values())
    return Statement(
        claim="A dead ReLU unit does not come back; a little slope lets the layer learn.",
        sentence=f"With biases of {BORN_OFF:g} the first layer is off for every sample. ReLU's mean slope there is "
        f"{relu.gain:g}, and after {len(relu.losses)} steps the network knows {relu.accuracy:.0%} of the digits that "
        f"it has not seen, which is guessing. With leaky ReLU it is {told['leaky']}, with ELU {told['elu']}.",
        holds=agrees and relu.gain == 0.0 and relu.accuracy < 0.2 < min(leaky.accuracy, elu.accuracy),
        values={
            f"{variant.key}_{name}": value
            for variant in VARIANTS
            for run in (born_off[variant.key],)
            for name, value in (
                ("gain", run.gain), ("expected_gain", run.expected_gain), ("accuracy", run.accuracy), ("off", run.off),
            )
        },
    )  # fmt: skip


def _found(born_off: dict[str, Run]) -> Statement:
    found = {key: "dead-units" in run.findings for key, run in born_off.items()}
    relu, leaky = born_off["relu"], born_off["leaky_relu"]
    return Statement(
        claim="desat finds the dead units, and does not take leaky ReLU's for dead.",
        sentence=f"Of the network with ReLU `desat diagnose` says "
        f"{listed(relu.findings)}: {relu.off:.0%} of its hidden units were off "
        f"on every sample of the last {WINDOW.value:g} sampled steps. Leaky ReLU's were below zero just so, "
        f"{leaky.off:.0%} of them, but not dead.",
        holds=found["relu"] and not found["leaky_relu"],
        values={f"{key}_found": float(is_found) for key, is_found in found.items()},
    )


def _killed(sweep: dict[str, dict[float, Run]]) -> Statement:
    slow, fast = min(sweep["relu"]), max(sweep["relu"])
    at_fast = {key: runs[fast] for key, runs in sweep.items()}
    lowest = max(runs[slow].off for runs in sweep.values())
    told = [
        f"{variant.name} {'diverges' if run.diverged else f'loses {run.off:.0%} of its units'}"
        for variant in VARIANTS
        for run in (at_fast[variant.key],)
    ]
    relu, elu = at_fast["relu"], at_fast["elu"]
    return Statement(
        claim="Too large a learning rate kills units, and no variant bears it.",
        sentence=f"At a learning rate of {slow:g} at most {lowest:.0%} of the hidden units end up off for every "
        f"sample, with any of the three. At {fast:g} {', '.join(told)}: the cure is the smaller rate.",
        holds=lowest < SICK_SHARE < relu.off and elu.diverged,
        values={
            "largest_off_at_slow": lowest,
            "relu_off_at_fast": relu.off,
            "elu_diverged_at_fast": float(elu.diverged),
            **{f"{key}_accuracy_at_slow": runs[slow].accuracy for key, runs in sweep.items()},
            **{f"{key}_accuracy_at_fast": run.accuracy for key, run in at_fast.items()},
        },
    )


def _curve_picture() -> Figure:
    z = np.linspace(-6.0, 2.0, 401)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for variant in VARIANTS:
            axes.plot(z, variant.torch(torch.tensor(z)).numpy(), color=variant.colour, label=variant.name)
        axes.set(xlabel="z", xlim=(-6.0, 2.0), ylim=(-1.2, 2.0), title="Three rectifiers")
        axes.legend(loc="upper left")

    return picture(
        "curves",
        draw,
        alt="ReLU, leaky ReLU and ELU between -6 and 2: above zero all three are the identity; below it ReLU is 0, "
        "leaky ReLU falls to -0.06 and ELU bends towards -1.",
    )


def _slope_picture(curves: dict[str, Curve]) -> Figure:
    z = np.linspace(-SLOPE_RANGE, 2.0, 801)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for variant in VARIANTS:
            slope = variant.derivative(z)
            axes.plot(z, np.where(slope > 0.0, slope, np.nan), color=variant.colour, label=variant.name)
        axes.axhline(SATURATION_LIMIT, color=INK, linewidth=1.0, linestyle="--", label="5 %: saturated below")
        axes.set_yscale("log")
        axes.set(xlabel="z", xlim=(-SLOPE_RANGE, 2.0), ylim=(2e-4, 3.0), title="Their slopes")
        axes.legend(loc="upper left")

    return picture(
        "slopes",
        draw,
        alt=f"Slopes on a logarithmic scale: all are 1 above zero. Below it ReLU has none, leaky ReLU 0.01, and ELU's "
        f"eᶻ crosses the limit of 5 % at z = {curves['elu'].low:.2f}.",
        caption="ReLU's slope below zero is 0, which no logarithm shows.",
    )


def _loss_picture(born_off: dict[str, Run]) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for variant in VARIANTS:
            axes.plot(born_off[variant.key].losses, color=variant.colour, linewidth=1.5, label=variant.name)
        axes.set(xlabel="step", ylabel="loss", ylim=(0.0, 3.2), title="A first layer that was born off")
        axes.legend(loc="lower left")

    ends = {key: float(np.median(run.losses[-10:])) for key, run in born_off.items()}
    return picture(
        "born",
        draw,
        alt=f"Loss by step of networks whose first layer begins below zero: with ReLU it stays at {ends['relu']:.2f}, "
        f"with leaky ReLU it ends at {ends['leaky_relu']:.2f}, with ELU at {ends['elu']:.2f}.",
        caption=f"Biases of {BORN_OFF:g}. ln 10 = 2.30 is guessing.",
    )


def _rate_picture(sweep: dict[str, dict[float, Run]]) -> Figure:
    rates = list(sweep["relu"])
    places = np.arange(len(rates))

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for index, variant in enumerate(VARIANTS):
            runs = [sweep[variant.key][rate] for rate in rates]
            heights = [0.0 if run.diverged else 100 * run.off for run in runs]
            shifted = places + 0.27 * (index - 1)
            axes.bar(shifted, heights, 0.25, color=variant.colour, label=variant.name)
            for place, run, height in zip(shifted, runs, heights, strict=True):
                text = "diverged" if run.diverged else f"{height:.0f}"
                rotation = 90 if run.diverged else 0
                axes.annotate(
                    text, (float(place), height), (0, 3), textcoords="offset points", ha="center", rotation=rotation
                )
        axes.set_xticks(places, [f"{rate:g}" for rate in rates])
        axes.set(xlabel="learning rate", ylabel="units off, %", title="Units off for every sample, at the end")
        axes.margins(y=0.2)
        axes.legend(loc="upper left")

    return picture(
        "rates",
        draw,
        alt="Share of hidden units that are off for every sample at the end, by learning rate. "
        + " ".join(
            f"{variant.name}: "
            + ", ".join(
                f"{'diverged' if run.diverged else f'{run.off:.0%}'} at {rate:g}"
                for rate, run in sweep[variant.key].items()
            )
            + "."
            for variant in VARIANTS
        ),
        caption="Measured by desat: on the flat side for every sample of five sampled steps.",
    )


SLIDE = Slide(
    5,
    "rectifiers",
    "ReLU, leaky ReLU, ELU",
    build,
    rules=("dead-units",),
    remedies=("activation=leaky_relu", "activation=elu"),
)
