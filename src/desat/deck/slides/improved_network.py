"""Slide 16: the improved network, whole and without each of its measures, and what desat says of each."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from desat.deck.drawing import BLUE, GREEN, GREY, ORANGE, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import Data, accuracy, batches, digits, trained
from desat.diagnose.engine import diagnose
from desat.record.reader import Record

SLOPE = 0.01
"""Of the leaky rectifier below zero."""

WIDTH = 64
BATCH = 64
RATE = 0.05
SIZES = {True: (8, 80), False: (12, 400)}
"""Blocks and steps, fast or not."""

LEARNED = 0.9
GUESSED = 0.2
"""Accuracies from which on a network counts as one that has learned, and up to which as one that has not; guessing
knows a tenth of the digits."""

CLOSE = 0.15
"""Relative difference of the measured growth to the expected one that counts as none: one draw of 64 units."""


@dataclass(frozen=True)
class Variant:
    """A network by the measures that it takes. name: what it is called in sentences and pictures."""

    name: str
    colour: str
    normalizes: bool = True
    draws_as_he: bool = True
    skips: bool = True


VARIANTS = (
    Variant("improved network", GREEN),
    Variant("no batch normalization", VERMILION, normalizes=False),
    Variant("no He initialization", BLUE, draws_as_he=False),
    Variant("no residual connection", ORANGE, skips=False),
    Variant("none of the three", GREY, normalizes=False, draws_as_he=False, skips=False),
)
WHOLE, BARE_NORM, BARE_HE, BARE_SKIP, BARE = VARIANTS


class Block(nn.Module):
    """x + LeakyReLU(BatchNorm(W x)), with x and the norm only if they are wanted; (batch, width) to the same."""

    def __init__(self, width: int, *, normalizes: bool, skips: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=not normalizes)
        self.norm = nn.BatchNorm1d(width) if normalizes else nn.Identity()
        self.activation = nn.LeakyReLU(SLOPE)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        branch = self.activation(self.norm(self.linear(x)))
        return x + branch if self.skips else branch


def network(variant: Variant, blocks: int, inputs: int = 64, classes: int = 10) -> nn.Sequential:
    """A linear layer, the blocks, and a linear layer that gives the classes' logits; He's weights in the blocks."""
    model = nn.Sequential(
        nn.Linear(inputs, WIDTH),
        *(Block(WIDTH, normalizes=variant.normalizes, skips=variant.skips) for _ in range(blocks)),
        nn.Linear(WIDTH, classes),
    )
    if variant.draws_as_he:
        for block in list(model)[1:-1]:
            assert isinstance(block, Block)
            nn.init.kaiming_normal_(block.linear.weight, a=SLOPE)
            if block.linear.bias is not None:
                nn.init.zeros_(block.linear.bias)
    return model


@dataclass(frozen=True)
class Run:
    """What was measured of one training.

    levels: rms of what enters the nonlinearity of each block at the first step. steps, losses: at each step.
    """

    accuracy: float
    verdict: str
    findings: tuple[str, ...]
    levels: tuple[float, ...]
    steps: tuple[int, ...]
    losses: tuple[float, ...]


Runs = dict[Variant, Run]


def build(settings: Settings) -> Page:
    blocks, steps = SIZES[settings.fast]
    data = digits(settings.seed)
    runs = {
        variant: _train(settings, data, variant, blocks, steps, place / len(VARIANTS))
        for place, variant in enumerate(VARIANTS)
    }
    return Page(
        words=(
            f"{blocks} blocks, each of a linear layer, batch normalization and a leaky rectifier, with the block's "
            "input added to its output and weights drawn as He et al. did: three measures against one evil.",
            "Each is taken away in turn, and the same training is watched again. They are not independent: what one "
            "measure does, another may take over, and one alone may even do harm.",
        ),
        figures=(_accuracy_picture(runs), _level_picture(runs), _loss_picture(runs)),
        statements=(_healthy(runs[WHOLE]), _without_norm(runs), _spare(runs), _without_all(runs)),
        readings=(
            Reading("Ioffe and Szegedy 2015, Batch normalization", "https://arxiv.org/abs/1502.03167"),
            Reading(
                "He, Zhang, Ren and Sun 2015, Delving deep into rectifiers, and Deep residual learning",
                "https://arxiv.org/abs/1502.01852",
            ),
            Reading(
                "De and Smith 2020, Batch normalization biases residual blocks towards the identity function",
                "https://arxiv.org/abs/2002.10444",
            ),
        ),
    )


def _train(settings: Settings, data: Data, variant: Variant, blocks: int, steps: int, begun: float) -> Run:
    torch.manual_seed(settings.seed)
    model = network(variant, blocks)
    with trained(
        model,
        torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9),
        batches(data.inputs, data.labels, BATCH, settings.seed),
        steps,
        every=max(1, steps // 10),
        tell=lambda what, share: settings.progress(what, begun + share / len(VARIANTS)),
        what=variant.name,
    ) as record:
        return _measured(record, accuracy(model, data.test_inputs, data.test_labels))


def _measured(record: Record, share: float) -> Run:
    diagnosis = diagnose(record)
    series = record.steps()
    return Run(
        accuracy=share,
        verdict=diagnosis.verdict,
        findings=diagnosis.codes("error", "warning"),
        levels=tuple(map(float, record.grid("input", "rms", "nonlinearity").values[:, 0])),
        steps=tuple(map(int, series["step"])),
        losses=tuple(map(float, series["loss"])),
    )


def _said(run: Run) -> str:
    """The verdict in words: healthy, or the findings."""
    return "healthy" if run.verdict == "healthy" else listed(run.findings)


def _healthy(run: Run) -> Statement:
    return Statement(
        claim="The improved network is healthy, and learns.",
        sentence=f"desat calls it {_said(run)}; it knows {run.accuracy:.1%} of the digits that it has not seen.",
        holds=run.verdict == "healthy" and run.accuracy > LEARNED,
        values={"accuracy": run.accuracy, "healthy": float(run.verdict == "healthy")},
    )


def _without_norm(runs: Runs) -> Statement:
    run = runs[BARE_NORM]
    growth, expected = _growth(run), expected_growth(len(run.levels))
    return Statement(
        claim="Without batch normalization the other two blow the signal up.",
        sentence=f"A block adds a branch as large as its input, and both come to lean to the positive side, so that "
        f"the signal grows by √2 at the first block and by 1.7 later, {expected:.2f} in the mean. Measured: "
        f"{growth:.2f}, which makes {run.levels[-1] / run.levels[0]:.0f} times from the first block to the last. desat "
        f"finds {_said(run)}; accuracy {run.accuracy:.1%}.",
        holds=abs(growth / expected - 1.0) < CLOSE and "exploding-signal" in run.findings and run.accuracy < GUESSED,
        values={
            "growth": growth,
            "expected_growth": expected,
            "found": float("exploding-signal" in run.findings),
            "accuracy": run.accuracy,
            "whole_growth": _growth(runs[WHOLE]),
        },
    )


def _growth(run: Run) -> float:
    """The factor by which the signal grows from one block to the next, in the geometric mean."""
    return (run.levels[-1] / run.levels[0]) ** (1.0 / (len(run.levels) - 1))


def expected_growth(blocks: int) -> float:
    """The mean factor from block to block without batch normalization, in the limit of many units.

    He's weights give the pre-activations twice the mean square q of the input, and the branch q again; its mean is
    sqrt(q / pi), for a rectifier. With m the mean of the input, q' = 2 q + 2 m sqrt(q / pi) and m' = m + sqrt(q / pi).
    """
    square, mean = 1.0, 0.0
    for _ in range(blocks - 1):
        branch = math.sqrt(square / math.pi)
        square, mean = 2.0 * square + 2.0 * mean * branch, mean + branch
    return square ** (0.5 / (blocks - 1))


def _spare(runs: Runs) -> Statement:
    spared = (runs[BARE_HE], runs[BARE_SKIP])
    return Statement(
        claim="Beside batch normalization, either of the other two can be spared at this depth.",
        sentence=f"Without He's initialization it is {_said(spared[0])} at {spared[0].accuracy:.1%}: what batch "
        f"normalization gives does not depend on the scale of the weights. Without the residual connection it is "
        f"{_said(spared[1])} at {spared[1].accuracy:.1%}. With both it has {runs[WHOLE].accuracy:.1%}; differences of "
        "one or two percentage points are within what the seed makes.",
        holds=all(run.verdict == "healthy" and run.accuracy > LEARNED for run in spared),
        values={
            "without_he": spared[0].accuracy,
            "without_skip": spared[1].accuracy,
            "whole": runs[WHOLE].accuracy,
            "healthy": float(all(run.verdict == "healthy" for run in spared)),
        },
    )


def _without_all(runs: Runs) -> Statement:
    run = runs[BARE]
    return Statement(
        claim="Without all three it learns nothing, and desat says so.",
        sentence=f"desat finds {_said(run)}: the signal shrinks to {run.levels[-1] / run.levels[0]:.2g} of itself "
        f"from the first block to the last. Accuracy {run.accuracy:.1%}, where guessing has 10 %.",
        holds=run.verdict == "error" and run.accuracy < GUESSED,
        values={
            "accuracy": run.accuracy,
            "error": float(run.verdict == "error"),
            "shrinks_to": run.levels[-1] / run.levels[0],
        },
    )


def _accuracy_picture(runs: Runs) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for place, (variant, run) in enumerate(runs.items()):
            axes.barh(place, 100 * run.accuracy, 0.6, color=variant.colour)
            told = "healthy" if run.verdict == "healthy" else ", ".join(run.findings)
            axes.text(100 * run.accuracy + 2.0, place, f"{run.accuracy:.1%}, {told}", va="center")
        axes.set_yticks(range(len(runs)), [variant.name for variant in runs])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="accuracy on digits not seen, %", xlim=(0.0, 145.0), title="Accuracy, and desat's verdict")
        axes.set_xticks(range(0, 101, 20))

    return picture(
        "accuracy",
        draw,
        alt="Accuracy and desat's verdict: "
        + "; ".join(f"{variant.name} {run.accuracy:.1%}, {run.verdict}" for variant, run in runs.items())
        + ".",
    )


def _level_picture(runs: Runs) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for size, (variant, run) in zip((11, 7, 7, 3.5, 7), runs.items(), strict=True):
            blocks = np.arange(1, len(run.levels) + 1)
            axes.semilogy(blocks, run.levels, "o-", color=variant.colour, markersize=size, label=variant.name)
        axes.margins(y=0.45)
        axes.set(xlabel="block", ylabel="rms before the nonlinearity", title="The signal at the first step")
        axes.legend(loc="upper left", ncols=2, fontsize="small")

    return picture(
        "signal",
        draw,
        alt="Signal by block at the first step. From the first block to the last it is multiplied by "
        + ", ".join(f"{run.levels[-1] / run.levels[0]:.2g} with {variant.name}" for variant, run in runs.items())
        + ".",
        caption="The three with batch normalization lie on each other, at 1.",
    )


def _loss_picture(runs: Runs) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for variant, run in runs.items():
            axes.semilogy(run.steps, run.losses, color=variant.colour, linewidth=1.3, label=variant.name)
        axes.set(xlabel="step", ylabel="training loss", title="The five trainings", ylim=(1e-4, 1e5))
        axes.legend(loc="upper right", fontsize="small")

    return picture(
        "loss",
        draw,
        alt="Training loss by step. " + " ".join(f"{variant.name}: {_ending(run)}." for variant, run in runs.items()),
        caption="The curve that leaves the picture ends in numbers that are not finite.",
    )


def _ending(run: Run) -> str:
    last = float(np.mean(run.losses[-10:]))
    return f"ends at {last:.3f}" if math.isfinite(last) else f"from {run.losses[0]:.0f} to no finite number"


SLIDE = Slide(
    16,
    "improved-network",
    "The improved network",
    build,
    rules=("exploding-signal", "vanishing-gradient", "non-finite"),
    remedies=("normalization=batch", "initialization=he", "residual=skip", "activation=leaky_relu"),
)
