"""Slide 1: what saturation is, found from the derivative, and how much of it a layer has."""

import math
import statistics

import numpy as np
import torch
from matplotlib.figure import Figure as Canvas
from torch import nn

from desat.deck.drawing import BLUE, INK, VERMILION, picture, shade
from desat.deck.slide import Figure, Page, Reading, Settings, Slide, Statement
from desat.deck.training import trained
from desat.nonlinearity import SATURATION_LIMIT, Curve, gains, measure_curve

WIDTHS = (1.0, 2.0, 4.0, 8.0)
"""Standard deviations of the pre-activations that a layer of sigmoids is given."""

CLOSE = 0.02
"""Difference of a share to that of the normal distribution that counts as none; the standard error is 0.002 at most."""


def build(settings: Settings) -> Page:
    curve = measure_curve(torch.sigmoid)
    assert curve is not None
    shares = _saturated_shares(settings)
    return Page(
        words=(
            "A nonlinearity is saturated where its slope has all but gone, here below 5 % of its steepest slope: what "
            "goes in may change there, and behind it hardly anything does.",
            "The shaded parts are found from the derivative, taken by autograd on a fine grid, so that the same test "
            "judges an activation of your own. How much of a layer lies in them depends on what the layer is fed.",
        ),
        figures=(_curve_picture(curve), _slope_picture(curve), _share_picture(curve, shares)),
        statements=(_where(curve), _how_much(curve, shares)),
        readings=(
            Reading(
                "LeCun, Bottou, Orr and Müller 1998, Efficient BackProp", "https://doi.org/10.1007/3-540-49430-8_2"
            ),
            Reading(
                "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks",
                "https://proceedings.mlr.press/v9/glorot10a.html",
            ),
        ),
    )


def _saturated_shares(settings: Settings) -> dict[float, float]:
    """Share of a sigmoid layer's inputs that desat finds saturated, by the standard deviation of these inputs."""
    samples = 2**16 if settings.fast else 2**20
    shares = {}
    for place, width in enumerate(WIDTHS):
        settings.progress(f"inputs of width {width:g}", place / len(WIDTHS))
        shares[width] = _share(width, samples)
    return shares


def _share(width: float, samples: int) -> float:
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, width)
    nn.init.zeros_(layer.bias)
    model = nn.Sequential(layer, nn.Sigmoid())
    inputs, targets = torch.randn(samples, 1), torch.zeros(samples, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with trained(model, optimizer, [(inputs, targets)], 1, criterion=nn.functional.mse_loss) as record:
        (site,) = record.sites("nonlinearity")
        seen = record.tensor(site, "input")
    return float(seen["saturated_low"][0] + seen["saturated_high"][0])


def _where(curve: Curve) -> Statement:
    expected = 2.0 * math.atanh(math.sqrt(1.0 - SATURATION_LIMIT))  # sigma' = (1 - tanh(z/2)^2) / 4
    return Statement(
        claim="The sigmoid saturates at both ends.",
        sentence=f"Its slope is 0.25 at most, at zero, and falls below 5 % of that at z = {curve.low:.3f} and "
        f"z = {curve.high:.3f}; by algebra it is ±2 artanh √0.95 = ±{expected:.3f}.",
        holds=abs(curve.high - expected) < 1e-6
        and abs(curve.low + expected) < 1e-6
        and abs(curve.peak_gain - 0.25) < 1e-9,
        values={"low": curve.low, "high": curve.high, "by_algebra": expected, "steepest_slope": curve.peak_gain},
    )


def _how_much(curve: Curve, shares: dict[float, float]) -> Statement:
    expected = {width: _normal_share(curve, width) for width in shares}
    apart = max(abs(shares[width] - expected[width]) for width in shares)
    narrow, wide = min(shares), max(shares)
    return Statement(
        claim="The wider a layer's inputs, the more of them are saturated.",
        sentence=f"Watched by desat, sigmoids whose inputs have standard deviation {narrow:g} are saturated on "
        f"{shares[narrow]:.1%} of them, at {wide:g} on {shares[wide]:.0%}. The normal distribution says the same, "
        f"within {100 * apart:.2f} percentage points.",
        holds=apart < CLOSE and list(shares.values()) == sorted(shares.values()),
        values={
            **{f"saturated_share_at_{width:g}": share for width, share in shares.items()},
            "largest_difference": apart,
        },
    )


def _normal_share(curve: Curve, width: float) -> float:
    normal = statistics.NormalDist(0.0, width)
    return normal.cdf(curve.low) + 1.0 - normal.cdf(curve.high)


def _curve_picture(curve: Curve) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        z = np.linspace(-10.0, 10.0, 401)
        axes.plot(z, torch.sigmoid(torch.tensor(z)).numpy(), color=BLUE, label="σ(z)")
        axes.set_xlim(-10.0, 10.0)
        shade(axes, curve.intervals)
        axes.set(xlabel="z", title="The sigmoid")
        axes.legend(loc="center right")

    return picture(
        "curve",
        draw,
        alt=f"The sigmoid from -10 to 10, rising from 0 to 1; shaded below z = {curve.low:.2f} and above "
        f"z = {curve.high:.2f}, where it is flat.",
        caption="Shaded: where desat calls it saturated.",
    )


def _slope_picture(curve: Curve) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        z = np.linspace(-10.0, 10.0, 401)
        axes.plot(z, gains(torch.sigmoid, torch.tensor(z)).numpy(), color=BLUE, label="σ′(z)")
        limit = SATURATION_LIMIT * curve.peak_gain
        axes.axhline(limit, color=INK, linewidth=1.0, linestyle="--", label=f"limit: {limit:.4f}")
        axes.set_xlim(-10.0, 10.0)
        shade(axes, curve.intervals)
        axes.set(xlabel="z", title="Its slope")
        axes.legend(loc="upper right")

    return picture(
        "slope",
        draw,
        alt=f"The sigmoid's slope, a bell of height 0.25 around zero. It crosses the dashed limit of 0.0125 at "
        f"z = {curve.low:.2f} and {curve.high:.2f}.",
        caption="By autograd. The limit is 5 % of the maximum.",
    )


def _share_picture(curve: Curve, shares: dict[float, float]) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        widths = np.linspace(0.5, max(shares) + 0.5, 200)
        axes.plot(widths, [100 * _normal_share(curve, w) for w in widths], color=BLUE, label="normal distribution")
        measured = [100 * share for share in shares.values()]
        axes.plot(list(shares), measured, "o", color=VERMILION, markersize=8, label="measured by desat.watch")
        axes.set(xlabel="standard deviation of z", ylabel="saturated, %", title="How much of a layer is saturated")
        axes.legend(loc="upper left")

    return picture(
        "share",
        draw,
        alt="Saturated share of a sigmoid layer over the standard deviation of its inputs: "
        + ", ".join(f"{share:.1%} at {width:g}" for width, share in shares.items())
        + ". The measured points lie on the curve of the normal distribution.",
    )


SLIDE = Slide(
    1,
    "saturation",
    "Saturation",
    build,
    rules=("saturated-activation", "saturated-output"),
    remedies=("activation=relu", "normalization=batch"),
)
