"""Vaswani et al. 2017, section 3.2.1: the softmax of unscaled dot products, as the keys get wider."""

import math
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure as Canvas
from torch import Tensor, nn

from desat.deck.drawing import GREEN, VERMILION, picture
from desat.deck.papers.experiment import Outcome, Paper, estimate, named, seeds
from desat.deck.slide import Figure, Reading, Settings, Statement
from desat.deck.training import trained
from desat.record.histogram import magnitude_quantile
from desat.record.reader import Record

WIDTHS = (4, 16, 64, 128)
"""Not wider: at 256 the gradient is below 2**-47, where the histograms of a record end."""

KEYS = 64
QUERIES = 32
BATCH = 4

CLOSE = 0.2
"""Share of d by which the variance of a dot product may be off, of BATCH * QUERIES * KEYS products, and be d still."""


class Attention(nn.Module):
    """Softmax of scale * query key^T, as modules, so that what goes in and the gradient that comes back are measured.

    Queries and keys are independent with mean 0 and variance 1, as the paper assumes; the queries are parameters.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(BATCH, QUERIES, width))
        self.register_buffer("key", torch.randn(BATCH, KEYS, width))
        self.scale = scale
        self.logits = nn.Identity()
        self.register_buffer("mask", torch.zeros(QUERIES, KEYS))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, weighting: Tensor) -> Tensor:
        logits = self.logits(self.scale * self.query @ self.get_buffer("key").transpose(-2, -1))
        # A mask is added, though it hides nothing: a softmax of what a module gave is taken for a classifier's.
        return (self.softmax(logits + self.get_buffer("mask")) * weighting).sum()


class Widths(nn.Module):
    """One attention for each width."""

    def __init__(self, *, is_scaled: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            Attention(width, 1.0 / math.sqrt(width) if is_scaled else 1.0) for width in WIDTHS
        )

    def forward(self, weighting: Tensor) -> Tensor:
        return torch.stack([attention(weighting) for attention in self.attentions]).sum()


@dataclass(frozen=True)
class Softmax:
    """By width. variances: of the logits. gradients: median magnitude of those at the logits, for a normal gradient at
    the weights. one_hot: share of queries that look at one key alone.
    """

    variances: tuple[float, ...]
    gradients: tuple[float, ...]
    one_hot: tuple[float, ...]


def measure(settings: Settings) -> Outcome:
    unscaled = [_softmax(seed, is_scaled=False) for seed in seeds(settings)]
    scaled = [_softmax(seed, is_scaled=True) for seed in seeds(settings)]
    return Outcome((_variance(unscaled), _gradient(unscaled, scaled)), _figure(unscaled[0], scaled[0]))


def _softmax(seed: int, *, is_scaled: bool) -> Softmax:
    torch.manual_seed(seed)
    model = Widths(is_scaled=is_scaled)
    batch = (torch.randn(BATCH, QUERIES, KEYS), torch.zeros(()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with trained(model, optimizer, [batch], 1, criterion=lambda output, _: output) as record:
        return _measured(record)


def _measured(record: Record) -> Softmax:
    logits = [site for site in record.sites("module") if site.operation == "Identity"]
    choices = [record.readings(site) for site in record.sites("attention")]
    seen = [record.tensor(site, "output") for site in logits]
    gradients = [record.histograms(site, "gradient")[1][0] for site in logits]
    return Softmax(
        tuple(float(one["rms"][0] ** 2 - one["mean"][0] ** 2) for one in seen),
        tuple(float(magnitude_quantile(counts, 0.5)) for counts in gradients),
        tuple(float(one["one_hot_share"]["value"][0]) for one in choices),
    )


def _variance(unscaled: list[Softmax]) -> Statement:
    ratios = [estimate(one.variances[place] / width for one in unscaled) for place, width in enumerate(WIDTHS)]
    told = ", ".join(
        f"{estimate(one.variances[place] for one in unscaled).mean:.1f} at d = {width}"
        for place, width in enumerate(WIDTHS)
    )
    return Statement(
        claim="Vaswani et al. 2017: the dot product of d independent components of variance 1 has variance d.",
        sentence=f"The variance of q·k is {told}; at the widest it is {ratios[-1]:.2f} times d.",
        holds=all(abs(value - 1.0) < CLOSE for ratio in ratios for value in ratio.values),
        values={
            key: value
            for width, ratio in zip(WIDTHS, ratios, strict=True)
            for key, value in named(**{f"variance_over_d_{width}": ratio}).items()
        },
    )


def _gradient(unscaled: list[Softmax], scaled: list[Softmax]) -> Statement:
    lost, kept = (
        estimate(20.0 * math.log10(one.gradients[-1] / one.gradients[0]) for one in group)
        for group in (unscaled, scaled)
    )
    sharp, even = (estimate(100.0 * one.one_hot[-1] for one in group) for group in (unscaled, scaled))
    narrow, wide = WIDTHS[0], WIDTHS[-1]
    return Statement(
        claim="Vaswani et al. 2017: so for wide keys the softmax has extremely small gradients, unless the products "
        "are divided by the root of d.",
        sentence=f"From d = {narrow} to {wide} the median gradient at the logits changes by {lost:.0f} dB; divided by "
        f"the root of d, by {kept:+.1f} dB. At d = {wide} {sharp:.0f} % of the queries see one key alone, and "
        f"{even:.0f} % when divided.",
        holds=max(lost.values) < -40.0 and max(map(abs, kept.values)) < 6.0,
        values=named(unscaled_db=lost, scaled_db=kept, unscaled_one_hot_percent=sharp, scaled_one_hot_percent=even),
    )


def _figure(unscaled: Softmax, scaled: Softmax) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(WIDTHS, scaled.gradients, "o-", color=GREEN, label="divided by √d")
        axes.plot(WIDTHS, unscaled.gradients, "o-", color=VERMILION, label="unscaled")
        axes.set(
            xscale="log", yscale="log", xlabel="width d of queries and keys", ylabel="median gradient at the logits"
        )
        axes.set_title("Softmax of dot products")
        axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        axes.set_xticks([], minor=True)
        axes.legend(loc="lower left")

    return picture(
        "attention",
        draw,
        alt="Median magnitude of the gradient at the logits over the width of the keys, both logarithmic. Unscaled: "
        + ", ".join(f"{value:.1e} at {width}" for width, value in zip(WIDTHS, unscaled.gradients, strict=True))
        + f". Divided by the root of d it stays between {min(scaled.gradients):.1e} and {max(scaled.gradients):.1e}.",
        caption=f"Vaswani et al. 2017, section 3.2.1: {KEYS} keys; the gradient at the weights is normal.",
    )


PAPER = Paper(
    "Vaswani et al. 2017",
    Reading("Vaswani et al. 2017, Attention is all you need", "https://arxiv.org/abs/1706.03762"),
    measure,
)
