"""Slide 11: attention, and what its softmax does to the gradient where 1 / sqrt(d) is left out."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, PURPLE, VERMILION, picture
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement, listed
from desat.deck.training import accuracy, batches, digits, trained
from desat.diagnose.engine import diagnose
from desat.reference.attention import attention_logits, relative_entropy, scaled_dot_product_attention, softmax

Array = NDArray[np.float64]

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Widths d of queries and keys, whose components are drawn from the normal distribution."""

QUERIES, KEYS = 128, 64
TOKENS, SHOWN = 8, 128
"""Tokens and width of the attention that is drawn."""

WIDTH, BLOCKS = 192, 2
RATE = 1e-3
STEPS = {True: 40, False: 300}

RUNS = (
    ("scaled", True, (), BLUE),
    ("not scaled", False, (), VERMILION),
    ("not scaled, attention=scale", False, ("attention=scale",), PURPLE),
    ("scaled, attention=qk-norm", True, ("attention=qk-norm",), GREEN),
)
"""Name, whether logits are divided by sqrt(d), remedies, colour."""

JUDGED = tuple(name for name, _, remedies, _ in RUNS if not remedies)
"""Runs whose findings a statement tells."""


class Attention(nn.Module):
    """Self-attention of one head, with weights that keep the size of what goes in (Glorot and Bengio 2010)."""

    def __init__(self, is_scaled: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_normal_(layer.weight)
        self.scale = 1.0 / math.sqrt(WIDTH) if is_scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.scale * (self.query(x) @ self.key(x).transpose(-2, -1))
        return torch.softmax(logits, dim=-1) @ self.value(x)


class Reader(nn.Module):
    """A small transformer without feed-forward parts that reads an image of 8 x 8 row by row."""

    def __init__(self, is_scaled: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.position = nn.Parameter(0.5 * torch.randn(8, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(BLOCKS))
        self.attentions = nn.ModuleList(Attention(is_scaled) for _ in range(BLOCKS))
        self.output = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unflatten(-1, (8, 8))) + self.position
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.output(x.mean(1))


@dataclass(frozen=True)
class Sharpness:
    """Over QUERIES rows: mean entropy over its largest, mean largest weight, median norm of the softmax's Jacobian.

    deviation: of the logits.
    """

    entropy: float
    largest: float
    slope: float
    deviation: float


@dataclass(frozen=True, eq=False)
class Run:
    """entropy: of the first attention at each sampled step, of its largest. logit: the largest at the last of them.

    findings: of those of JUDGED.
    """

    steps: Array
    entropy: Array
    logit: float
    accuracy: float
    findings: tuple[str, ...]


def build(settings: Settings) -> Page:
    settings.progress("logits of growing width", 0.0)
    sharpness = {one: [_sharpness(size, one, settings.seed) for size in SIZES] for one in (True, False)}
    shown = [_shown(settings.seed, is_scaled) for is_scaled in (True, False)]
    runs = {
        name: _train(settings, name, is_scaled, remedies, 0.1 + 0.9 * place / len(RUNS))
        for place, (name, is_scaled, remedies, _) in enumerate(RUNS)
    }
    return Page(
        words=(
            "Attention compares a query with each key by their product and takes the values' mean by the softmax of "
            "it. Products of d components grow with √d, and a softmax of large logits saturates: one weight is 1, and "
            "its gradient is gone. That is what the division by √d is for.",
            f"Measured on queries and keys drawn at random, and on a small transformer of width {WIDTH} that reads "
            "handwritten digits row by row, with the division and without.",
        ),
        figures=(
            _weights_picture(shown),
            _width_picture(sharpness),
            _slope_picture(sharpness),
            _entropy_picture(runs),
        ),
        statements=(_is_attention(settings.seed), _grows(sharpness), _collapses(runs), _remedied(runs)),
        readings=(
            Reading("Vaswani et al. 2017, Attention is all you need", "https://arxiv.org/abs/1706.03762"),
            Reading(
                "Zhai et al. 2023, Stabilizing transformer training by preventing attention entropy collapse",
                "https://arxiv.org/abs/2303.06296",
            ),
            Reading("Henry et al. 2020, Query-key normalization for transformers", "https://arxiv.org/abs/2010.04245"),
        ),
    )


def jacobian_norm(weights: Array) -> Array:
    """Frobenius norm of the softmax's Jacobian diag(p) - p p^T, of each row p; 0 where one weight is 1."""
    jacobian = weights[..., :, None] * (np.eye(weights.shape[-1]) - weights[..., None, :])
    return np.linalg.norm(jacobian, axis=(-2, -1))


def _drawn(seed: int, *shapes: tuple[int, int]) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape) for shape in shapes]


def _sharpness(size: int, is_scaled: bool, seed: int) -> Sharpness:
    query, key = _drawn(seed, (QUERIES, size), (KEYS, size))
    logits = attention_logits(query, key, scale=None if is_scaled else 1.0)
    weights = softmax(logits)
    entropy = relative_entropy(weights, np.ones(weights.shape, np.bool_))
    return Sharpness(
        entropy=float(entropy.mean()),
        largest=float(weights.max(axis=-1).mean()),
        slope=float(np.median(jacobian_norm(weights))),
        deviation=float(logits.std()),
    )


def _shown(seed: int, is_scaled: bool) -> Array:
    query, key, value = _drawn(seed, *[(TOKENS, SHOWN)] * 3)
    return scaled_dot_product_attention(query, key, value, scale=None if is_scaled else 1.0)[1]


def _train(settings: Settings, name: str, is_scaled: bool, remedies: tuple[str, ...], begun: float) -> Run:
    torch.manual_seed(settings.seed)
    data, steps = digits(settings.seed), STEPS[settings.fast]
    model = Reader(is_scaled)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    apply(model, optimizer, *remedies, batch=data.inputs[:64])
    with trained(
        model,
        optimizer,
        batches(data.inputs, data.labels, 32, settings.seed),
        steps,
        every=steps // 10,
        tell=lambda what, share: settings.progress(what, begun + share / 5),
        what=f"transformer, {name}",
    ) as record:
        readings = record.readings(record.sites("attention")[0])
        return Run(
            steps=readings["entropy"]["step"],
            entropy=readings["entropy"]["value"],
            logit=float(readings["largest_logit"]["value"][-1]),
            accuracy=accuracy(model, data.test_inputs, data.test_labels),
            findings=diagnose(record).codes() if name in JUDGED else (),
        )


def _is_attention(seed: int) -> Statement:
    query, key, value = _drawn(seed, *[(TOKENS, SHOWN)] * 3)
    output, weights = scaled_dot_product_attention(query, key, value)
    tensors = [torch.from_numpy(one) for one in (query, key, value)]
    expected = nn.functional.scaled_dot_product_attention(tensors[0], tensors[1], tensors[2]).numpy()
    error = float(np.abs(output - expected).max())
    large = 1e4 * query[:, :TOKENS]
    rows = float(np.abs(np.stack([weights, softmax(large)]).sum(axis=-1) - 1.0).max())
    return Statement(
        claim="The output is the values' mean by a softmax that stays finite.",
        sentence=f"The formula, `softmax(Q Kᵀ / √d) V`, gives PyTorch's attention within {error:.0e}. The largest "
        f"logit is taken off first, so that even with logits of {np.abs(large).max():,.0f} each row of weights sums to "
        f"1, within {rows:.0e}.",
        holds=error < 1e-12 and rows < 1e-12,
        values={"error": error, "row_error": rows},
    )


def _grows(sharpness: dict[bool, list[Sharpness]]) -> Statement:
    scaled, bare = sharpness[True], sharpness[False]
    ratio = bare[-1].slope / scaled[-1].slope
    spread = max(one.entropy for one in scaled[3:]) - min(one.entropy for one in scaled[3:])
    return Statement(
        claim="Without the division by √d the softmax saturates as d grows.",
        sentence=f"At d = {SIZES[-1]} logits have a standard deviation of {bare[-1].deviation:.1f}, √d is "
        f"{math.sqrt(SIZES[-1]):.1f}: of {KEYS} keys the largest has a weight of {bare[-1].largest:.2f} on average, "
        f"and the slope of the softmax, the norm of its Jacobian, is {bare[-1].slope:.1e} for the typical query. "
        f"Divided the three are {scaled[-1].deviation:.2f}, {scaled[-1].largest:.2f} and {scaled[-1].slope:.2f}.",
        holds=bare[-1].largest > 0.8 > 0.3 > scaled[-1].largest and spread < 0.1 and ratio < 0.2,
        values={
            "deviation": bare[-1].deviation,
            "deviation_scaled": scaled[-1].deviation,
            "largest": bare[-1].largest,
            "largest_scaled": scaled[-1].largest,
            "entropy": bare[-1].entropy,
            "entropy_scaled": scaled[-1].entropy,
            "steepest": max(one.slope for one in bare),
            "slope": bare[-1].slope,
            "slope_ratio": ratio,
        },
    )


def _collapses(runs: dict[str, Run]) -> Statement:
    sound, sick = runs["scaled"], runs["not scaled"]
    return Statement(
        claim="A transformer without it begins, and stays, with collapsed attention.",
        sentence=f"Without the division the entropy of the first attention is {sick.entropy[0]:.2f} of its largest "
        f"at the first step and {sick.entropy[-1]:.2f} at the end, with it {sound.entropy[0]:.2f} and "
        f"{sound.entropy[-1]:.2f}. `desat diagnose` says {listed(sick.findings)} of the one and "
        f"{listed(sound.findings)} of the other; "
        f"of the unseen digits they know {sick.accuracy:.0%} and {sound.accuracy:.0%}.",
        holds="collapsed-attention" in sick.findings
        and "collapsed-attention" not in sound.findings
        and sick.accuracy < sound.accuracy,
        values={
            "entropy_first": float(sick.entropy[0]),
            "entropy_last": float(sick.entropy[-1]),
            "entropy_first_scaled": float(sound.entropy[0]),
            "entropy_last_scaled": float(sound.entropy[-1]),
            "accuracy": sick.accuracy,
            "accuracy_scaled": sound.accuracy,
        },
    )


def _remedied(runs: dict[str, Run]) -> Statement:
    rescaled, normed, sound = (runs[RUNS[place][0]] for place in (2, 3, 0))
    return Statement(
        claim="Weights that are rescaled are right for the start, norms of queries and keys for longer.",
        sentence=f"`attention=scale` makes the weights of the queries smaller instead, and the entropy begins at "
        f"{rescaled.entropy[0]:.2f}. But each step still moves the logits √d times as far, and it ends at "
        f"{rescaled.entropy[-1]:.2f}: the division itself belongs into the code. With it `attention=qk-norm` keeps the "
        f"largest logit at {normed.logit:.0f}, not {sound.logit:.0f}, and the entropy at {normed.entropy[-1]:.2f}.",
        holds=rescaled.entropy[0] > 0.6
        and rescaled.entropy[-1] < rescaled.entropy[0]
        and normed.logit < sound.logit
        and normed.entropy[-1] > sound.entropy[-1],
        values={
            "entropy_first": float(rescaled.entropy[0]),
            "entropy_last": float(rescaled.entropy[-1]),
            "accuracy_rescaled": rescaled.accuracy,
            "logit": sound.logit,
            "logit_normed": normed.logit,
            "entropy_normed": float(normed.entropy[-1]),
        },
    )


def _weights_picture(shown: list[Array]) -> Figure:
    def draw(canvas: Canvas) -> None:
        for place, (weights, title) in enumerate(zip(shown, ("divided by √d", "not divided"), strict=True), 1):
            axes = canvas.add_subplot(1, 2, place)
            image = axes.imshow(weights, vmin=0.0, vmax=1.0, cmap="Blues")
            axes.set(xlabel="key", ylabel="query" if place == 1 else "", title=title)
            axes.grid(visible=False)
            if place == 2:
                canvas.colorbar(image, ax=axes, shrink=0.7, label="weight")

    return picture(
        "weights",
        draw,
        alt=f"Heat maps of the attention weights of {TOKENS} queries over {TOKENS} keys of width {SHOWN}. Divided by "
        f"the root of the width they are spread, {shown[0].max():.2f} at most; not divided most rows have one weight "
        "near 1.",
        caption=f"The same {TOKENS} queries and keys of width {SHOWN}.",
    )


def _width_picture(sharpness: dict[bool, list[Sharpness]]) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for is_scaled, colour, name in ((True, BLUE, "divided by √d"), (False, VERMILION, "not divided")):
            ones = sharpness[is_scaled]
            axes.plot(SIZES, [one.entropy for one in ones], "o-", color=colour, label=f"entropy, {name}")
            axes.plot(SIZES, [one.largest for one in ones], "s--", color=colour, label=f"largest weight, {name}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.set(xlabel="width d", ylim=(0.0, 1.45), title=f"Softmax over {KEYS} keys")
        axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
        axes.legend(loc="upper center", ncols=2, fontsize=9)

    return picture(
        "width",
        draw,
        alt="Entropy and largest weight by the width of queries and keys. Not divided the largest weight rises to "
        f"{sharpness[False][-1].largest:.2f} and the entropy falls to {sharpness[False][-1].entropy:.2f} at d = "
        f"{SIZES[-1]}; divided they stay at {sharpness[True][-1].largest:.2f} and {sharpness[True][-1].entropy:.2f}.",
        caption="Entropy as a share of its largest, log(keys).",
    )


def _slope_picture(sharpness: dict[bool, list[Sharpness]]) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for is_scaled, colour, name in ((True, BLUE, "divided by √d"), (False, VERMILION, "not divided")):
            axes.loglog(SIZES, [one.slope for one in sharpness[is_scaled]], "o-", color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.set(xlabel="width d", ylabel="norm of the Jacobian", title="What the softmax passes of a gradient")
        axes.legend(loc="lower left")

    return picture(
        "slope",
        draw,
        alt="Norm of the softmax's Jacobian for the typical query by the width of queries and keys. At d = "
        f"{SIZES[-1]} it is {sharpness[True][-1].slope:.2f} divided and {sharpness[False][-1].slope:.1e} not divided.",
        caption=f"The median of {QUERIES} queries.",
    )


def _entropy_picture(runs: dict[str, Run]) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for name, _, _, colour in RUNS:
            axes.plot(runs[name].steps, runs[name].entropy, "o-", color=colour, label=name, markersize=4)
        axes.set(xlabel="step", ylabel="entropy / largest", ylim=(0.0, 1.5), title="A transformer in training")
        axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
        axes.legend(loc="upper right")

    return picture(
        "entropy",
        draw,
        alt="Entropy of the first attention by step, as a share of its largest. "
        + " ".join(
            f"{name.capitalize()}: from {one.entropy[0]:.2f} to {one.entropy[-1]:.2f}." for name, one in runs.items()
        ),
        caption="Of the first attention, measured by desat.",
    )


SLIDE = Slide(
    11,
    "attention",
    "Attention",
    build,
    rules=("collapsed-attention",),
    remedies=("attention=scale", "attention=qk-norm"),
)
