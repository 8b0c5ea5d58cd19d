"""Slide 6: batch normalization takes each feature's own mean and scale, and so keeps a layer off its flat ends."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import nn

from desat.api import apply
from desat.deck.drawing import BLUE, GREEN, GREY, ORANGE, VERMILION, picture, shade
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement
from desat.deck.training import Data, accuracy, batches, digits, stack, trained
from desat.diagnose.engine import diagnose
from desat.diagnose.rules.degenerate_batchnorm import TINY_BATCH
from desat.nonlinearity import Curve, measure_curve
from desat.record.reader import Record
from desat.reference.normalization import batch_norm, normalize_over_everything

Array = NDArray[np.float64]

WIDTHS = (64, 64, 64, 64, 10)
BATCH = 64
RATE = 0.2
STEPS = {True: 80, False: 400}
LOOKED_AT = 256
"""Samples of the first layer's pre-activations that are normalized on the slide."""

SHOWN = 12
"""Features whose mean and standard deviation are drawn."""

TINY = 2
TINY_STEPS = 40
EXACT = 1e-9
REMEDY = "normalization=batch"


@dataclass(frozen=True)
class Run:
    """What was measured of one training: the share of saturated pre-activations over all layers, by sampled step.

    findings: by code, and whether it is more than a note.
    """

    steps: NDArray[np.int64]
    saturated: Array
    findings: dict[str, bool]
    accuracy: float


@dataclass(frozen=True)
class Normalized:
    """Pre-activations (samples, features) as they come, normalized over everything, and for each feature."""

    before: Array
    everything: Array
    each: Array


def build(settings: Settings) -> Page:
    data = digits(settings.seed)
    curve = measure_curve(torch.tanh)
    assert curve is not None
    sick = _train(settings, data, (), BATCH, STEPS[settings.fast], 0.0)
    cured = _train(settings, data, (REMEDY,), BATCH, STEPS[settings.fast], 0.45)
    tiny = _train(settings, data, (REMEDY,), TINY, TINY_STEPS, 0.9)
    z = _normalized(settings, data)
    return Page(
        words=(
            "Batch normalization takes the mean and the variance of each feature over the samples of a batch, and "
            "scales each feature by its own. A sketch that takes one mean and one variance of the whole array, as this "
            "deck's first did, is something else: features that lie apart still lie apart afterwards.",
            f"Here {len(WIDTHS) - 2} layers of tanh on handwritten digits, whose weights were drawn with a standard "
            "deviation of 1 whatever the fan-in. Normalized, what goes into the tanh no longer depends on that.",
        ),
        figures=(
            _histogram_picture(curve, z),
            _feature_picture(z),
            _training_picture(sick, cured),
        ),
        statements=(_each(z), _everything(z), _unsaturated(curve, sick, cured), _found(sick, cured), _tiny(z, tiny)),
        readings=(
            Reading(
                "Ioffe and Szegedy 2015, Batch normalization", "https://proceedings.mlr.press/v37/ioffe15.html"
            ),
            Reading("Wu and He 2018, Group normalization", "https://doi.org/10.1007/978-3-030-01261-8_1"),
        ),
    )  # fmt: skip


def _network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = stack(WIDTHS, nn.Tanh)
    for layer in list(model)[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def _normalized(settings: Settings, data: Data) -> Normalized:
    """The first layer's pre-activations at the start, in three ways."""
    with torch.no_grad():
        before = _network(settings.seed)[0](data.inputs[:LOOKED_AT]).double().numpy()
    return Normalized(before, normalize_over_everything(before), batch_norm(before))


def _train(settings: Settings, data: Data, remedies: tuple[str, ...], size: int, steps: int, begun: float) -> Run:
    model = _network(settings.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    apply(model, optimizer, *remedies)
    with trained(
        model,
        optimizer,
        batches(data.inputs, data.labels, size, settings.seed),
        steps,
        every=max(1, steps // 40),
        tell=lambda what, share: settings.progress(what, begun + 0.45 * share),
        what=f"training {'with ' if remedies else 'without '}{REMEDY}, batches of {size}",
    ) as record:
        return _measured(record, accuracy(model, data.test_inputs, data.test_labels))


def _measured(record: Record, share: float) -> Run:
    low, high = (record.grid("input", f"saturated_{end}", "nonlinearity") for end in ("low", "high"))
    return Run(
        steps=low.steps,
        saturated=(low.values + high.values).mean(axis=0),
        findings={finding.code: finding.severity != "note" for finding in diagnose(record).findings},
        accuracy=share,
    )


def _each(z: Normalized) -> Statement:
    by_torch = nn.functional.batch_norm(torch.tensor(z.before), None, None, training=True).numpy()
    apart = float(np.abs(z.each - by_torch).max())
    mean, deviation = float(np.abs(z.each.mean(axis=0)).max()), z.each.std(axis=0)
    return Statement(
        claim="Afterwards each feature has mean 0 and standard deviation 1.",
        sentence=f"Of the {z.each.shape[1]} features of the first layer no mean is farther than {mean:.0e} from 0, and "
        f"the standard deviations lie between {deviation.min():.4f} and {deviation.max():.4f}. PyTorch's agrees with "
        f"the formula within {apart:.0e}.",
        holds=apart < EXACT and mean < EXACT and bool(np.abs(deviation - 1.0).max() < 0.001),
        values={
            "largest_mean": mean,
            "smallest_deviation": float(deviation.min()),
            "largest_deviation": float(deviation.max()),
            "largest_difference": apart,
        },
    )


def _everything(z: Normalized) -> Statement:
    whole, spread = float(z.everything.mean()), float(z.everything.std())
    mean, deviation = z.everything.mean(axis=0), z.everything.std(axis=0)
    return Statement(
        claim="Normalized over everything, features keep means and scales of their own.",
        sentence=f"The array as a whole then has mean {abs(whole):.0f} and standard deviation {spread:.3f}, but its "
        f"features have means from {mean.min():+.2f} to {mean.max():+.2f} and standard deviations from "
        f"{deviation.min():.2f} to {deviation.max():.2f}: it is a shift and a scale for all alike.",
        holds=abs(whole) < EXACT and abs(spread - 1.0) < 0.001 and float(np.abs(mean).max()) > 0.2,
        values={
            "mean": whole,
            "deviation": spread,
            "largest_mean": float(np.abs(mean).max()),
            "smallest_deviation": float(deviation.min()),
            "largest_deviation": float(deviation.max()),
        },
    )


def _normal_share(curve: Curve) -> float:
    """Share of the standard normal distribution beyond the ends at which tanh is saturated."""
    return math.erfc(curve.high / math.sqrt(2.0))


def _unsaturated(curve: Curve, sick: Run, cured: Run) -> Statement:
    expected = _normal_share(curve)
    first, last = (
        (float(run.saturated[0]) for run in (sick, cured)),
        (float(run.saturated[-1]) for run in (sick, cured)),
    )
    (sick_first, cured_first), (sick_last, cured_last) = first, last
    return Statement(
        claim="It keeps the layers off their flat ends, and the network learns.",
        sentence=f"Without it {sick_first:.0%} of what goes into the tanh is saturated at first and {sick_last:.0%} at "
        f"the end; with `{REMEDY}` it is {cured_first:.1%} and {cured_last:.1%}, where the standard normal "
        f"distribution has {expected:.1%}. The network knows {cured.accuracy:.0%} of the digits that it has not seen, "
        f"and without it {sick.accuracy:.0%}.",
        holds=min(sick_first, sick_last) > 0.5
        and abs(cured_first - expected) < 0.02
        and cured_last < 0.1
        and cured.accuracy > sick.accuracy + 0.05,
        values={
            "sick_first": sick_first,
            "sick_last": sick_last,
            "cured_first": cured_first,
            "cured_last": cured_last,
            "expected": expected,
            "sick_accuracy": sick.accuracy,
            "cured_accuracy": cured.accuracy,
        },
    )


def _found(sick: Run, cured: Run) -> Statement:
    return Statement(
        claim="desat finds the saturation, and no longer after the cure.",
        sentence=f"`desat diagnose` says {_told(sick)} of the one, and {_told(cured)} of the other.",
        holds="saturated-activation" in sick.findings and "saturated-activation" not in cured.findings,
        values={
            "sick_found": float("saturated-activation" in sick.findings),
            "cured_found": float("saturated-activation" in cured.findings),
        },
    )


def _told(run: Run) -> str:
    told = [f"`{code}`" for code, is_grave in run.findings.items() if is_grave]
    if run.findings.get("saturated-activation") is False:
        told.append("`saturated-activation` as a note, since the loss fell all the same,")
    return ", ".join(told) or "nothing"


def _tiny(z: Normalized, tiny: Run) -> Statement:
    pair = np.abs(batch_norm(z.before[:TINY]))
    return Statement(
        claim="It needs a batch that says something of its features.",
        sentence=f"Of {TINY} samples one becomes +1 and the other −1 in every feature, whatever they were: here the "
        f"median is ±{np.median(pair):.4f}. In a training with batches of {TINY} `desat diagnose` says {_told(tiny)}; "
        f"it speaks up at {TINY_BATCH.value:g} samples and fewer.",
        holds=bool(abs(np.median(pair) - 1.0) < 1e-3) and tiny.findings.get("degenerate-batchnorm", False),
        values={"median": float(np.median(pair)), "found": float("degenerate-batchnorm" in tiny.findings)},
    )


def _histogram_picture(curve: Curve, z: Normalized) -> Figure:
    edges = np.linspace(-20.0, 20.0, 81)
    shares = [float((np.abs(values) >= curve.high).mean()) for values in (z.before, z.each)]

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for values, colour, label in ((z.before, VERMILION, "before"), (z.each, GREEN, "after")):
            density, _ = np.histogram(values, edges, density=True)
            axes.stairs(density, edges, color=colour, fill=True, alpha=0.75, label=label)
        axes.set_xlim(-20.0, 20.0)
        shade(axes, curve.intervals, label="tanh is saturated")
        axes.set(xlabel="what goes into the tanh", ylabel="density", title="The first layer")
        axes.legend(loc="upper right")

    return picture(
        "histogram",
        draw,
        alt=f"Histograms of the first layer's pre-activations. Before they are wide, with {shares[0]:.0%} of them "
        f"where tanh is saturated; after batch normalization they lie around zero, with {shares[1]:.1%} there.",
        caption=f"{z.before.shape[0]} samples, {z.before.shape[1]} features, before the first step.",
    )


def _feature_picture(z: Normalized) -> Figure:
    features = np.arange(SHOWN)
    kinds = ((z.everything, ORANGE, "over everything"), (z.each, BLUE, "for each feature"))

    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.axhspan(-1.0, 1.0, color=GREY, alpha=0.15, linewidth=0)
        for place, (values, colour, label) in enumerate(kinds):
            axes.errorbar(
                features + 0.3 * (place - 0.5),
                values.mean(axis=0)[:SHOWN],
                values.std(axis=0)[:SHOWN],
                fmt="o",
                color=colour,
                capsize=3,
                label=label,
            )
        axes.set(xlabel="feature", xticks=features, title="Mean ± standard deviation")
        axes.margins(y=0.25)
        axes.legend(loc="upper right", ncols=2)

    mean = z.everything.mean(axis=0)[:SHOWN]
    return picture(
        "features",
        draw,
        alt=f"Mean and standard deviation of {SHOWN} features. Normalized over everything their means lie between "
        f"{mean.min():.2f} and {mean.max():.2f}; normalized each by itself all are at 0 ± 1.",
        caption="The first layer's features, normalized in both ways.",
    )


def _training_picture(sick: Run, cured: Run) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.plot(sick.steps, 100 * sick.saturated, color=VERMILION, label="without")
        axes.plot(cured.steps, 100 * cured.saturated, color=GREEN, label="with batch normalization")
        axes.set(xlabel="step", ylabel="saturated, %", ylim=(0.0, 100.0), title="Saturated share of all layers")
        axes.legend(loc="center right")

    return picture(
        "training",
        draw,
        alt=f"Saturated share over all layers by step: without normalization from {sick.saturated[0]:.0%} to "
        f"{sick.saturated[-1]:.0%}, with it from {cured.saturated[0]:.1%} to {cured.saturated[-1]:.1%}.",
    )


SLIDE = Slide(
    6,
    "batch-normalization",
    "Batch normalization",
    build,
    rules=("saturated-activation", "degenerate-batchnorm"),
    remedies=(REMEDY,),
)
