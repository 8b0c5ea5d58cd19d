"""Slide 3: the sigmoid's slope is a quarter at best, and what that does to a deep network's gradient."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from torch import nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, GREY, INK, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import SHARES, LinkBudget, Share, measure_link_budgets
from desat.record.reader import Record
from desat.reference.activations import sigmoid_derivative
from desat.show.figures import SHARE_COLOURS

STEEPEST = 0.25
STEEPEST_DB = float(20.0 * np.log10(STEEPEST))
"""Decibels that a layer of sigmoids takes from the gradient at least: its slope is a quarter at best."""

REMEDIES = ("activation=relu", "initialization=he")
SIZES = {True: (8, 200), False: (8, 600)}
"""Layers and steps, fast or not. With ten layers the first weights are seen not to move by a bit of float32."""

WIDTH = 64
BATCH = 64


@dataclass(frozen=True)
class Run:
    """What was measured of one training.

    budget: at the first step, so that the weights are those that were drawn. levels: decibels of the gradient at the
    output of each nonlinearity against the last one's, the first layer first. gains: mean slope of each nonlinearity.
    """

    budget: LinkBudget
    levels: tuple[float, ...]
    gains: tuple[float, ...]
    findings: tuple[str, ...]
    accuracy: float


def build(settings: Settings) -> Page:
    depth, steps = SIZES[settings.fast]
    sick = _train(settings, depth, steps, (), 0.0)
    cured = _train(settings, depth, steps, REMEDIES, 0.5)
    return Page(
        words=(
            "On its way back the gradient is multiplied by the slope of every nonlinearity that it passes, and a "
            "sigmoid's slope is a quarter at best. Twenty of them leave less than a millionth of a millionth.",
            f"Here a network of {depth} sigmoid layers trained on handwritten digits while desat watched. The link "
            "budget counts in decibels what each part takes of the gradient: 20 dB are a factor of ten.",
        ),
        figures=(_slope_picture(sick), _level_picture(sick, cured), _budget_picture(sick, cured)),
        statements=(_quarter(sick), _lost(sick, depth), _found(sick), _cured(sick, cured)),
        readings=(
            Reading("Hochreiter 1991, Untersuchungen zu dynamischen neuronalen Netzen, diploma thesis, TU München"),
            Reading(
                "Bengio, Simard and Frasconi 1994, Learning long-term dependencies with gradient descent is difficult",
                "https://doi.org/10.1109/72.279181",
            ),
        ),
    )


def _train(settings: Settings, depth: int, steps: int, remedies: tuple[str, ...], begun: float) -> Run:
    torch.manual_seed(settings.seed)
    data = digits(settings.seed)
    model = stack([64, *[WIDTH] * depth, 10], nn.Sigmoid)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    apply(model, optimizer, *remedies)
    what = "with " + " and ".join(remedies) if remedies else "sigmoids"
    with trained(
        model,
        optimizer,
        batches(data.inputs, data.labels, BATCH, settings.seed),
        steps,
        every=max(1, steps // 20),
        tell=lambda what, share: settings.progress(what, begun + share / 2),
        what=f"training {depth} layers, {what}",
    ) as record:
        return _measured(record, accuracy(model, data.test_inputs, data.test_labels))


def _measured(record: Record, share: float) -> Run:
    gradient, slope = (
        record.grid(quantity, statistic, "nonlinearity")
        for quantity, statistic in (("gradient", "rms"), ("input", "gain"))
    )
    levels = 20.0 * np.log10(gradient.values[:, 0] / gradient.values[-1, 0])
    return Run(
        budget=measure_link_budgets(record)[0],
        levels=tuple(map(float, levels)),
        gains=tuple(map(float, slope.values[:, 0])),
        findings=diagnose(record).codes("error", "warning"),
        accuracy=share,
    )


def _quarter(sick: Run) -> Statement:
    largest = max(sick.gains)
    best = float(sigmoid_derivative(0.0))
    return Statement(
        claim="A sigmoid passes a quarter of the gradient at best.",
        sentence=f"σ′(0) = {best:g}, which is {STEEPEST_DB:.1f} dB; the network's sigmoids had mean slopes from "
        f"{min(sick.gains):.3f} to {largest:.3f}.",
        holds=best == STEEPEST and largest <= STEEPEST,
        values={"best": best, "largest_mean_slope": largest, "smallest_mean_slope": min(sick.gains)},
    )


def _lost(sick: Run, depth: int) -> Statement:
    total, taken = sick.budget.total_db, sick.budget.by_share["nonlinearity"]
    passed = sum(link.share == "nonlinearity" for link in sick.budget.links)
    bound = passed * STEEPEST_DB
    return Statement(
        claim="Each sigmoid layer takes its part, and the parts add up.",
        sentence=f"Between its output and its first layer the network of {depth} layers loses {-total:.0f} dB of the "
        f"gradient, a factor of {10 ** (-total / 20):.1e}. Its {passed} nonlinearities take {-taken:.0f} dB of them, "
        f"no less than {passed} times {-STEEPEST_DB:.1f} dB.",
        holds=taken <= bound + 0.1 and total < -60.0,
        values={"total_db": total, "nonlinearity_db": taken, "bound_db": bound, "nonlinearities": float(passed)},
    )


def _found(sick: Run) -> Statement:
    is_found = "vanishing-gradient" in sick.findings
    return Statement(
        claim="desat finds it in the record of the training.",
        sentence=f"`desat diagnose` says {listed(sick.findings)}.",
        holds=is_found,
        values={"found": float(is_found)},
    )


def _cured(sick: Run, cured: Run) -> Statement:
    told = " and ".join(f"`{remedy}`" for remedy in REMEDIES)
    return Statement(
        claim="With rectifiers and weights drawn for them the gradient arrives.",
        sentence=f"The same training with {told}: the gradient changes by {cured.budget.total_db:+.1f} dB on its way, "
        f"not by {sick.budget.total_db:+.0f}, and the network knows {cured.accuracy:.0%} of the digits that it has not "
        f"seen, not {sick.accuracy:.0%}.",
        holds=abs(cured.budget.total_db) < 20.0 and cured.accuracy > sick.accuracy + 0.3,
        values={
            "sick_total_db": sick.budget.total_db,
            "cured_total_db": cured.budget.total_db,
            "sick_accuracy": sick.accuracy,
            "cured_accuracy": cured.accuracy,
        },
    )


def _slope_picture(sick: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        z = np.linspace(-8.0, 8.0, 401)
        axes.plot(z, sigmoid_derivative(z), color=BLUE, label="σ′(z)")
        axes.axhline(STEEPEST, color=INK, linewidth=1.0, linestyle="--", label="a quarter")
        axes.axhspan(min(sick.gains), max(sick.gains), color=VERMILION, alpha=0.3, linewidth=0, label="measured")
        axes.set(xlabel="z", xlim=(-8.0, 8.0), ylim=(0.0, 0.3), title="The factor that a sigmoid leaves")
        axes.legend(loc="center right")

    return picture(
        "slope",
        draw,
        alt=f"The sigmoid's slope, a bell with its top of a quarter at zero; the mean slopes of the network's sigmoids "
        f"lie between {min(sick.gains):.3f} and {max(sick.gains):.3f}.",
        caption="Measured: the mean slopes of the network's sigmoids at the first step.",
    )


def _level_picture(sick: Run, cured: Run) -> Figure:
    layers = np.arange(1, len(sick.levels) + 1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(layers, (layers[-1] - layers) * STEEPEST_DB, color=GREY, linestyle="--", label="a quarter a layer")
        axes.plot(layers, cured.levels, "o-", color=GREEN, label="ReLU, He")
        axes.plot(layers, sick.levels, "o-", color=VERMILION, label="sigmoid")
        axes.set(xlabel="layer", ylabel="gradient, dB", title="Gradient by layer, first step")
        axes.legend(loc="lower right")

    return picture(
        "layers",
        draw,
        alt=f"Gradient by layer against the last layer's. With sigmoids it falls to {sick.levels[0]:.0f} dB at the "
        f"first layer, below the line of a quarter a layer; with ReLU and He's initialization it is "
        f"{cured.levels[0]:+.1f} dB.",
        caption="Against the last layer's; −20 dB is a tenth.",
    )


def _budget_picture(sick: Run, cured: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        places = np.arange(2)
        shares: list[Share] = [share for share in SHARES if any(run.budget.by_share[share] for run in (sick, cured))]
        height = 0.8 / len(shares)
        for index, share in enumerate(shares):
            taken = [run.budget.by_share[share] for run in (sick, cured)]
            axes.barh(
                places + (index - (len(shares) - 1) / 2) * height,
                taken,
                height,
                color=SHARE_COLOURS[share],
                label=share,
            )
        axes.axvline(0.0, color=INK, linewidth=0.8)
        axes.set_yticks(places, ["sigmoid", "ReLU, He"])
        axes.invert_yaxis()
        axes.set(xlabel="gradient, dB", title="Link budget, from output to first layer")
        axes.legend(loc="lower left")

    return picture(
        "budget",
        draw,
        alt="The link budget by what takes the gradient. "
        + " ".join(
            f"{name}: nonlinearities {run.budget.by_share['nonlinearity']:+.0f} dB, weights "
            f"{run.budget.by_share['weight']:+.0f} dB."
            for name, run in (("Sigmoid", sick), ("ReLU with He's initialization", cured))
        ),
        caption="What the nonlinearities and the weights each take of the gradient, or add to it.",
    )


SLIDE = Slide(
    3,
    "vanishing",
    "Vanishing gradients",
    build,
    rules=("vanishing-gradient", "loss-plateau"),
    remedies=(*REMEDIES, "normalization=batch", "residual=skip"),
)
