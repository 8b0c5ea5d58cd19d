"""The link budget: where the gradient is lost on its way from the loss to the first layer, in decibels.

The backward gain of a site is rms(gradient at the site before it) / rms(gradient at the site), in decibels
(20 log10). Along the order of execution the gains telescope: their sum is the change of the gradient from the network's
last output to its first, and each gain is booked to what the site does: nonlinearity, weight, normalization or other.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from desat.record.reader import Record
from desat.record.rows import Site

Share = Literal["nonlinearity", "weight", "normalization", "other"]
SHARES: tuple[Share, ...] = ("nonlinearity", "weight", "normalization", "other")

GRADIENT_FLOOR = 2.0**-149
"""The rms that a gradient of zero counts as, so that decibels stay finite: float32's smallest number, -897 dB."""

WEIGHT_OPERATIONS = ("linear", "conv", "embedding", "rnn", "lstm", "gru", "attention")
"""Parts of the names of operations that multiply by learned weights (`bilinear`, `convtranspose2d` contain one)."""

LOSS_SUFFIX = "Loss"
"""Ends the names of the loss modules: they come after the network's last output, where the budget begins."""


@dataclass(frozen=True)
class Link:
    """What one site does to the gradient that passes through it from its output to the output before it."""

    site: str
    operation: str
    share: Share
    gain_db: float


@dataclass(frozen=True)
class LinkBudget:
    """The links from the loss (first) back to the first layer (last), at the sampled step `step`.

    first_site: the first layer, at whose output the budget ends; it has no link of its own.
    """

    step: int
    links: tuple[Link, ...]
    first_site: str = ""

    @property
    def total_db(self) -> float:
        """Change of the gradient from the network's last output to its first, dB; negative where gradient is lost."""
        return float(sum(link.gain_db for link in self.links))

    @property
    def by_share(self) -> dict[Share, float]:
        """The total in dB, split by what caused it; the four add up to `total_db`."""
        gains: dict[Share, float] = {}
        for share in SHARES:
            gains[share] = float(sum(link.gain_db for link in self.links if link.share == share))
        return gains

    @property
    def fractions(self) -> dict[Share, float]:
        """How much of the loss (or, with a total above 0 dB, of the growth) each share makes: 0 to 1, in all 1."""
        sign = -1.0 if self.total_db < 0.0 else 1.0
        parts = {share: max(0.0, sign * gain) for share, gain in self.by_share.items()}
        whole = sum(parts.values())
        fractions: dict[Share, float] = {}
        for share in SHARES:
            fractions[share] = parts[share] / whole if whole > 0.0 else 0.0
        return fractions

    @property
    def dominating_share(self) -> Share:
        """The share that makes the largest fraction."""
        fractions = self.fractions
        return max(SHARES, key=lambda share: fractions[share])


def measure_link_budget(record: Record, step: int | None = None) -> LinkBudget | None:
    """The link budget at the sampled step `step`.

    Without `step` it is the sampled step whose total is the median of all (the lower one of two, the earliest of
    equals): a real step, so that its links add up, and the one that stands for the run. The first step would miss what
    began later, the last what a blown-up run looked like before. None where fewer than two sites had finite gradients.
    """
    budgets = measure_link_budgets(record)
    if step is not None:
        return next((budget for budget in budgets if budget.step == step), None)
    if not budgets:
        return None
    ranked = sorted(budgets, key=lambda budget: (round(budget.total_db, 6), budget.step))
    return ranked[(len(ranked) - 1) // 2]


def measure_link_budgets(record: Record) -> tuple[LinkBudget, ...]:
    """The link budget of every sampled step at which all gradients were finite and at least two sites had one."""
    rms, nonfinite = record.grid("gradient", "rms"), record.grid("gradient", "nonfinite")
    usable = ~(np.isinf(rms.values) | (nonfinite.values > 0.0)).any(axis=0)
    budgets = (_budget(rms.sites, int(rms.steps[index]), rms.values[:, index]) for index in np.flatnonzero(usable))
    return tuple(budget for budget in budgets if budget is not None)


def share_of(site: Site) -> Share:
    """What the gain of a site is booked to, by its kind and the name of its operation."""
    operation = site.operation.lower()
    if site.kind == "nonlinearity":
        return "nonlinearity"
    if "norm" in operation:
        return "normalization"
    return "weight" if any(name in operation for name in WEIGHT_OPERATIONS) else "other"


def _budget(sites: tuple[Site, ...], step: int, rms: NDArray[np.float64]) -> LinkBudget | None:
    measured = [
        (site, value)
        for site, value in zip(sites, rms, strict=True)
        if not np.isnan(value) and not site.operation.endswith(LOSS_SUFFIX)
    ]
    while measured and measured[-1][1] <= 0.0:  # what the loss does not depend on has nothing to hand on
        measured.pop()
    if len(measured) < 2:
        return None
    levels = 20.0 * np.log10(np.maximum([value for _, value in measured], GRADIENT_FLOOR))
    links = tuple(
        Link(site.name, site.operation, share_of(site), float(levels[index] - levels[index + 1]))
        for index, (site, _) in reversed(list(enumerate(measured[1:])))
    )
    return LinkBudget(step, links, measured[0][0].name)
