"""How large the optimizer's steps are beside the weights they change."""

import numpy as np

from desat.diagnose.threshold import Threshold
from desat.record.reader import Record

USUAL_UPDATE = 1e-3
"""rms(update)/rms(weight) that is customary (Karpathy, CS231n notes, Neural Networks Part 3: ratio of weights to
updates)."""

SMALL_UPDATE = Threshold(
    "small update",
    1e-5,
    "rms(update)/rms(weight)",
    "update ratio below which the optimizer's steps are too small",
    "a hundredth of the customary 1e-3 (Karpathy, CS231n notes, Neural Networks Part 3: ratio of weights to updates)",
)
LARGE_UPDATE = Threshold(
    "large update",
    1e-1,
    "rms(update)/rms(weight)",
    "update ratio above which they are too large, and may kill units",
    "a hundred times the customary 1e-3 (Karpathy, same place)",
)


def rates_that_fit(ratio: float) -> tuple[str, ...]:
    """Remedies that bring an update ratio to what is usual: by a tenth or ten times first, and by the whole factor."""
    if not 0.0 < ratio < float("inf"):
        return ("optimizer=rate:0.1",)
    factor = float(f"{USUAL_UPDATE / ratio:.1g}")
    first = "optimizer=rate:0.1" if factor < 1.0 else "optimizer=rate:10"
    return tuple(dict.fromkeys((first, f"optimizer=rate:{factor:g}")))


def update_ratios(record: Record) -> list[float]:
    """rms(update) / rms(weight) of each layer with trained weights, in order of execution; medians over sampled steps.

    Of a layer's parameters the fastest counts. Parameters called `bias` are left out: they start at zero, where the
    ratio means nothing.
    """
    update, size = record.grid("parameter", "update_rms"), record.grid("parameter", "rms")
    trained = ~np.isnan(record.grid("parameter", "gradient_rms").values)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(trained & np.isfinite(update.values), update.values / size.values, np.nan)
    by_layer: dict[int, float] = {}
    for site, series in zip(update.sites, ratio, strict=True):
        known = series[np.isfinite(series)]
        if len(known) and not site.is_bias:
            by_layer[site.position] = max(by_layer.get(site.position, 0.0), float(np.median(known)))
    return [by_layer[position] for position in sorted(by_layer)]
