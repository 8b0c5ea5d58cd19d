"""Slide 10: skip connections: what the identity does to the gradient of ten blocks, and of up to 64 layers."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, GREY, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.diagnose.link_budget import measure_link_budgets
from desat.reference.residual import chain_gradient, plain_block, relu_block_jacobian, residual_block

Array = NDArray[np.float64]

BLOCKS = 10
WIDTH = 32
DEPTHS = {True: (4, 12, 24), False: (4, 8, 16, 32, 64)}
"""Layers between the first and the last, fast or not."""

STEPS = {True: 40, False: 100}
RATE = 0.02

DROWNING = 200.0
"""Factor on the branches of the network whose stream drowns."""

KINDS = ("plain", "residual", "remedied")
NAMES = {"plain": "plain", "residual": "residual", "remedied": "plain with residual=skip"}
COLOURS = {"plain": VERMILION, "residual": BLUE, "remedied": GREEN}


class Block(nn.Module):
    """x + W2 relu(W1 x); the branch's last weights are drawn `scale` times as large as torch's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.second.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


@dataclass(frozen=True, eq=False)
class Chain:
    """Norms of the gradient at the input of each of ten blocks and behind the last; error: relative to autograd's."""

    plain: Array
    residual: Array
    error: float


@dataclass(frozen=True)
class Run:
    """decibels: the link budget's total at the first step.

    branch: median over the residual sums of branch over stream, in dB; nan where there are none. findings: of those
    that a statement speaks of.
    """

    decibels: float
    accuracy: float
    branch: float
    findings: tuple[str, ...]


def build(settings: Settings) -> Page:
    chain = _chain(settings.seed)
    depths = DEPTHS[settings.fast]
    judged = {("plain", _middle(depths)), ("residual", depths[0])}
    # The deeper, the longer: progress by the layers that are done.
    whole, done = 3.0 * sum(depths) + depths[0], 0.0
    runs: dict[tuple[str, int], Run] = {}
    for depth in depths:
        for kind in KINDS:
            diagnosed = (kind, depth) in judged
            runs[kind, depth] = _train(settings, kind, depth, 1.0, done / whole, diagnosed=diagnosed)
            done += depth
    drowned = _train(settings, "residual", depths[0], DROWNING, done / whole, diagnosed=True)
    return Page(
        words=(
            "A block that adds its input to what it computes, `y = x + F(x)`, passes the gradient on by `I + J`, "
            "a plain one by `J`. Multiplied out, the identities leave one way past all blocks on which nothing is "
            "lost, however deep the network.",
            f"Measured on ten blocks, and on networks of {depths[0]} to {depths[-1]} layers of ReLU with torch's own "
            "initial weights, trained for a short time on handwritten digits: plain, residual, and the plain one with "
            "the remedy `residual=skip`, which puts the skips in from outside.",
        ),
        figures=(_chain_picture(chain), _gradient_picture(runs, depths), _accuracy_picture(runs, depths)),
        statements=(
            _through_ten(chain),
            _through_depth(runs, depths),
            _trains(runs, depths),
            _drowns(runs["residual", depths[0]], drowned),
        ),
        readings=(
            Reading(
                "He, Zhang, Ren and Sun 2016, Deep residual learning for image recognition",
                "https://arxiv.org/abs/1512.03385",
            ),
            Reading(
                "He, Zhang, Ren and Sun 2016, Identity mappings in deep residual networks",
                "https://arxiv.org/abs/1603.05027",
            ),
            Reading(
                "Bachlechner et al. 2021, ReZero is all you need: fast convergence at large depth",
                "https://arxiv.org/abs/2003.04887",
            ),
        ),
    )


def _chain(seed: int) -> Chain:
    """The gradient of one direction at the output of ten blocks: by the Jacobians, and by autograd in float64."""
    generator = np.random.default_rng(seed)
    edge = 1.0 / np.sqrt(WIDTH)  # the bound of nn.Linear's uniform weights
    weights = [[generator.uniform(-edge, edge, (WIDTH, WIDTH)) for _ in range(2)] for _ in range(BLOCKS)]
    direction = generator.standard_normal(WIDTH)
    direction /= np.linalg.norm(direction)
    start = generator.standard_normal(WIDTH)
    norms, errors = [], []
    for residual in (False, True):
        signal, jacobians = start, []
        for pair in weights:
            jacobians.append(relu_block_jacobian(signal, pair))
            signal = (residual_block if residual else plain_block)(signal, pair)
        rows = chain_gradient(jacobians, direction, residual)
        expected = _by_autograd(start, weights, direction, residual)
        errors.append(float(np.linalg.norm(rows[0] - expected) / np.linalg.norm(expected)))
        norms.append(np.linalg.norm(rows, axis=1))
    return Chain(norms[0], norms[1], max(errors))


def _by_autograd(start: Array, weights: list[list[Array]], direction: Array, residual: bool) -> Array:
    x = torch.tensor(start, requires_grad=True)
    signal = x
    for first, second in weights:
        change = torch.from_numpy(second) @ torch.relu(torch.from_numpy(first) @ signal)
        signal = signal + change if residual else change
    (gradient,) = torch.autograd.grad(signal @ torch.from_numpy(direction), x)
    return gradient.numpy()


def _middle(depths: tuple[int, ...]) -> int:
    return depths[len(depths) // 2]


def _train(settings: Settings, kind: str, depth: int, scale: float, begun: float, *, diagnosed: bool) -> Run:
    torch.manual_seed(settings.seed)
    data, steps = digits(settings.seed), STEPS[settings.fast]
    if kind == "residual":
        blocks = [Block(scale) for _ in range(depth // 2)]
        model = nn.Sequential(nn.Linear(64, WIDTH), *blocks, nn.Linear(WIDTH, 10))
    else:
        model = stack([64, *[WIDTH] * (depth + 1), 10], nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    if kind == "remedied":
        apply(model, optimizer, "residual=skip", batch=data.inputs[:64])
    if scale != 1.0:
        apply(model, optimizer, "clipping=1.0")  # its first step would end it
    settings.progress(f"{depth} layers, {NAMES[kind]}", begun)
    source = batches(data.inputs, data.labels, 64, settings.seed)
    with trained(model, optimizer, source, steps, every=steps // 3) as record:
        series = [record.readings(site).get("branch_over_stream_db") for site in record.sites("residual")]
        levels = [float(np.median(one["value"])) for one in series if one is not None]
        return Run(
            decibels=measure_link_budgets(record)[0].total_db,
            accuracy=accuracy(model, data.test_inputs, data.test_labels),
            branch=float(np.median(levels)) if levels else float("nan"),
            findings=diagnose(record).codes("error", "warning") if diagnosed else (),
        )


def _through_ten(chain: Chain) -> Statement:
    plain, residual = float(chain.plain[0]), float(chain.residual[0])
    return Statement(
        claim="Past ten blocks the gradient arrives by the identities.",
        sentence=f"Of a gradient of 1 behind {BLOCKS} plain blocks {plain:.1e} arrives before them, of one behind "
        f"residual blocks with the same weights {residual:.2f}. Products of Jacobians and autograd agree within "
        f"{chain.error:.0e}.",
        holds=plain < 1e-4 and 0.3 < residual < 5.0 and chain.error < 1e-10,
        values={"plain": plain, "residual": residual, "error": chain.error},
    )


def _through_depth(runs: dict[tuple[str, int], Run], depths: tuple[int, ...]) -> Statement:
    shallow, middle, deep = depths[0], _middle(depths), depths[-1]
    at = {(kind, depth): runs[kind, depth].decibels for kind in KINDS for depth in (shallow, deep)}
    by_layer = (at["plain", deep] - at["plain", shallow]) / (deep - shallow)
    return Statement(
        claim="A plain network loses gradient with each layer, a residual one does not.",
        sentence=f"From {shallow} to {deep} layers what desat's link budget takes from the gradient goes from "
        f"{at['plain', shallow]:.0f} to {at['plain', deep]:.0f} dB in the plain network, {-by_layer:.1f} dB more for "
        f"each layer. With residual blocks it is {at['residual', shallow]:.0f} and {at['residual', deep]:.0f} dB, with "
        f"`residual=skip` {at['remedied', shallow]:.0f} and {at['remedied', deep]:.0f} dB. `desat diagnose` says of "
        f"{middle} plain layers {listed(runs['plain', middle].findings)}.",
        holds=by_layer < -5.0
        and min(runs[kind, depth].decibels for kind in KINDS[1:] for depth in depths) > -20.0
        and "vanishing-gradient" in runs["plain", middle].findings,
        values={
            **{f"{kind}_at_{depth}": runs[kind, depth].decibels for kind in KINDS for depth in depths},
            "by_layer": by_layer,
        },
    )


def _trains(runs: dict[tuple[str, int], Run], depths: tuple[int, ...]) -> Statement:
    deep = depths[-1]
    told = {kind: runs[kind, deep].accuracy for kind in KINDS}
    return Statement(
        claim="So depth does not keep a residual network from learning.",
        sentence=f"Of the unseen digits the plain network of {depths[0]} layers knows "
        f"{runs['plain', depths[0]].accuracy:.0%}, that of {deep} layers {told['plain']:.0%}, the residual one of "
        f"{deep} layers {told['residual']:.0%}, and the plain one with `residual=skip`, whose branches start at zero, "
        f"{told['remedied']:.0%}.",
        holds=told["plain"] < 0.3 and min(told["residual"], told["remedied"]) > 0.7,
        values={f"{kind}_at_{depth}": runs[kind, depth].accuracy for kind in KINDS for depth in depths},
    )


def _drowns(sound: Run, drowned: Run) -> Statement:
    return Statement(
        claim="The stream must not drown in its branches.",
        sentence=f"Beside the stream of a sound network its branches are at {sound.branch:.0f} dB. Drawn {DROWNING:g} "
        f"times as large they are at {drowned.branch:+.0f} dB, as if there were no identity: `desat diagnose` says "
        f"{listed(drowned.findings)}. Even with `clipping=1.0`, which keeps its steps finite, it knows "
        f"{drowned.accuracy:.0%}, "
        f"not {sound.accuracy:.0%}.",
        holds="residual-imbalance" in drowned.findings
        and "residual-imbalance" not in sound.findings
        and drowned.accuracy < sound.accuracy,
        values={
            "branch_sound": sound.branch,
            "branch_drowned": drowned.branch,
            "accuracy_sound": sound.accuracy,
            "accuracy_drowned": drowned.accuracy,
        },
    )


def _chain_picture(chain: Chain) -> Figure:
    places = np.arange(1, BLOCKS + 2)

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.semilogy(places, chain.residual, "o-", color=BLUE, label="residual: I + J")
        axes.semilogy(places, chain.plain, "o-", color=VERMILION, label="plain: J")
        axes.set_xticks(places, [*map(str, places[:-1]), "out"])
        axes.set(xlabel="before block", ylabel="norm of the gradient", title="Gradient through ten blocks")
        axes.legend(loc="center left")

    return picture(
        "blocks",
        draw,
        alt=f"Norm of the gradient before each of ten blocks, 1 behind the last. Plain it falls to "
        f"{chain.plain[0]:.1e} before the first; residual it is {chain.residual[0]:.2f}.",
        caption="The same weights in both; read from right to left.",
    )


def _gradient_picture(runs: dict[tuple[str, int], Run], depths: tuple[int, ...]) -> Figure:
    return _depth_picture(
        "depth",
        "Gradient at the first layer",
        "against the last, dB",
        depths,
        {kind: [runs[kind, depth].decibels for depth in depths] for kind in KINDS},
        "At the first step; the total of desat's link budget.",
        " dB",
    )


def _accuracy_picture(runs: dict[tuple[str, int], Run], depths: tuple[int, ...]) -> Figure:
    return _depth_picture(
        "accuracy",
        "Digits after a short training",
        "known of the unseen, %",
        depths,
        {kind: [100.0 * runs[kind, depth].accuracy for depth in depths] for kind in KINDS},
        "Dashed: by chance.",
        " %",
        chance=10.0,
    )


def _depth_picture(
    name: str,
    title: str,
    label: str,
    depths: tuple[int, ...],
    values: dict[str, list[float]],
    caption: str,
    unit: str,
    chance: float | None = None,
) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        if chance is not None:
            axes.axhline(chance, color=GREY, linestyle="--", linewidth=1.0)
            axes.set_ylim(0.0, 105.0)
        for kind in KINDS:
            axes.plot(depths, values[kind], "o-", color=COLOURS[kind], label=NAMES[kind])
        axes.set_xscale("log", base=2)
        axes.set_xticks(depths, [str(depth) for depth in depths])
        axes.set(xlabel="layers", ylabel=label, title=title)
        axes.legend(loc="center left" if chance is not None else "lower left")

    return picture(
        name,
        draw,
        alt=f"{title} by the number of layers. "
        + " ".join(
            f"{NAMES[kind].capitalize()}: "
            + ", ".join(f"{value:.0f}{unit} at {depth}" for depth, value in zip(depths, values[kind], strict=True))
            + "."
            for kind in KINDS
        ),
        caption=caption,
    )


SLIDE = Slide(
    10,
    "residual",
    "Residual networks",
    build,
    rules=("vanishing-gradient", "residual-imbalance"),
    remedies=("residual=skip", "residual=projection"),
)
