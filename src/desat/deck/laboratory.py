"""The laboratory: one small training whose input scale, depth, slope and learning rate a reader sets, measured anew."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn
from torch.optim import SGD

from desat.deck.drawing import BLUE, GREEN, INK, VERMILION, picture
from desat.deck.slide import Figure, Page, Settings, Slide, Statement
from desat.deck.training import accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.summary import summarize

STEPS = 80
WIDTH = 48
BATCH = 64
SAMPLED_EVERY = 8

ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "sigmoid": lambda alpha: nn.Sigmoid(),
    "tanh": lambda alpha: nn.Tanh(),
    "leaky ReLU": nn.LeakyReLU,
    "ELU": nn.ELU,
}


@dataclass(frozen=True)
class Knob:
    """One slider. low, high, step, start: of the number that it shows; where it is `logarithmic`, of its exponent."""

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float
    logarithmic: bool = False

    def value(self, place: float) -> float:
        return 10.0**place if self.logarithmic else place


KNOBS = (
    Knob("input_scale", "input scale", -2.0, 2.0, 0.25, 0.0, logarithmic=True),
    Knob("depth", "depth, layers", 1.0, 16.0, 1.0, 6.0),
    Knob("alpha", "alpha, slope below zero", 0.0, 1.0, 0.05, 0.0),
    Knob("learning_rate", "learning rate", -4.0, 1.0, 0.25, -1.0, logarithmic=True),
)


@dataclass(frozen=True)
class Wish:
    """Where the sliders stand, and the activation. alpha: of leaky ReLU and ELU; the others have none."""

    activation: str = "sigmoid"
    input_scale: float = 0.0
    depth: float = 6.0
    alpha: float = 0.0
    learning_rate: float = -1.0


def wish_from(query: Mapping[str, str]) -> Wish:
    """What a query asks for. Raises DesatError where a value is none of those that can be set."""
    values: dict[str, float] = {}
    for knob in KNOBS:
        try:
            place = float(query.get(knob.name, knob.start))
        except ValueError:
            raise DesatError(f"{knob.label}: expected a number") from None
        if not knob.low <= place <= knob.high:
            raise DesatError(f"{knob.label}: expected {knob.low:g} to {knob.high:g}")
        values[knob.name] = place
    activation = query.get("activation", "sigmoid")
    if activation not in ACTIVATIONS:
        raise DesatError(f"activation: expected one of {', '.join(ACTIVATIONS)}")
    return Wish(activation, **values)


def experiment(wish: Wish) -> Slide:
    """The training as a slide, which desat.deck.build.build_page makes."""
    return Slide(0, "laboratory", "Laboratory", partial(_measured, wish))


@dataclass(frozen=True)
class _Seen:
    """losses: by step. first, last: gradient rms by layer at the first and last sample. saturated: by layer, the last.

    verdict: desat's; told: its three sentences. accuracy: on digits that were held out.
    """

    losses: NDArray[np.float64]
    first: NDArray[np.float64]
    last: NDArray[np.float64]
    saturated: NDArray[np.float64]
    verdict: str
    told: tuple[str, ...]
    accuracy: float


def _measured(wish: Wish, settings: Settings) -> Page:
    seen = _train(wish, settings)
    return Page(
        words=seen.told[:2],
        figures=(_loss_picture(seen), _gradient_picture(seen), _saturation_picture(seen)),
        statements=(
            Statement(
                claim=f"desat's verdict: {seen.verdict}.",
                sentence=f"After {STEPS} steps the network knows {seen.accuracy:.0%} of digits it has not seen.",
                holds=seen.verdict != "error",
                values={"accuracy": seen.accuracy, "loss_at_the_end": float(seen.losses[-1])},
            ),
        ),
    )


def _train(wish: Wish, settings: Settings) -> _Seen:
    place = {knob.name: knob.value(getattr(wish, knob.name)) for knob in KNOBS}
    data = digits(settings.seed)
    model = stack([64, *[WIDTH] * int(place["depth"]), 10], lambda: ACTIVATIONS[wish.activation](place["alpha"]))
    optimizer = SGD(model.parameters(), lr=place["learning_rate"], momentum=0.9)
    source = batches(data.inputs * place["input_scale"], data.labels, BATCH, settings.seed)
    with trained(model, optimizer, source, STEPS, every=SAMPLED_EVERY) as record:
        diagnosis = diagnose(record)
        gradients = record.grid("gradient", "rms", "nonlinearity").values
        return _Seen(
            losses=record.steps()["loss"],
            first=gradients[:, 0],
            last=gradients[:, -1],
            saturated=_saturated(record),
            verdict=diagnosis.verdict,
            told=summarize(record, diagnosis),
            accuracy=accuracy(model, data.test_inputs * place["input_scale"], data.test_labels),
        )


def _saturated(record: Record) -> NDArray[np.float64]:
    low, high = (record.grid("input", f"saturated_{end}", "nonlinearity").values[:, -1] for end in ("low", "high"))
    return low + high


def _loss_picture(seen: _Seen) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(seen.losses, color=BLUE)
        axes.axhline(math.log(10), color=INK, linewidth=1.0, linestyle="--", label="guessing")
        finite = seen.losses[np.isfinite(seen.losses)]
        axes.set(xlabel="step", ylabel="loss", title="Loss", xlim=(0, STEPS))
        axes.set_ylim(0.0, max(3.0, float(np.quantile(finite, 0.9)) * 1.1) if len(finite) else 3.0)
        axes.legend(loc="upper right")

    return picture("loss", draw, alt=f"Loss by step, from {seen.losses[0]:.3g} to {seen.losses[-1]:.3g}.")


def _gradient_picture(seen: _Seen) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        layers = np.arange(1, len(seen.first) + 1)
        for values, colour, label in ((seen.first, BLUE, "first step"), (seen.last, VERMILION, "last sample")):
            known = np.where(values > 0, values, np.nan)
            axes.plot(layers, 20.0 * np.log10(known), "o-", color=colour, label=label)
        axes.set(xlabel="layer", ylabel="gradient, dB", title="Gradient by layer")
        axes.legend(loc="best")

    return picture(
        "gradient", draw, alt="Gradient rms by layer in decibels, at the first and the last sampled step.",
        caption="−20 dB is a tenth.",
    )  # fmt: skip


def _saturation_picture(seen: _Seen) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        layers = np.arange(1, len(seen.saturated) + 1)
        axes.bar(layers, 100 * np.nan_to_num(seen.saturated), color=GREEN)
        axes.set(xlabel="layer", ylabel="saturated, %", title="Saturated inputs by layer", ylim=(0, 100))

    return picture(
        "saturation", draw, alt="Share of each nonlinearity's inputs that are saturated, at the last sampled step: "
        + ", ".join(f"{share:.0%}" for share in seen.saturated) + ".",
        caption="A rectifier is saturated on about half of its inputs when all is well.",
    )  # fmt: skip
