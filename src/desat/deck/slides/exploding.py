"""Slide 4: factors above one multiply: in a tower of cubes, and in a network whose weights are too large."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, GREY, INK, ORANGE, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement
from desat.deck.training import accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budgets
from desat.record.reader import Record
from desat.reference.clipping import global_norm
from desat.reference.initialization import he_std

CUBES = 6
"""Cubes in a row whose gradient float32 still holds, from START on; the seventh's it does not."""
START = 1.1

DEPTH = 8
WIDTH = 64
BATCH = 64
CLASSES = 10
EXCESS = 1.5
"""Times He's standard deviation that the weights are drawn with: each layer makes the gradient half as large again."""

RATE = 0.1
LIMIT = 1.0
"""Norm at which the gradient is clipped, by the remedy clipping=1.0."""

STEPS = {True: 90, False: 600}
SICK_STEPS = 12
"""It overflows within the first five."""

CLOSE_DB = 5.0
"""Decibels between a drawn network's gain and what is expected of its weights; five seeds were within 2.0."""

CLIPPED, REDRAWN = "clipping=1.0", "initialization=he"


@dataclass(frozen=True)
class Run:
    """What was measured of one training, by sampled step.

    losses, norms: the loss, and the norm of the whole gradient before clipping. by_hand, stepped_with: that norm, and
    the one that the optimizer stepped with, as computed beside the training at every step. totals: decibels from the
    last layer to the first, at the steps whose gradients are finite. levels: decibels of the gradient at each
    nonlinearity against the last one's, (layers, steps). findings: by code, and whether it is more than a note.
    """

    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]
    by_hand: NDArray[np.float64]
    stepped_with: NDArray[np.float64]
    totals: tuple[float, ...]
    levels: NDArray[np.float64]
    findings: dict[str, bool]
    accuracy: float

    @property
    def overflow(self) -> int:
        """Place of the first sampled step whose loss is not finite; their number where all are."""
        bad = np.flatnonzero(~np.isfinite(self.losses))
        return int(bad[0]) if len(bad) else len(self.losses)


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def build(settings: Settings) -> Page:
    measured, expected = _cubes()
    sick = _train(settings, SICK_STEPS, (), 0.0)
    clipped = _train(settings, STEPS[settings.fast], (CLIPPED,), 0.1)
    redrawn = _train(settings, STEPS[settings.fast], (REDRAWN,), 0.55)
    return Page(
        words=(
            "What makes a gradient vanish makes it explode where the factors are above one. The slope of x³ is 3x², "
            "and in a tower of cubes each of these factors is larger than the one below it.",
            f"A network does it with weights: here {DEPTH} layers of ReLU on handwritten digits, drawn {EXCESS:g} "
            "times as large as He has them. The first step is much too long, so the next gradient is larger still, and "
            "a few steps later nothing is a number any more.",
        ),
        figures=(_cube_picture(measured, expected), _norm_picture(sick, clipped, redrawn), _layer_picture(sick)),
        statements=(
            _tower(measured, expected),
            _depth(sick),
            _overflow(sick),
            _found(sick),
            _cured(clipped, redrawn),
        ),
        readings=(
            Reading(
                "Pascanu, Mikolov and Bengio 2013, On the difficulty of training recurrent neural networks",
                "https://proceedings.mlr.press/v28/pascanu13.html",
            ),
            Reading("Hochreiter 1991, Untersuchungen zu dynamischen neuronalen Netzen, diploma thesis, TU München"),
        ),
    )


def _cubes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Decibels that each cube adds to the gradient, the first cube first: as desat measures it, and 3x²."""
    start = nn.Linear(1, 1, bias=False)
    nn.init.ones_(start.weight)
    model = nn.Sequential(start, *(Cube() for _ in range(CUBES)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = (torch.tensor([[START]]), torch.zeros(1, 1))
    with trained(model, optimizer, [batch], 1, criterion=lambda output, _: output.sum()) as record:
        (budget,) = measure_link_budgets(record)
    values = START ** (3.0 ** np.arange(CUBES))
    return np.array([link.gain_db for link in reversed(budget.links)]), 20.0 * np.log10(3.0 * values**2)


def _train(settings: Settings, steps: int, remedies: tuple[str, ...], begun: float) -> Run:
    torch.manual_seed(settings.seed)
    data = digits(settings.seed)
    model = _too_large()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    apply(model, optimizer, *remedies)
    every = max(1, steps // 20)
    by_hand: list[float] = []
    stepped_with: list[float] = []
    optimizer.register_step_post_hook(lambda *_: stepped_with.append(_gradient_norm(model)))
    with trained(
        model,
        optimizer,
        batches(data.inputs, data.labels, BATCH, settings.seed),
        steps,
        every=every,
        before_step=lambda: by_hand.append(_gradient_norm(model)),
        tell=lambda what, share: settings.progress(what, begun + 0.45 * share),
        what=f"training {' with '.join(('too large weights', *remedies))}",
    ) as record:
        return _measured(record, by_hand, stepped_with, accuracy(model, data.test_inputs, data.test_labels))


def _too_large() -> nn.Sequential:
    model = stack([64, *[WIDTH] * DEPTH, CLASSES], nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=EXCESS * he_std(layer.in_features))
            nn.init.zeros_(layer.bias)
    return model


def _gradient_norm(model: nn.Module) -> float:
    gradients = [parameter.grad.numpy() for parameter in model.parameters() if parameter.grad is not None]
    are_finite = all(np.isfinite(gradient).all() for gradient in gradients)
    return global_norm(gradients) if are_finite else math.nan


def _measured(record: Record, by_hand: list[float], stepped_with: list[float], share: float) -> Run:
    gradient = record.grid("parameter", "gradient_rms")
    sizes = np.array([record.parameter(site)["elements"][0] for site in gradient.sites])
    layers = record.grid("gradient", "rms", "nonlinearity").values
    layers = layers[:, np.isfinite(layers).all(axis=0) & (layers > 0.0).all(axis=0)]
    steps = gradient.steps
    return Run(
        steps=steps,
        losses=record.steps()["loss"][steps],
        norms=np.sqrt((gradient.values**2 * sizes[:, None]).sum(axis=0)),
        by_hand=np.array(by_hand),
        stepped_with=np.array(stepped_with),
        totals=tuple(budget.total_db for budget in measure_link_budgets(record)),
        levels=20.0 * np.log10(layers / layers[-1]),
        findings={finding.code: finding.severity != "note" for finding in diagnose(record).findings},
        accuracy=share,
    )


def _tower(measured: NDArray[np.float64], expected: NDArray[np.float64]) -> Statement:
    apart = float(np.abs(measured - expected).max())
    after = {cubes: float(torch.tensor(START) ** 3**cubes) for cubes in (CUBES, CUBES + 1)}
    small = float(3.0**CUBES * 0.9 ** (3.0**CUBES - 1.0))
    return Statement(
        claim="In a tower of cubes the slopes multiply, and the gradient grows faster and faster.",
        sentence=f"From x = {START:g} on, {CUBES} cubes add {', '.join(f'{gain:.0f}' for gain in measured)} dB: a "
        f"gradient of {10 ** (measured.sum() / 20):.1g}. Each is 20 log₁₀ 3x², within {apart:.4f} dB. A seventh cube "
        f"gives {after[CUBES + 1]:g} in float32; and from x = 0.9 on, the same six leave {small:.0e}.",
        holds=apart < 0.01 and math.isfinite(after[CUBES]) and math.isinf(after[CUBES + 1]) and small < 1e-30,
        values={
            "total_db": float(measured.sum()),
            "largest_difference_db": apart,
            "seventh": after[CUBES + 1],
            "from_below_one": small,
        },
    )


def _expected_db() -> float:
    """Decibels from the output to the first layer: weights by their size, and half of it past each ReLU."""
    weights = [EXCESS * he_std(WIDTH) * math.sqrt(fan_out) for fan_out in (*[WIDTH] * (DEPTH - 1), CLASSES)]
    return sum(20.0 * math.log10(weight) for weight in weights) + DEPTH * 10.0 * math.log10(0.5)


def _depth(sick: Run) -> Statement:
    expected = _expected_db()
    return Statement(
        claim="Too large weights make the gradient grow from layer to layer.",
        sentence=f"At the first step it grows by {sick.totals[0]:.1f} dB between the output and the first layer; from "
        f"the variance of the weights one expects {expected:.1f} dB, {20 * math.log10(EXCESS):.1f} dB for each layer "
        f"but the narrow last one. At the last step with finite gradients it is {sick.totals[-1]:.0f} dB.",
        holds=abs(sick.totals[0] - expected) < CLOSE_DB and sick.totals[-1] > sick.totals[0] + 37.0,
        values={"first_db": sick.totals[0], "expected_db": expected, "last_db": sick.totals[-1]},
    )


def _overflow(sick: Run) -> Statement:
    end = sick.overflow
    apart = float(np.abs(sick.norms[:end] / sick.by_hand[sick.steps[:end]] - 1.0).max())
    overflowed = end < len(sick.losses)
    return Statement(
        claim="Steps that are too long make the next gradient larger, until the numbers overflow.",
        sentence=f"The norm of the gradient is {', '.join(f'{norm:.0e}' for norm in sick.norms[:end])} at the first "
        f"steps (computed beside the training it is the same, within {apart:.0e}) and the loss "
        f"{', '.join(f'{loss:.0e}' for loss in sick.losses[:end])}; "
        + (f"from step {sick.steps[end]} on the loss is no number." if overflowed else "it did not overflow."),
        holds=overflowed and apart < 1e-4 and bool(np.all(np.diff(sick.norms[:end]) > 0.0)),
        values={
            "first_norm": float(sick.norms[0]),
            "last_norm": float(sick.norms[end - 1]),
            "overflow_step": float(sick.steps[end]) if overflowed else math.inf,
            "largest_difference": apart,
        },
    )


def _found(sick: Run) -> Statement:
    graver = [f"`{code}`" for code, is_grave in sick.findings.items() if is_grave]
    notes = [f"`{code}`" for code, is_grave in sick.findings.items() if not is_grave]
    is_found = sick.findings.get("exploding-gradient", False)
    follows = f", and as notes, for they follow from it, {', '.join(notes)}" if notes else ""
    return Statement(
        claim="desat finds it in the record of the training.",
        sentence=f"`desat diagnose` says {', '.join(graver) or 'nothing'}{follows}. An overflow that an explosion "
        "ends in is told with it; `non-finite` stands alone where nothing grew before, and `loss-diverging` where "
        "the numbers hold.",
        holds=is_found,
        values={"found": float(is_found), "notes": float(len(notes))},
    )


def _cured(clipped: Run, redrawn: Run) -> Statement:
    largest = float(clipped.stepped_with.max())
    return Statement(
        claim="Clipping keeps the steps short; weights of the right size need no clipping.",
        sentence=f"With `{CLIPPED}` gradients with norms of up to {clipped.norms.max():.0f} are scaled down to "
        f"{largest:.3f} at most, and after {len(clipped.by_hand)} steps the network knows {clipped.accuracy:.0%} of "
        f"the digits that it has not seen. With `{REDRAWN}` the norm is {redrawn.norms.max():.0f} at most and the "
        f"network knows {redrawn.accuracy:.0%}: clipping treats the symptom, drawing the weights anew the cause.",
        holds=bool(np.isfinite(clipped.losses).all() and np.isfinite(redrawn.losses).all())
        and largest < LIMIT * 1.001
        and min(clipped.accuracy, redrawn.accuracy) > 0.4
        and redrawn.accuracy > clipped.accuracy,
        values={
            "largest_norm_after_clipping": largest,
            "largest_clipped_norm": float(clipped.norms.max()),
            "largest_redrawn_norm": float(redrawn.norms.max()),
            "clipped_accuracy": clipped.accuracy,
            "redrawn_accuracy": redrawn.accuracy,
        },
    )


def _cube_picture(measured: NDArray[np.float64], expected: NDArray[np.float64]) -> Figure:
    places = np.arange(1, CUBES + 1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.bar(places, expected, color=BLUE, width=0.6, label="20 log₁₀ 3x²")
        axes.plot(places, measured, "o", color=VERMILION, markersize=8, label="measured by desat.watch")
        for place, gain in zip(places, measured, strict=True):
            axes.annotate(f"{gain:.0f}", (float(place), float(gain)), (0, 7), textcoords="offset points", ha="center")
        axes.set(xlabel="cube", ylabel="gradient, dB", title=f"x³ of x³ of …, from {START:g} on")
        axes.set_ylim(0.0, 1.12 * float(measured.max()))
        axes.legend(loc="upper left")

    return picture(
        "cubes",
        draw,
        alt="Decibels that each of six cubes in a row adds to the gradient: "
        + ", ".join(f"{gain:.0f}" for gain in measured)
        + ". The measured points lie on the bars of the formula.",
        caption="120 dB are a factor of a million.",
    )


def _norm_picture(sick: Run, clipped: Run, redrawn: Run) -> Figure:
    end = sick.overflow
    shown = min(SICK_STEPS, len(redrawn.by_hand))

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(sick.steps[:end], sick.norms[:end], "o-", color=VERMILION, label="gradient")
        axes.plot(sick.steps[:end], sick.losses[:end], "s--", color=ORANGE, label="loss")
        for run, colour, name in ((clipped, BLUE, "gradient, clipping"), (redrawn, GREEN, "gradient, He")):
            axes.plot(np.arange(shown), run.by_hand[:shown], "o-", color=colour, label=name)
        if end < len(sick.steps):
            axes.axvspan(float(sick.steps[end]), float(shown), color=VERMILION, alpha=0.12, linewidth=0, label="nan")
        axes.set_yscale("log")
        axes.set(xlabel="step", title="Norm of the gradient, and the loss", xlim=(-0.3, float(shown)))
        axes.legend(loc="upper right")

    return picture(
        "norms",
        draw,
        alt=f"Norm of the gradient by step: {', '.join(f'{norm:.0e}' for norm in sick.norms[:end])}, then no number; "
        f"with clipping it falls from {clipped.norms[0]:.0f}, with He's initialization it stays near "
        f"{float(np.median(redrawn.norms)):.0f}.",
        caption="With clipping: the norm before it is clipped.",
    )


def _layer_picture(sick: Run) -> Figure:
    layers = np.arange(1, DEPTH + 1)
    colours = (GREEN, BLUE, VERMILION, ORANGE, INK)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        expected = (DEPTH - layers) * 20.0 * math.log10(EXCESS)
        axes.plot(layers, expected, color=GREY, linestyle="--", label=f"{expected[-2]:.1f} dB a layer")
        for step, colour in zip(range(sick.levels.shape[1]), colours, strict=False):
            axes.plot(layers, sick.levels[:, step], "o-", color=colour, label=f"step {step}")
        axes.set(xlabel="layer", ylabel="gradient, dB", title="Gradient by layer")
        axes.legend(loc="upper right")

    return picture(
        "layers",
        draw,
        alt="Gradient by layer against the last layer's. At the first layer it is "
        + ", ".join(f"{level:+.0f} dB at step {step}" for step, level in enumerate(sick.levels[0]))
        + ".",
        caption="Against the last layer's, while it is a number.",
    )


SLIDE = Slide(
    4,
    "exploding",
    "Exploding gradients",
    build,
    rules=("exploding-gradient", "non-finite", "loss-diverging"),
    remedies=(CLIPPED, REDRAWN),
)
