"""He et al. 2016, figures 1 and 6: plain networks of 20 and 56 layers, and their twins with identity shortcuts."""

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.cure.judgement import late_loss
from desat.deck.drawing import GREEN, VERMILION, picture
from desat.deck.papers.experiment import Outcome, Paper, estimate, named, seeds, smoothed
from desat.deck.slide import Figure, Reading, Settings, Statement
from desat.deck.training import batches, digits, trained
from desat.reference.initialization import he_std

DEPTHS = (20, 56)
"""Layers with weights: 6 n + 2 of the paper's, n = 3 and 9, here of one width and fully connected."""

WIDTH = 32
BATCH = 128
LEARNING_RATE = 0.03
STEPS = {True: 24, False: 120}
SMOOTHING = {True: 4, False: 10}

Kind = tuple[bool, int]
"""Whether it has shortcuts, and its depth."""

Losses = NDArray[np.float64]


class Block(nn.Module):
    """Two layers, each batch-normalized: relu(f(x)), or with a shortcut relu(x + f(x))."""

    def __init__(self, width: int, *, has_shortcut: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.first_norm = nn.BatchNorm1d(width)
        self.inner = nn.ReLU()
        self.second = nn.Linear(width, width, bias=False)
        self.second_norm = nn.BatchNorm1d(width)
        self.outer = nn.ReLU()
        self.has_shortcut = has_shortcut

    def forward(self, x: Tensor) -> Tensor:
        change = self.second_norm(self.second(self.inner(self.first_norm(self.first(x)))))
        return self.outer(x + change if self.has_shortcut else change)


def network(depth: int, *, has_shortcut: bool) -> nn.Sequential:
    """`depth` layers with weights, an even number, drawn as He et al. 2015 draw them: alike with and without."""
    stem = nn.Sequential(nn.Linear(64, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU())
    blocks = [Block(WIDTH, has_shortcut=has_shortcut) for _ in range((depth - 2) // 2)]
    model = nn.Sequential(stem, *blocks, nn.Linear(WIDTH, 10))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=he_std(module.in_features))
    return model


def measure(settings: Settings) -> Outcome:
    runs: dict[Kind, list[Losses]] = {(has, depth): [] for has in (False, True) for depth in DEPTHS}
    for seed in seeds(settings):
        for (has_shortcut, depth), losses in runs.items():
            losses.append(_train(seed, depth, has_shortcut, STEPS[settings.fast]))
    late = {kind: np.array([late_loss(losses) for losses in group]) for kind, group in runs.items()}
    return Outcome((_degraded(late), _restored(late), _deeper(late, runs)), _figure(runs, SMOOTHING[settings.fast]))


def _train(seed: int, depth: int, has_shortcut: bool, steps: int) -> Losses:
    torch.manual_seed(seed)
    data = digits(seed)
    model = network(depth, has_shortcut=has_shortcut)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    source = batches(data.inputs, data.labels, BATCH, seed)
    with trained(model, optimizer, source, steps, every=steps) as record:
        return record.steps()["loss"]


def _degraded(late: dict[Kind, Losses]) -> Statement:
    shallow, deep = DEPTHS
    worse = estimate(late[False, deep] - late[False, shallow])
    losses = [estimate(late[False, depth]) for depth in DEPTHS]
    return Statement(
        claim="He et al. 2016: a plain network that is deeper trains worse.",
        sentence=f"In the last quarter of the steps the training loss is {losses[1]:.2f} with {deep} layers and "
        f"{losses[0]:.2f} with {shallow}: it is the training that fails, and no overfitting.",
        holds=worse.is_positive,
        values=named(plain_shallow=losses[0], plain_deep=losses[1], worse=worse),
    )


def _restored(late: dict[Kind, Losses]) -> Statement:
    deep = DEPTHS[1]
    gained = estimate(late[False, deep] - late[True, deep])
    loss = estimate(late[True, deep])
    return Statement(
        claim="He et al. 2016: identity shortcuts, which add no weights, make the deep network learn.",
        sentence=f"The same {deep} layers with shortcuts reach {loss:.2f}, lower by {gained:.2f}.",
        holds=gained.is_positive,
        values=named(residual_deep=loss, gained=gained),
    )


def _deeper(late: dict[Kind, Losses], runs: dict[Kind, list[Losses]]) -> Statement:
    shallow, deep = DEPTHS
    better = estimate(late[True, shallow] - late[True, deep])
    losses = [estimate(late[True, depth]) for depth in DEPTHS]
    first = [estimate(float(losses[0]) for losses in runs[True, depth]) for depth in DEPTHS]
    why = (
        "."
        if better.is_positive
        else f": here it is not, within these steps. The deeper one begins at a larger loss, {first[1]:.1f} and not "
        f"{first[0]:.1f}, and its lead in the paper is small and comes late."
    )
    return Statement(
        claim="He et al. 2016: with shortcuts the deeper network is the better one.",
        sentence=f"The training loss is then {losses[1]:.3f} at {deep} layers and {losses[0]:.3f} at {shallow}{why}",
        holds=better.is_positive,
        values=named(residual_shallow=losses[0], residual_deep=losses[1], better=better)
        | named(first_shallow=first[0], first_deep=first[1]),
    )


def _figure(runs: dict[Kind, list[Losses]], window: int) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for (has_shortcut, depth), group in runs.items():
            axes.plot(
                np.arange(1, len(group[0]) + 1),
                smoothed(group[0], window),
                color=GREEN if has_shortcut else VERMILION,
                linestyle="-" if depth == max(DEPTHS) else ":",
                label=f"{depth} layers, {'shortcuts' if has_shortcut else 'plain'}",
            )
        axes.set(xlabel="step", ylabel="training loss", title="Plain and residual networks", ylim=(0.0, 5.0))
        axes.legend(loc="upper right", ncols=2)

    told = ", ".join(
        f"{late_loss(group[0]):.2f} with {depth} layers {'and shortcuts' if has_shortcut else 'and none'}"
        for (has_shortcut, depth), group in runs.items()
    )
    return picture(
        "residual",
        draw,
        alt=f"Training loss over the steps of four networks; in the last quarter {told}.",
        caption=f"He et al. 2016, figures 1 and 6. Means of {window} steps.",
    )


PAPER = Paper(
    "He et al. 2016",
    Reading(
        "He, Zhang, Ren and Sun 2016, Deep residual learning for image recognition", "https://arxiv.org/abs/1512.03385"
    ),
    measure,
)
